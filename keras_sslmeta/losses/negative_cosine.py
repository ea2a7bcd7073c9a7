"""NegativeCosine, the loss of SimSiam (Chen and He 2021)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import unit_vectors


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class NegativeCosine(BatchLoss):
    r"""Negative cosine of predictions with targets, into which no gradient flows.

    With p_iv the prediction from view v of sample i and z_iv its target, the value of sample i is the mean
    over its views

    ```
    l_i = − mean_v  p_iv / ‖p_iv‖ · z_iv / ‖z_iv‖
    ```

    A prediction from one view is to meet the embedding of **another**: the model crosses the views before
    they come here, `y_true[:, v]` being the embedding of the view that `y_pred[:, v]` predicts. With two
    views, `NegativeCosine()(z[:, ::-1], p)` is SimSiam's ½ + ½. BYOL's loss, the sum over both directions
    of 2 − 2 cos, is 4 + 4 times that. Samples are not compared with each other.

    Args:
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: floating-point targets, of the shape of `y_pred`.
        y_pred: floating-point predictions `(batch, dim)` or `(batch, views, dim)`. A zero prediction has
            the cosine 0 with any target, and gets no gradient.
        sample_weight: optional, `(batch,)`.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`. NaN in targets or predictions gives NaN.

    Raises:
        ValueError: if targets or predictions are missing, hold integers or differ in shape; if they are
            of another rank.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> z = np.random.default_rng(0).normal(size=(8, 2, 16)).astype("float32")
    >>> bool(np.isclose(ksm.losses.NegativeCosine()(z, 3 * z), -1))    # lengths do not count
    True
    >>> bool(np.isclose(ksm.losses.NegativeCosine()(z, -z), 1))
    True

    Reference:
        Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021, Eq. 1 to 3.
        https://arxiv.org/abs/2011.10566
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "negative_cosine",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def targets(self, y_true, y_pred):
        """The embeddings that are predicted."""
        if y_true is None:
            raise ValueError(
                "`y_true` must hold the embeddings that `y_pred` predicts. Received: y_true=None"
            )
        y_true = tf.convert_to_tensor(y_true)
        if not y_true.dtype.is_floating:
            raise ValueError(
                "`y_true` must hold the floating-point embeddings that `y_pred` predicts. "
                f"Received: dtype={y_true.dtype.name}"
            )
        return y_true

    def call(self, y_true, y_pred):
        _check_shapes(y_true, y_pred)
        prediction = y_pred if y_pred.dtype == tf.float64 else tf.cast(y_pred, tf.float32)
        target = tf.stop_gradient(tf.cast(y_true, prediction.dtype))
        cosine = tf.reduce_sum(  # D(p, z) of Eq. 1 and 3 is its negative.
            unit_vectors.normalize(prediction) * unit_vectors.normalize(target), axis=-1
        )
        if len(cosine.shape) == 2:
            cosine = tf.reduce_mean(cosine, axis=1)
        return tf.cast(-cosine, y_pred.dtype)


def _check_shapes(y_true, y_pred):
    shapes = tuple(y_true.shape), tuple(y_pred.shape)
    if len(shapes[1]) not in (2, 3):
        raise ValueError(
            "`y_pred` must hold predictions (batch, dim) or (batch, views, dim). "
            f"Received: shape={shapes[1]}"
        )
    # Batches may be known to one and not to the other; their other axes would broadcast.
    if len(shapes[0]) != len(shapes[1]) or shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            "`y_true` and `y_pred` must be of the same shape, one target for each prediction. "
            f"Received: shapes={shapes[0]}, {shapes[1]}"
        )
    if None not in (shapes[0][0], shapes[1][0]) and shapes[0][0] != shapes[1][0]:
        raise ValueError(
            "`y_true` and `y_pred` must hold as many samples. "
            f"Received: shapes={shapes[0]}, {shapes[1]}"
        )
