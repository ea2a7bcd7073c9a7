"""Adaptation to one task: gradient steps on its support set, differentiable in all that enters.

Second order is exact, at the memory of one step (`replayed_loop`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms.replayed_loop import replay
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork

# Loss and gradient of half-precision networks are computed at up to this scale, or gradients would vanish.
_HALF_PRECISION_SCALE = 2.0**10


@dataclasses.dataclass
class Start:
    """What a task starts from: tensors in the order of `StatelessNetwork`'s variables.

    Attributes:
        adapted, others: weights.
        rates: learning rates of the adapted weights, each a scalar or of its weight's shape.
        state: non-trainable state other than statistics.
        statistics: moving statistics `(…)`, or one for each step and the queries, `(passes, …)`.
        optimizer: state of the inner optimiser; None for its own start.
    """

    adapted: list[tf.Tensor]
    others: list[tf.Tensor]
    rates: list[tf.Tensor]
    state: list[tf.Tensor]
    statistics: list[tf.Tensor]
    optimizer: "list[tf.Tensor] | None" = None


@dataclasses.dataclass
class Adapted:
    """What adaptation leaves.

    Attributes:
        weights: the adapted weights.
        state: non-trainable state after the last step.
        losses: support loss before each step, `(steps,)`, without gradient.
        statistics: of each step's support pass, `(steps, …)`, if asked for; else of the first, `(1, …)`.
            Without gradient.
    """

    weights: list[tf.Tensor]
    state: list[tf.Tensor]
    losses: tf.Tensor
    statistics: list[tf.Tensor]


class InnerLoop:
    """Gradient steps of a network on a support set.

    Args:
        network: the network.
        loss: ``(targets, outputs) → scalar``.
        optimizer: of `inner_optimizers`.
        second_order: whether derivatives go through the gradients of the steps; first-order
            approximations take these for constants.
        every_statistic: whether the statistics of every step are kept, or the first step's alone.
    """

    def __init__(
        self,
        network: StatelessNetwork,
        loss: Callable,
        optimizer: Any,
        second_order: bool = True,
        every_statistic: bool = False,
    ):
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.second_order, self.every_statistic = second_order, every_statistic

    def adapt(
        self,
        inputs: Any,
        targets: Any,
        start: Start,
        steps: int,
        training: bool,
        by_batch: bool,
        through_inputs: bool = False,
    ) -> Adapted:
        """Adapts to one task.

        Args:
            inputs: the support set, `(samples, …)` or a nest.
            targets: its targets, for the loss.
            start: what the task starts from.
            steps: number of steps, from 0.
            training: whether layers such as dropout are in training mode.
            by_batch: whether batch normalisation uses the support set's own statistics.
            through_inputs: whether floating-point inputs and targets get a gradient.
        """
        task = _Task(self, inputs, targets, start, steps, training, by_batch, through_inputs)
        if steps == 1:
            # TensorFlow's own gradient keeps one step's intermediates too, and need not run it twice.
            carried = task.step(tf.constant(0), task.start(), task.constants)
        else:
            carried, _ = replay(task.step, task.start(), task.constants, steps)
        weights, _, state, losses, statistics = task.parts(carried)
        return Adapted(weights, state, losses[0], statistics)

    def along(
        self,
        inputs: Any,
        targets: Any,
        start: Start,
        steps: int,
        training: bool,
        by_batch: bool,
        visit: Callable,
        specs: Any,
    ) -> Any:
        """What `visit` sees before each step and after the last: a nest of `(steps + 1, …)`.

        Args:
            inputs, targets, start, steps, training, by_batch: as for `adapt`.
            visit: ``(k, weights, state) → nest``.
            specs: nest of `tf.TensorSpec`, what `visit` gives.
        """
        task = _Task(self, inputs, targets, start, steps, training, by_batch, False)

        def seen(k, carried, arrays):
            weights, _, state, _, _ = task.parts(carried)
            flat = keras.tree.flatten(visit(k, weights, state))
            return [array.write(k, x) for array, x in zip(arrays, flat, strict=True)]

        def body(k, carried, arrays):
            arrays = seen(k, carried, arrays)
            return k + 1, task.step(k, carried, task.constants), arrays

        arrays = [
            tf.TensorArray(spec.dtype, steps + 1, element_shape=spec.shape)
            for spec in keras.tree.flatten(specs)
        ]
        _, carried, arrays = tf.while_loop(
            lambda k, *_: k < steps, body, (0, task.start(), arrays), parallel_iterations=1
        )
        arrays = seen(tf.constant(steps), carried, arrays)
        return keras.tree.pack_sequence_as(specs, [array.stack() for array in arrays])


class _Task:
    """One task's step as a function of lists of tensors, which is what a loop takes."""

    def __init__(self, loop, inputs, targets, start, steps, training, by_batch, through_inputs):
        self.loop, self.begin, self.steps = loop, start, steps
        self.training, self.by_batch = training, by_batch
        self.support = inputs, targets
        flat = keras.tree.flatten(self.support)
        self.is_constant = [through_inputs and x.dtype.is_floating for x in flat]
        differentiable = [x for x, yes in zip(flat, self.is_constant, strict=True) if yes]
        self.constants = [*start.others, *start.rates, *differentiable]

    def start(self):
        begin, loop = self.begin, self.loop
        optimizer = (
            loop.optimizer.start(begin.adapted) if begin.optimizer is None else begin.optimizer
        )
        passes = max(1, self.steps) if loop.every_statistic else 1
        statistics = [tf.zeros([passes, *v.shape], v.dtype) for v in loop.network.statistics]
        losses = tf.zeros([self.steps], self._loss_dtype())
        groups = [list(begin.adapted), list(optimizer), list(begin.state), [losses], statistics]
        self.sizes = [len(group) for group in groups]
        return [x for group in groups for x in group]

    def _loss_dtype(self):
        is_double = any(w.dtype == tf.float64 for w in self.begin.adapted)
        return tf.float64 if is_double else tf.float32

    def parts(self, carried: Sequence[tf.Tensor]):
        """Adapted weights, the optimiser's state, state, losses and statistics."""
        carried, groups = list(carried), []
        for size in self.sizes:
            groups.append(carried[:size])
            carried = carried[size:]
        return groups

    def step(self, k, carried, constants):
        """One gradient step."""
        loop = self.loop
        weights, optimizer, state, (losses,), statistics = self.parts(carried)
        others, rates, (inputs, targets) = self._parts_of_constants(constants)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            outputs, of_inputs, state, penalty = loop.network(
                weights,
                others,
                [statistics_of_pass(v, w, k) for v, w in self._moving()],
                state,
                inputs,
                self.training,
                self.by_batch,
            )
            loss = loop.loss(targets, outputs)
            loss += tf.cast(penalty, loss.dtype)
            scale = _scale_in_half_precision(loss) if _is_half(outputs) else tf.ones([], loss.dtype)
            scaled = loss * scale
        gradients = tape.gradient(scaled, weights, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) / tf.cast(scale, g.dtype) for g in gradients]
        if not loop.second_order:
            gradients = [tf.stop_gradient(g) for g in gradients]
            state = [tf.stop_gradient(x) for x in state]
        weights, optimizer = loop.optimizer.step(k, weights, gradients, optimizer, rates)
        weights = [
            w if v.constraint is None else v.constraint(w)
            for v, w in zip(loop.network.adapted, weights, strict=True)
        ]
        losses = _written(losses, k, tf.cast(loss, losses.dtype))
        statistics = [_written(s, k, x) for s, x in zip(statistics, of_inputs, strict=True)]
        return [*weights, *optimizer, *state, losses, *statistics]

    def _moving(self):
        return zip(self.loop.network.statistics, self.begin.statistics, strict=True)

    def _parts_of_constants(self, constants):
        constants = iter(constants)
        others = [next(constants) for _ in self.begin.others]
        rates = [next(constants) for _ in self.begin.rates]
        flat = [
            next(constants) if yes else x
            for x, yes in zip(keras.tree.flatten(self.support), self.is_constant, strict=True)
        ]
        return others, rates, keras.tree.pack_sequence_as(self.support, flat)


def statistics_of_pass(variable, statistics, k):
    """The moving statistics that pass k uses: one for all, or the k-th, and the last one for later passes."""
    if len(statistics.shape) == len(variable.shape):
        return statistics
    return statistics[tf.minimum(k, statistics.shape[0] - 1)]


def _written(record, k, value):
    """`record` with `value` as its k-th entry, if it has one; a record, so no gradient."""
    at = tf.reshape(tf.equal(tf.range(record.shape[0]), k), [-1] + [1] * (len(record.shape) - 1))
    return tf.where(at, tf.stop_gradient(value), record)


def _scale_in_half_precision(loss):
    """A power of two, the smaller the larger the loss is, so that gradients do not overflow either."""
    size = tf.maximum(tf.abs(tf.stop_gradient(loss)), 1.0)
    room = tf.maximum(_HALF_PRECISION_SCALE / size, 1.0)
    return 2.0 ** tf.floor(tf.math.log(room) / tf.math.log(tf.constant(2.0, loss.dtype)))


def _is_half(outputs):
    return any(x.dtype in (tf.float16, tf.bfloat16) for x in keras.tree.flatten(outputs))
