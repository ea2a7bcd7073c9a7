"""A loss with weights of its own, as a function of them: what the inner loop can be taught to minimise."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class LearntLoss:
    """A Keras layer, called with ``[targets, outputs]``, whose mean output is a loss.

    Args:
        layer: a built layer or model.
    """

    def __init__(self, layer: "keras.Layer"):
        self.layer = layer

    def __call__(self, targets: Any, outputs: Any, weights: Sequence[tf.Tensor]) -> tf.Tensor:
        """The loss, a scalar, with these tensors for the layer's trainable variables."""
        mapping = list(zip(self.layer.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return tf.reduce_mean(self.layer([targets, outputs]))
