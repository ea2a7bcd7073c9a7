"""Steps of a compiled model's training as a function of tensors; its gradient has the memory of one step."""

from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms.compiled_pass import CompiledPass
from keras_sslmeta.mechanisms.replayed_loop import replay


class UnrolledTraining:
    """So many steps of a model on data of given shapes.

    Attributes:
        of_batch: the `CompiledPass` of a step.

    Args:
        model: a compiled model.
        optimizer: of `inner_optimizers`.
        steps: number of steps, from 1.
        hyperparameters: `keras.Variable`s that get a gradient.
        data: `(x, y, sample_weight)`, nests of tensors, or of None, like those to come.
        same_batch: whether the data are a batch, or have an axis of steps in front.
        through_data: whether floating-point x and y get a gradient too.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Any,
        steps: int,
        hyperparameters: list,
        data: tuple,
        same_batch: bool,
        through_data: bool,
    ):
        self.steps, self.optimizer = steps, optimizer
        self.same_batch, self.through_data = same_batch, through_data
        specs = keras.tree.map_structure(self._spec, data)
        self.of_batch = CompiledPass(model, hyperparameters, specs)
        self.fit = tf.function(self._fit, autograph=False)
        self.evaluate = tf.function(self._evaluate, autograph=False)

    def _spec(self, x):
        if x is None:
            return None
        return tf.TensorSpec(x.shape if self.same_batch else x.shape[1:], x.dtype)

    def _evaluate(self, values, data, training, wants_loss):
        weights, hyperparameters, moved = values
        result, _ = self.of_batch(
            weights, hyperparameters, moved, None, data, training, wants_loss=wants_loss
        )
        return result

    def _fit(self, start):
        """Weights, moved state and losses after the last step."""
        weights, moved = start["weights"], start["moved"]
        losses = tf.zeros([self.steps], self.of_batch.loss_dtype)
        carried = weights, self.optimizer.start(weights), moved, losses
        data = keras.tree.flatten(start["data"])
        x_and_y = len(keras.tree.flatten(start["data"][:2]))
        is_constant = [
            x is not None and x.dtype.is_floating and (self.through_data or i >= x_and_y)
            for i, x in enumerate(data)
        ]
        constants = (
            start["hyperparameters"],
            start["rates"],
            [x for x, yes in zip(data, is_constant, strict=True) if yes],
        )

        def step(k, flat_carried, flat_constants):
            held = iter(keras.tree.pack_sequence_as(constants, flat_constants)[2])
            hyperparameters, rates, _ = keras.tree.pack_sequence_as(constants, flat_constants)
            batch = keras.tree.pack_sequence_as(
                start["data"],
                [
                    self._of_step(k, next(held) if yes else x)
                    for x, yes in zip(data, is_constant, strict=True)
                ],
            )
            now = keras.tree.pack_sequence_as(carried, flat_carried)
            return keras.tree.flatten(
                self._step(k, now, hyperparameters, rates, start["fixed"], batch)
            )

        first, held = keras.tree.flatten(carried), keras.tree.flatten(constants)
        if self.steps == 1:
            # TensorFlow's own gradient keeps one step's intermediates too, and need not run it twice.
            last = step(tf.constant(0), first, held)
        else:
            last, _ = replay(step, first, held, self.steps)
        weights, _, moved, losses = keras.tree.pack_sequence_as(carried, list(last))
        return weights, moved, losses

    def _of_step(self, k, x):
        return x if x is None or self.same_batch else tf.gather(x, k)

    def _step(self, k, carried, hyperparameters, rates, fixed, batch):
        """One step of training, as `keras.Model.train_step` takes it."""
        weights, slots, moved, losses = carried
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            loss, moved = self.of_batch(
                weights, hyperparameters, moved, fixed, batch, training=True
            )
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        rates = _rates_of_step(k, rates, weights)
        weights, slots = self.optimizer.step(k, weights, gradients, slots, rates)
        weights = [
            w if v.constraint is None else v.constraint(w)
            for v, w in zip(self.of_batch.trained, weights, strict=True)
        ]
        losses = tf.where(tf.equal(tf.range(self.steps), k), loss, losses)
        return weights, slots, moved, losses


def _rates_of_step(k, rates, weights):
    """A rate for each weight."""
    if not isinstance(rates, list):
        rates = rates if rates.shape.rank == 0 else rates[k]
        rates = tf.unstack(rates) if rates.shape.rank == 1 else [rates] * len(weights)
    return [tf.cast(rate, w.dtype) for rate, w in zip(rates, weights, strict=True)]
