"""AlignmentUniformity, the loss of Wang and Isola 2020."""

import itertools

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.mechanisms import (
    arguments,
    cross_replica,
    row_blocks,
    streaming_similarity,
    unit_vectors,
)


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class AlignmentUniformity(BatchStatisticLoss):
    r"""Views of a sample close together, samples spread evenly over the sphere.

    With z the embeddings of the global batch of B samples, divided by their norm,

    ```
    alignment  = mean_i ‖z_ia − z_ib‖^α
    uniformity = log mean_{i<j} exp(−t ‖z_i − z_j‖²)        of each view
    loss       = alignment + λ · mean of the views' uniformities
    ```

    With more than two views the alignment is the mean over the pairs of views. Uniformity is at most 0,
    where all samples are equal; a batch of one sample has uniformity 0.

    The squared distances are 2 − 2 z_i·z_j, walked in tiles and never stored: memory grows with the batch
    and not with its square. In them a zero embedding, which stays zero and gets no gradient, is at a right
    angle to all.

    Args:
        alpha: α, a positive number. Defaults to 2 (the paper).
        t: t, a positive number. Defaults to 2 (the paper).
        uniformity_weight: λ, a number from 0. Defaults to 1 (the paper).
        gather: whether the uniformity is that of the samples of all replicas of a `tf.distribute`
            strategy, which makes the loss independent of their number. False takes each replica's own
            samples. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: ignored, and may be None.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.

    Returns:
        The loss; with `reduction=None`, that scalar repeated to `(batch,)`. NaN in the embeddings gives
        NaN.

    Raises:
        ValueError: if `alpha` or `t` is not a positive number or `uniformity_weight` not a number from 0;
            if `y_pred` is of another rank, has one view or holds integers; if a `sample_weight` is given,
            since the samples' uniformity has no terms of single samples.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> collapsed = np.ones((8, 2, 4), "float32")    # aligned, and not spread at all
    >>> bool(np.isclose(ksm.losses.AlignmentUniformity()(None, collapsed), 0, atol=1e-6))
    True
    >>> opposite = np.array([[[1.0, 0], [1, 0]], [[-1, 0], [-1, 0]]])    # −t · 2²
    >>> bool(np.isclose(ksm.losses.AlignmentUniformity()(None, opposite), -8))
    True

    Reference:
        Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity
        on the Hypersphere", ICML 2020, Sec. 4. https://arxiv.org/abs/2005.10242
    """

    def __init__(
        self,
        alpha: float = 2.0,
        t: float = 2.0,
        uniformity_weight: float = 1.0,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "alignment_uniformity",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype, gather=gather)
        self.alpha = arguments.positive_number("alpha", alpha)
        self.t = arguments.positive_number("t", t)
        self.uniformity_weight = arguments.number_from_zero("uniformity_weight", uniformity_weight)

    def statistic(self, y_true, y_pred):
        z = unit_vectors.normalize(self.embeddings(y_pred))
        samples, views = self.samples(z), z.shape[1]
        powers = [
            tf.reduce_sum(_power_of_distance(z[:, a], z[:, b], self.alpha))
            for a, b in itertools.combinations(range(views), 2)
        ]
        alignment = self.total(tf.add_n(powers)) / (tf.maximum(samples, 1) * len(powers))
        # Scaled on both sides, so that rows and keys are the same vectors: z · z' is then 2t times it.
        scaled = z * (2 * self.t) ** 0.5
        keys, own_key = None, None
        if self.gather and cross_replica.replica_context() is not None:
            own_key = cross_replica.first_row(tf.shape(z)[0])
            keys = cross_replica.gather(scaled)
        uniformities = [
            self._uniformity(scaled[:, v], None if keys is None else keys[:, v], own_key, samples)
            for v in range(views)
        ]
        return alignment + self.uniformity_weight * tf.add_n(uniformities) / views

    def _uniformity(self, rows, keys, own_key, samples):
        logs = streaming_similarity.log_sum_exp(rows, keys, own_key, bound=2 * self.t)
        # Less the largest before exponentials: where t is high, all of them may be out of range.
        largest = tf.reduce_max(tf.stop_gradient(logs))
        largest = row_blocks.finite(cross_replica.largest(largest) if self.gather else largest)
        total = self.total(tf.reduce_sum(tf.exp(logs - largest)))
        is_zero = tf.equal(total, 0)  # A sample alone has no pairs.
        log_total = tf.math.log(tf.where(is_zero, tf.ones_like(total), total))
        log_pairs = tf.math.log(tf.maximum(samples * (samples - 1), 1))
        # ‖z − z'‖² = 2 − 2 z·z'
        value = log_total + largest - 2 * self.t - log_pairs
        return tf.where(is_zero, tf.zeros_like(value), value)

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "t": self.t,
            "uniformity_weight": self.uniformity_weight,
        }


def _power_of_distance(x, y, alpha):
    """``‖x − y‖^α`` of each row, whose gradient is 0 where the distance is."""
    squared = tf.reduce_sum(tf.math.squared_difference(x, y), axis=1)
    is_zero = tf.equal(squared, 0)
    # Twice: the gradient of the branch not taken would be infinite at zero.
    power = tf.where(is_zero, tf.ones_like(squared), squared) ** (alpha / 2)
    return tf.where(is_zero, tf.zeros_like(power), power)
