"""A Keras model as a function of its weights, as the inner loop needs it.

`keras.StatelessScope` runs any model on tensors in place of its variables: no layer is cloned or rewritten.
What this adds is the order in the variables (adapted weights, other weights, statistics of batch
normalisation, random states, any other state), and batch normalisation told apart from `training`.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import random_state, second_derivatives


class StatelessNetwork:
    """A built model, its variables sorted.

    Attributes:
        adapted: trainable variables that the inner loop changes.
        others: the other trainable ones: meta-learnt, the same for every task.
        statistics: the moving statistics of its `keras.layers.BatchNormalization` layers.
        momenta, are_frozen: of the layers of these statistics.
        state: everything else that is not trainable: random states, custom layers' averages, counters.
    """

    def __init__(self, model: keras.Model, is_adapted: "Callable[[Any], bool] | None" = None):
        self.model = model
        trainable = list(model.trainable_variables)
        chosen = [is_adapted is None or bool(is_adapted(v)) for v in trainable]
        self.adapted = [v for v, yes in zip(trainable, chosen, strict=True) if yes]
        self.others = [v for v, yes in zip(trainable, chosen, strict=True) if not yes]
        self.norms = [
            layer
            for layer in model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self.statistics: list[Any] = []
        self.momenta: list[float] = []
        self.are_frozen: list[bool] = []
        for layer in self.norms:
            for v in layer.non_trainable_variables:
                if any(v is w for w in (*trainable, *self.statistics)) or _is_weight(layer, v):
                    continue
                self.statistics.append(v)
                self.momenta.append(layer.momentum)
                self.are_frozen.append(not layer.trainable)
        known = {id(v) for v in self.statistics}
        self.state = [v for v in model.non_trainable_variables if id(v) not in known]

    def __call__(
        self,
        adapted: Sequence[tf.Tensor],
        others: Sequence[tf.Tensor],
        statistics: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        inputs: Any,
        training: bool,
        batch_statistics: bool,
    ) -> "tuple[Any, list[tf.Tensor], list[tf.Tensor]]":
        """The model's outputs on `inputs`, with these tensors for its variables.

        Args:
            adapted, others, statistics, state: as the attributes of the same names.
            inputs: of the model, `(batch, …)` or a nest.
            training: whether the layers but batch normalisation are in training mode.
            batch_statistics: whether batch normalisation uses the statistics of `inputs`, in place of
                `statistics`.

        Returns:
            `(outputs, statistics, state)`: with `batch_statistics` the statistics are those of
            `inputs`, as a differentiable function of the weights; else those that came.
        """
        mapping = [
            *zip(self.adapted, adapted, strict=True),
            *zip(self.others, others, strict=True),
            *zip(self.statistics, statistics, strict=True),
            *zip(self.state, state, strict=True),
        ]
        with (
            second_derivatives.exact_moments(),
            _normalizing_by_batch(self.norms, batch_statistics),
            keras.StatelessScope(state_mapping=mapping) as scope,
        ):
            outputs = self.model(inputs, training=training)
            of_inputs = [_value(scope, v) for v in self.statistics]
            state = [_value(scope, v) for v in self.state]
        return outputs, of_inputs, state

    def random_states(self) -> list[bool]:
        """Which of `state` are the states of seed generators."""
        return [random_state.is_seed(v) for v in self.state]


def _is_weight(layer, variable):
    """γ and β of a layer that is frozen: non-trainable, and no statistics."""
    return any(variable is getattr(layer, name, None) for name in ("gamma", "beta"))


def _value(scope, variable):
    value = scope.get_current_value(variable)
    return tf.convert_to_tensor(variable.value if value is None else value)


@contextlib.contextmanager
def _normalizing_by_batch(layers, by_batch):
    """Batch normalisation by the batch's own statistics or by given ones, whatever `training` says.

    With a momentum of 0 a layer's moving statistics become those of the batch exactly.
    """
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.call = _with_training(layer, by_batch)
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            del layer.call  # The method of its class again.
            layer.momentum = momentum


def _with_training(layer, by_batch):
    call = type(layer).call

    def fixed(inputs, training=None, mask=None):
        return call(layer, inputs, training=by_batch, mask=mask)

    return fixed
