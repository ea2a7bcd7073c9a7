"""`SimilarityLoss`: parent of losses on scaled similarities of embeddings."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import arguments, cross_replica, unit_vectors
from keras_sslmeta.negatives.negative_rule import NegativeRule


class SimilarityLoss(BatchLoss):
    """Parent of losses on the similarities of embeddings over a temperature.

    Args:
        temperature: a positive number.
        normalize: whether embeddings are divided by their L2 norm first.
        gather: whether embeddings are compared with those of all replicas.
        negatives: rules of `keras_sslmeta.negatives` on which negatives count, and how much.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.
    """

    def __init__(
        self,
        temperature: float,
        normalize: bool,
        gather: bool,
        negatives: Sequence[NegativeRule],
        reduction: str | None,
        name: str,
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        is_variable = isinstance(temperature, keras.Variable)
        self.temperature = (
            temperature if is_variable else arguments.positive_number("temperature", temperature)
        )
        self.normalize = bool(normalize)
        self.gather = bool(gather)
        self.negatives = _checked_rules(negatives)

    def scaled(self, x: tf.Tensor) -> tf.Tensor:
        """In full precision, by √T on either side, so that a product is a similarity over T, and rows
        that are also keys are the same vectors."""
        x = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
        if isinstance(
            self.temperature, keras.Variable
        ):  # It gets a gradient, which `length` does not.
            scale = tf.cast(self.temperature, x.dtype) ** -0.5
            return (unit_vectors.normalize(x) if self.normalize else x) * scale
        scale = self.temperature**-0.5
        return unit_vectors.normalize(x, length=scale) if self.normalize else x * scale

    def scaled_memory(self, y_true: Any, like: tf.Tensor) -> "tf.Tensor | None":
        """The embeddings of earlier batches in a dict `y_true`, without gradient."""
        memory = y_true.get("memory") if isinstance(y_true, dict) else None
        if memory is None:
            return None
        memory = tf.convert_to_tensor(memory)
        if not memory.dtype.is_floating or not memory.shape.is_compatible_with(
            [None, like.shape[-1]]
        ):
            raise ValueError(
                f"`memory` must hold embeddings of earlier batches, (m, {like.shape[-1]}). "
                f"Received: shape={tuple(memory.shape)}, dtype={memory.dtype.name}"
            )
        return tf.stop_gradient(self.scaled(tf.cast(memory, like.dtype)))

    @property
    def bound(self) -> "float | None":
        """What no scaled similarity exceeds, where that is known."""
        is_known = self.normalize and not isinstance(self.temperature, keras.Variable)
        return 1 / self.temperature if is_known else None

    def refuse_one_target_for_several(self, y_true: Any) -> None:
        """Where rules ask for different things and one tensor came."""
        names = sorted({rule.key for rule in self.negatives if hasattr(rule, "key")})
        if len(names) > 1 and not isinstance(y_true, dict):
            raise ValueError(
                f"These rules need different things, {', '.join(f'`{name}`' for name in names)}: pass a dict "
                "with a tensor for each as `y_true`. Received: y_true of type "
                f"{type(y_true).__name__}"
            )

    def refuse_single_sample(self, y_pred: tf.Tensor) -> None:
        """Where the batch is known to hold one sample, and is all there is."""
        if y_pred.shape[0] == 1 and (not self.gather or cross_replica.sees_whole_batch()):
            raise ValueError(
                "A batch of one sample has no negatives: `y_pred` must hold at least two samples. "
                f"Received: shape={tuple(y_pred.shape)}"
            )

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": float(self.temperature),
            "normalize": self.normalize,
            "gather": self.gather,
            "negatives": [keras.saving.serialize_keras_object(rule) for rule in self.negatives],
        }


def _checked_rules(negatives) -> list[NegativeRule]:
    """The rules, built again where they come from a configuration."""
    is_list = isinstance(negatives, (list, tuple))
    rules = [
        keras.saving.deserialize_keras_object(rule) if isinstance(rule, dict) else rule
        for rule in (negatives if is_list else [negatives])
    ]
    if not all(isinstance(rule, NegativeRule) for rule in rules):
        raise ValueError(
            "`negatives` must be a list of rules of `keras_sslmeta.negatives`. "
            f"Received: negatives={negatives!r}"
        )
    return rules
