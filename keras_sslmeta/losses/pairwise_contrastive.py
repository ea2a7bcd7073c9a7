"""The contrastive loss on labelled pairs (Hadsell et al. 2006)."""

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import arguments, unit_vectors


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class PairwiseContrastive(BatchLoss):
    r"""Pulls the two sides of a pair together if they are the same, else pushes them to a margin apart.

    With d the Euclidean distance of the two embeddings and y = 1 where they are of the same kind, the
    value of a pair is

    ```
    l = y · d² + (1 − y) · max(margin − d, 0)²
    ```

    Hadsell et al. halve both terms and call different pairs 1. pytorch-metric-learning averages the
    positive and the negative pairs apart. A `y` between 0 and 1 weighs both terms. Pairs are not compared
    with each other, so nothing is gathered from other replicas.

    Two embeddings at the same place that should differ have the value margin² and no gradient, since no
    direction leads apart better than another.

    Args:
        margin: a number from 0, how far apart different embeddings have to be. Defaults to 1.0.
        normalize: whether embeddings are divided by their L2 norm first; distances are then at most 2.
            Defaults to False (Hadsell et al.).
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: `(batch,)` or `(batch, 1)`, 1 for the same and 0 for different, or between, as numbers or
            truth values.
        y_pred: floating-point embeddings `(batch, 2, dim)`, the two sides of each pair.
        sample_weight: optional, `(batch,)`.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`. NaN in the embeddings gives NaN, and so does,
        inside of a `tf.function`, a `y_true` outside of [0, 1].

    Raises:
        ValueError: if `margin` is not a number from 0; if `y_true` is missing, is not one number a pair,
            or is seen to lie outside of [0, 1]; if `y_pred` is of another shape or holds integers.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> pairs = np.array([[[0.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.5]]], "float32")
    >>> loss = ksm.losses.PairwiseContrastive(reduction=None)
    >>> loss(np.array([1, 0]), pairs).numpy()    # d² = 4, (1 − d)² = 0.25
    array([4.  , 0.25], dtype=float32)

    Reference:
        Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006,
        Eq. 4. https://doi.org/10.1109/CVPR.2006.100
    """

    def __init__(
        self,
        margin: float = 1.0,
        normalize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "pairwise_contrastive",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.margin = arguments.number_from_zero("margin", margin)
        self.normalize = bool(normalize)

    def targets(self, y_true, y_pred):
        """How far each pair is the same, `(batch,)`, of `y_pred`'s or a wider type."""
        _check_pairs(y_pred)
        if y_true is None:
            raise ValueError(
                "`y_true` must say of each pair whether it is the same (1) or not (0). "
                "Received: y_true=None"
            )
        same = tf.convert_to_tensor(y_true)
        if same.shape.rank == 2 and same.shape[1] == 1:
            same = same[:, 0]
        is_number = same.dtype.is_floating or same.dtype.is_integer or same.dtype == tf.bool
        if same.shape.rank not in (1, None) or not is_number:
            raise ValueError(
                "`y_true` must hold one number a pair, (batch,), 1 for the same and 0 for different. "
                f"Received: shape={tuple(same.shape)}, dtype={same.dtype.name}"
            )
        if same.shape.rank and not same.shape.is_compatible_with(y_pred.shape[:1]):
            raise ValueError(
                f"`y_true` must hold one number for each of the {y_pred.shape[0]} pairs. "
                f"Received: shape={tuple(same.shape)}"
            )
        same = tf.cast(same, tf.float64 if y_pred.dtype == tf.float64 else tf.float32)
        return _from_zero_to_one(tf.reshape(same, tf.shape(y_pred)[:1]))

    def call(self, y_true, y_pred):
        z = y_pred if y_pred.dtype == tf.float64 else tf.cast(y_pred, tf.float32)
        if self.normalize:
            z = unit_vectors.normalize(z)
        difference = z[:, 0] - z[:, 1]
        squared = tf.reduce_sum(difference * difference, axis=-1)
        is_zero = tf.equal(squared, 0)
        # Twice: the gradient of the branch not taken would be infinite at zero.
        root = tf.sqrt(tf.where(is_zero, tf.ones_like(squared), squared))
        lacking = tf.nn.relu(self.margin - tf.where(is_zero, tf.zeros_like(root), root))
        values = y_true * squared + (1 - y_true) * lacking * lacking
        return tf.cast(values, y_pred.dtype)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin, "normalize": self.normalize}


def _from_zero_to_one(same):
    """`same`, with NaN in place of what is neither same nor different nor between."""
    is_between = (same >= 0) & (same <= 1)
    known = tf.get_static_value(is_between)
    if known is not None and not np.all(known):
        raise ValueError(
            "`y_true` must lie in [0, 1], with 1 for pairs that are the same and 0 for different ones. "
            f"Received: y_true={tf.get_static_value(same)!r}"
        )
    return tf.where(is_between, same, tf.constant(float("nan"), same.dtype))


def _check_pairs(y_pred):
    shape = tuple(y_pred.shape)
    if len(shape) != 3 or shape[1] != 2:
        raise ValueError(
            "`y_pred` must hold the embeddings of both sides of each pair, of shape (batch, 2, dim). "
            f"Received: shape={shape}"
        )
