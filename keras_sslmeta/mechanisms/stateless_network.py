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

from keras_sslmeta.mechanisms import (
    batch_normalization,
    cross_replica,
    random_state,
    second_derivatives,
)


class StatelessNetwork:
    """A built model, its variables sorted.

    Attributes:
        adapted: trainable variables that the inner loop changes.
        others: the other trainable ones: meta-learnt, the same for every task.
        statistics: the moving statistics of its `keras.layers.BatchNormalization` layers.
        momenta, are_frozen: of the layers of these statistics.
        constrained: whether an adapted variable has a constraint.
        is_half: whether a layer computes in half precision.
        frozen: weights of frozen layers, which are neither learnt nor changed: constants.
        state: everything else that is not trainable: random states, custom layers' averages, counters.
        renormalized: how far what is normalised by the batch is moved to the given statistics, from 0 for
            not at all to 1: see `batch_normalization.renormalized`. None for not at all.
    """

    def __init__(self, model: keras.Model, is_adapted: "Callable[[Any], bool] | None" = None):
        self.model = model
        self.renormalized: Any = None
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
        with second_derivatives.exact():  # Momenta are others' while another thread is in a call.
            for layer in self.norms:
                self._add(layer, trainable)
        self.constrained = any(v.constraint is not None for v in self.adapted)
        layers = model._flatten_layers()
        self.is_half = any(layer.compute_dtype in ("float16", "bfloat16") for layer in layers)
        made_to_be_trained = {
            id(v) for layer in model._flatten_layers() for v in layer._trainable_variables
        }
        known = {id(v) for v in self.statistics}
        fixed = [v for v in model.non_trainable_variables if id(v) not in known]
        self.frozen = [v for v in fixed if id(v) in made_to_be_trained]
        self.state = [v for v in fixed if id(v) not in made_to_be_trained]
        self._frozen_values: list[tf.Tensor] = []

    def read_frozen(self):
        """Reads the frozen weights into tensors: once, before any loop."""
        self._frozen_values = [tf.convert_to_tensor(v.value) for v in self.frozen]

    def _add(self, layer, trainable):
        """Adds the statistics of a layer of batch normalisation."""
        _check_norm(layer)
        for v in layer.non_trainable_variables:
            if any(v is w for w in (*trainable, *self.statistics)) or _is_weight(layer, v):
                continue
            self.statistics.append(v)
            self.momenta.append(layer.momentum)
            self.are_frozen.append(not layer.trainable)

    def __call__(
        self,
        adapted: Sequence[tf.Tensor],
        others: Sequence[tf.Tensor],
        statistics: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        inputs: Any,
        training: bool,
        batch_statistics: bool,
        through_statistics: bool = False,
    ) -> "tuple[Any, list[tf.Tensor], list[tf.Tensor], tf.Tensor]":
        """The model's outputs on `inputs`, with these tensors for its variables.

        Args:
            adapted, others, statistics, state: as the attributes of the same names.
            inputs: of the model, `(batch, …)` or a nest.
            training: whether the layers but batch normalisation are in training mode.
            batch_statistics: whether batch normalisation uses the statistics of `inputs`, in place of
                `statistics`; as far as `renormalized` leaves it to them.
            through_statistics: whether the statistics that come back are a differentiable function of the
                weights; they may count as constants otherwise.

        Returns:
            `(outputs, statistics, state, penalty)`: with `batch_statistics` the statistics are those of
            `inputs`; else those that came. The penalty is the sum of what layers add to the loss
            (activity regularisers, `add_loss`), a scalar.
        """
        mapping = [
            *zip(self.adapted, adapted, strict=True),
            *zip(self.others, others, strict=True),
            *zip(self.statistics, statistics, strict=True),
            *zip(self.state, state, strict=True),
            *zip(self.frozen, self._frozen_values, strict=False),
        ]
        with (
            second_derivatives.exact(),
            _normalizing_by_batch(
                self.norms, batch_statistics, through_statistics, self.renormalized
            ),
            keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope,
        ):
            outputs = self.model(inputs, training=training)
            of_inputs = [_value(scope, v) for v in self.statistics]
            state = [_value(scope, v) for v in self.state]
            self._check_weights_unchanged(scope, mapping)
            penalties = [tf.reduce_sum(tf.cast(x, _widest(adapted))) for x in scope.losses]
        penalty = tf.add_n(penalties) if penalties else tf.zeros([], _widest(adapted))
        return outputs, of_inputs, state, penalty

    def _check_weights_unchanged(self, scope, mapping):
        """Refuses layers that assign to their weights when called: inner steps cannot follow that."""
        for variable, tensor in mapping[: len(self.adapted) + len(self.others)]:
            value = scope.get_current_value(variable)
            if value is not None and value is not tensor and not _is_same(value, tensor):
                raise ValueError(
                    "Layers of `model` must not assign to their trainable weights when called, as "
                    "keras.layers.SpectralNormalization does. "
                    f"Received: a model that assigns to {variable.path}"
                )

    def random_states(self) -> list[bool]:
        """Which of `state` are the states of seed generators."""
        return [random_state.is_seed(v) for v in self.state]


def _check_norm(layer):
    if getattr(layer, "renorm", False):
        raise ValueError(
            "Batch normalisation with `renorm` has no meaning in inner steps: leave it out. "
            f"Received: the layer {layer.name!r} with renorm=True"
        )
    if layer.synchronized and cross_replica.count() > 1:
        raise ValueError(
            "Batch normalisation in a model that adapts to tasks must not be synchronised: replicas "
            f"hold different tasks. Received: the layer {layer.name!r} with synchronized=True"
        )


def _is_weight(layer, variable):
    """γ and β of a layer that is frozen: non-trainable, and no statistics."""
    return any(variable is getattr(layer, name, None) for name in ("gamma", "beta"))


def _widest(weights):
    return tf.float64 if any(w.dtype == tf.float64 for w in weights) else tf.float32


def _is_same(value, tensor):
    """Whether two tensors are the same one: Keras may wrap what it is given."""
    return getattr(value, "ref", None) is not None and value.ref() == tensor.ref()


def _value(scope, variable):
    value = scope.get_current_value(variable)
    return tf.convert_to_tensor(variable.value if value is None else value)


@contextlib.contextmanager
def _normalizing_by_batch(layers, by_batch, through_statistics, renormalized):
    """Batch normalisation by the batch's own statistics or by given ones, whatever `training` says.

    With a momentum of 0 a layer's moving statistics become those of the batch exactly.
    """
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.call = _with_training(layer, by_batch, through_statistics)
            if by_batch and renormalized is not None:
                layer.call = _renormalizing(layer, layer.call, renormalized)
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            del layer.call  # The method of its class again.
            layer.momentum = momentum


def _with_training(layer, by_batch, through_statistics):
    call = type(layer).call

    def fixed(inputs, **kwargs):
        in_closed_form = by_batch and not through_statistics
        if in_closed_form and batch_normalization.applies(layer, inputs, kwargs.get("mask")):
            return batch_normalization.in_training(layer, inputs)
        if layer._call_has_training_arg:
            kwargs["training"] = by_batch
        return call(layer, inputs, **kwargs)

    return fixed


def _renormalizing(layer, call, amount):
    def moved(inputs, **kwargs):
        given = [tf.convert_to_tensor(v) for v in (layer.moving_mean, layer.moving_variance)]
        outputs = call(inputs, **kwargs)
        own = [tf.convert_to_tensor(v) for v in (layer.moving_mean, layer.moving_variance)]
        return batch_normalization.renormalized(layer, outputs, own, given, amount)

    return moved
