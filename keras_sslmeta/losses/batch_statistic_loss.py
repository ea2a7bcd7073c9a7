"""`BatchStatisticLoss`: parent of losses that are one number of the whole batch."""

from typing import Any

import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import cross_replica


class BatchStatisticLoss(BatchLoss):
    """Parent of losses on statistics of the global batch, whose samples have no value of their own.

    A subclass writes `statistic(y_true, y_pred)`, a scalar of the **global** batch, the same on every
    replica, from what its helpers give: `embeddings`, `samples`, `total` and `gathered`. This class
    repeats it to `(batch,)`, from which Keras's mean is the scalar again.

    Whatever a replica's own samples give to the statistic must pass through `total` or `gathered`, whose
    gradients sum over replicas what each replica's loss asks of them. Keras asks 1/R of each of R
    replicas, and the parent makes that n_r/N for n_r of N samples: they sum to 1, also where a replica has
    no sample and so asks for nothing.

    Args:
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the loss's result and inputs.
        gather: whether the statistic is of the samples of all replicas of a `tf.distribute` strategy,
            which makes the loss independent of their number. False takes each replica's own samples.
            Defaults to True.

    Raises:
        ValueError: if a `sample_weight` is given: a weight would scale the whole batch's statistic and
            weigh no sample.
    """

    def __init__(
        self,
        name: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
        gather: bool = True,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.gather = bool(gather)

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} is a statistic of the whole batch, in which no sample has a "
                "value of its own that a weight could count: pass no `sample_weight`. "
                f"Received: sample_weight={sample_weight!r}"
            )
        return super().__call__(y_true, y_pred)

    def statistic(self, y_true, y_pred) -> tf.Tensor:
        """The scalar of the global batch."""
        raise NotImplementedError(f"{type(self).__name__} must define `statistic`.")

    def call(self, y_true, y_pred):
        value = tf.cast(self.statistic(y_true, y_pred), y_pred.dtype)
        return tf.repeat(value[None], tf.shape(y_pred)[0])

    # ------------------------------------------------------------------ for subclasses

    def embeddings(self, y_pred, least_views: int = 2) -> tf.Tensor:
        """`y_pred` checked, `(batch, views, dim)`, in float32 or float64.

        Where one view is enough, `(batch, dim)` is one view.
        """
        shape = tuple(y_pred.shape)
        if least_views == 1 and len(shape) == 2:
            y_pred = y_pred[:, None]
        if len(y_pred.shape) != 3:
            shapes = (
                "(batch, views, dim)" if least_views > 1 else "(batch, dim) or (batch, views, dim)"
            )
            raise ValueError(
                f"`y_pred` must hold embeddings of shape {shapes}: stack the views of a sample on "
                f"axis 1. Received: shape={shape}"
            )
        if None in y_pred.shape[1:]:
            raise ValueError(
                "`y_pred` must have a static number of views and dimensions. "
                f"Received: shape={shape}"
            )
        if y_pred.shape[1] < least_views:
            raise ValueError(
                f"`y_pred` must hold at least {least_views} views of each sample, on axis 1. "
                f"Received: shape={shape}"
            )
        return y_pred if y_pred.dtype == tf.float64 else tf.cast(y_pred, tf.float32)

    def total(self, x: tf.Tensor) -> tf.Tensor:
        """`x`, such as a sum over this replica's samples, summed over the replicas that count."""
        return cross_replica.total(x) if self.gather else x

    def gathered(self, x: tf.Tensor) -> tf.Tensor:
        """The rows of all replicas that count."""
        return cross_replica.gather(x) if self.gather else x

    def samples(self, x: tf.Tensor) -> tf.Tensor:
        """How many samples count, a scalar of `x`'s dtype."""
        return self.total(tf.cast(tf.shape(x)[0], x.dtype))

    def centered(self, x: tf.Tensor) -> tf.Tensor:
        """`x` less its mean over the samples that count."""
        return x - self.total(tf.reduce_sum(x, axis=0)) / tf.maximum(self.samples(x), 1)

    def get_config(self):
        return {**super().get_config(), "gather": self.gather}
