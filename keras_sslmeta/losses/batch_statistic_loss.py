"""`BatchStatisticLoss`: parent of losses that are one number of the whole batch."""

import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss


class BatchStatisticLoss(BatchLoss):
    """Parent of losses on statistics of the global batch, whose samples have no value of their own.

    A subclass writes `statistic(y_true, y_pred)`, a scalar of the **global** batch, the same on every
    replica (`cross_replica.total` sums over replicas, `cross_replica.gather` gives the samples of all);
    this class repeats it to `(batch,)`, from which Keras's mean is the scalar again.

    Args:
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the loss's result and inputs.

    Raises:
        ValueError: if a `sample_weight` is given: a weight would scale the whole batch's statistic and
            weigh no sample.
    """

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
        return tf.repeat(self.statistic(y_true, y_pred)[None], tf.shape(y_pred)[0])
