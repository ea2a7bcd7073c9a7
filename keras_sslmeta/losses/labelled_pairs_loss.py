"""`LabelledPairsLoss`: parent of losses that pick out of a sample's pairs with all others, by label."""

import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import cross_replica, label_ids, row_functions, unit_vectors


class LabelledPairsLoss(BatchLoss):
    """Parent of losses that compare each embedding with all others and tell these apart by label.

    A subclass writes `compare(rows, keys, is_self)`, the distances or similarities of rows to keys, and
    `terms(compared, positive, negative)`, which sums up each row. The loss is the mean over all terms
    of all rows of the global batch; embedding i has the value

    ```
    l_i = sum_i · (number of embeddings) / Σ_k count_k
    ```

    whose mean over the batch is that. It is 0 where there are no terms at all. The matrix is walked in
    blocks of rows, so memory grows with the batch and not with its square.

    Args:
        normalize: whether embeddings are divided by their L2 norm first.
        gather: whether embeddings are compared with those of all replicas.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the loss's result and inputs.

    Call arguments:
        y_true: `(batch,)`, one integer or string a sample.
        y_pred: `(batch, dim)`, or `(batch, views, dim)`, where the views are samples of one label; the
            value of a sample is the mean over its views.
    """

    def __init__(self, normalize: bool, gather: bool, reduction: str | None, name: str, dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.normalize = bool(normalize)
        self.gather = bool(gather)

    def compare(self, rows, keys, is_self) -> tf.Tensor:
        """`(n, m)`: how rows and keys compare; `is_self` says where they are the same embedding."""
        raise NotImplementedError(f"{type(self).__name__} must define `compare`.")

    def terms(self, compared, positive, negative) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum of each row's terms, and their number, both `(n,)`.

        Args:
            compared: `(n, m)`, what `compare` gives.
            positive: `(n, m)`, where row and key share a label and are not the same.
            negative: `(n, m)`, where they do not.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `terms`.")

    def targets(self, y_true, y_pred):
        _check_embeddings(y_pred)
        return label_ids.check("y_true", y_true, y_pred.shape[0])

    def call(self, y_true, y_pred):
        z = y_pred if y_pred.dtype == tf.float64 else tf.cast(y_pred, tf.float32)
        z = z[:, None] if len(z.shape) == 2 else z
        z = unit_vectors.normalize(z) if self.normalize else z
        views, dim = z.shape[1:]
        rows = keys = tf.reshape(z, [-1, dim])
        own = tf.range(tf.shape(rows)[0])
        ids = key_ids = label_ids.ids(y_true, gather=self.gather)[0]
        is_one_of_many = self.gather and cross_replica.replica_context() is not None
        if is_one_of_many:
            batch = tf.shape(z)[0]
            first = cross_replica.first_row(batch)
            keys = tf.reshape(cross_replica.gather(z), [-1, dim])
            own += first * views
            ids = tf.slice(key_ids, [first], [batch])
        ids, key_ids = (tf.repeat(x, views) for x in (ids, key_ids))

        sums, counts = self.sums_and_counts(rows, keys, own, ids, key_ids)
        amounts = tf.stack([tf.cast(tf.shape(rows)[0], z.dtype), tf.reduce_sum(counts)])
        if is_one_of_many:
            amounts = cross_replica.total(amounts)
        values = sums * tf.math.divide_no_nan(amounts[0], amounts[1])
        # Comparisons with NaN are false, so mining alone would pass over it.
        is_nan = tf.reduce_any(tf.math.is_nan(rows), axis=1)
        values = tf.where(is_nan, tf.constant(float("nan"), z.dtype), values)
        return tf.cast(tf.reduce_mean(tf.reshape(values, [-1, views]), axis=1), y_pred.dtype)

    def sums_and_counts(self, rows, keys, own, ids, key_ids):
        """The terms' sum and number, for each row; key `own` is the row itself."""

        def of_block(rows, keys, own, ids):
            is_self, positive, negative = pairs(own, ids, key_ids)
            terms = self.terms(self.compare(rows, keys, is_self), positive, negative)
            return tf.stack(terms, axis=1)

        return tf.unstack(
            row_functions.of_rows(of_block, rows, keys, own, ids, shape=(2,)), num=2, axis=1
        )

    def get_config(self):
        return {**super().get_config(), "normalize": self.normalize, "gather": self.gather}


def pairs(own, ids, key_ids):
    """Which keys are each row itself, another of its label, and one of another label."""
    is_self = own[:, None] == tf.range(tf.shape(key_ids)[0])
    same = ids[:, None] == key_ids
    return is_self, same & ~is_self, ~same


def _check_embeddings(y_pred):
    shape = tuple(y_pred.shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            "`y_pred` must hold one embedding a sample, (batch, dim), or those of its views, "
            f"(batch, views, dim). Received: shape={shape}"
        )
    if None in shape[1:]:
        raise ValueError(
            f"`y_pred` must have a static number of views and dimensions. Received: shape={shape}"
        )
