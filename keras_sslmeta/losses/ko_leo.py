"""KoLeo, the regulariser of Sablayrolles et al. 2019, as DINOv2 uses it."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.mechanisms import arguments, cross_replica, row_functions, unit_vectors


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class KoLeo(BatchStatisticLoss):
    r"""Pushes each embedding away from its nearest neighbour, so that embeddings spread over the sphere.

    With z the embeddings of B samples divided by their norm, a Kozachenko–Leonenko estimate of their
    differential entropy, with its sign turned, up to a constant:

    ```
    loss = − 1/B · Σ_i log(min_{j≠i} ‖z_i − z_j‖ + ε)
    ```

    With several views it is the mean over views; neighbours are sought within a view. The gradient goes
    into both ends of each distance; which neighbour is nearest has none. The distance 0 of duplicates has
    no gradient; that of near ones is as large as 1/distance. A batch of one sample gives 0.

    DINOv2 adds it with weight 0.1, within each device (`gather=False`). Distances are taken a block of
    rows at a time, so that memory does not grow with the square of the batch.

    Args:
        epsilon: ε, a positive number. Defaults to 1e-8 (DINOv2).
        gather: whether neighbours come from all replicas of a `tf.distribute` strategy, which makes the
            loss independent of their number. False looks within each replica only. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: ignored, and may be None.
        y_pred: floating-point embeddings `(batch, dim)` or `(batch, views, dim)`. A zero embedding stays
            zero when divided by its norm, and gets no gradient.

    Returns:
        The loss; with `reduction=None`, that scalar repeated to `(batch,)`. NaN in the embeddings gives
        NaN.

    Raises:
        ValueError: if `epsilon` is not a positive number; if `y_pred` is of another rank or holds
            integers; if a `sample_weight` is given, since the loss is one number of the batch.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> opposite = np.array([[1.0, 0.0], [-2.0, 0.0]])    # −log 2
    >>> bool(np.isclose(ksm.losses.KoLeo()(None, opposite), -np.log(2)))
    True
    >>> bool(np.isclose(ksm.losses.KoLeo()(None, np.ones((4, 2))), -np.log(1e-8)))
    True

    Reference:
        Sablayrolles, Douze, Schmid, Jégou, "Spreading vectors for similarity search", ICLR 2019, Eq. 2.
        https://arxiv.org/abs/1806.03198
        Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, Sec. 4.
        https://arxiv.org/abs/2304.07193
    """

    def __init__(
        self,
        epsilon: float = 1e-8,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "ko_leo",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype, gather=gather)
        self.epsilon = arguments.positive_number("epsilon", epsilon)

    def statistic(self, y_true, y_pred):
        z = unit_vectors.normalize(self.embeddings(y_pred, least_views=1))
        rows, samples = tf.shape(z)[0], self.samples(z)
        first = cross_replica.first_row(rows) if self.gather else 0
        # One key more, which is nobody's neighbour, since an empty share has to look somewhere.
        keys = tf.pad(self.gathered(z), [[0, 1], [0, 0], [0, 0]])
        logs = [
            row_functions.of_rows(
                self._log_distance_to_nearest, z[:, v], keys[:, v], first + tf.range(rows)
            )
            for v in range(z.shape[1])
        ]
        mean = self.total(tf.reduce_sum(tf.stack(logs))) / (tf.maximum(samples, 1) * len(logs))
        # A product, so that NaN stays NaN.
        return -mean * tf.cast(samples > 1, z.dtype)

    def _log_distance_to_nearest(self, rows, keys, own_key):
        nearest = _nearest(tf.stop_gradient(rows), tf.stop_gradient(keys), own_key)
        squared = tf.reduce_sum(tf.math.squared_difference(rows, tf.gather(keys, nearest)), axis=1)
        is_zero = tf.equal(squared, 0)
        # Twice: the gradient of the branch not taken would be infinite at zero.
        root = tf.sqrt(tf.where(is_zero, tf.ones_like(squared), squared))
        return tf.math.log(tf.where(is_zero, tf.zeros_like(root), root) + self.epsilon)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def _nearest(rows, keys, own_key):
    """Number of each row's nearest key, other than its own and the last."""
    # Distances do not change with the origin, and from the mean less of them is cancelled.
    center = tf.reduce_mean(keys[:-1], axis=0)
    rows, keys = rows - center, keys - center
    nearness = tf.matmul(rows, keys, transpose_b=True) - 0.5 * tf.reduce_sum(keys * keys, axis=1)
    number = tf.range(tf.shape(keys)[0])
    left_out = (number == own_key[:, None]) | (number == tf.shape(keys)[0] - 1)
    nearness = tf.where(left_out, tf.constant(float("-inf"), rows.dtype), nearness)
    return tf.argmax(nearness, axis=1, output_type=tf.int32)
