"""`ContrastiveLoss`: parent of softmax losses on a stack of views."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_sslmeta.losses.similarity_loss import SimilarityLoss
from keras_sslmeta.mechanisms.negative_keys import NegativeKeys


class ContrastiveLoss(SimilarityLoss):
    """Parent of losses that set a sample's views against those of other samples.

    A subclass writes `pair_losses(z, negatives)`, where products of `z`, `(batch, views, dim)`, are
    similarities over the temperature, and `negatives.log_sum_exp()`, `(batch, views)`, sums up those to
    all other samples. It returns `(batch, views, …)`, of which the value of a sample is the mean.

    The similarity matrix is never stored: memory grows with the batch and not with its square.

    Args:
        temperature: a positive number.
        normalize: whether embeddings are divided by their L2 norm first.
        gather: whether negatives come from all replicas.
        negatives: rules of `keras_sslmeta.negatives` on which negatives count, and how much.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: None, or what the rules need: one tensor for all of them, or a dict with a tensor for each
            key. A dict may hold `"memory"` too, embeddings `(m, dim)` of earlier batches
            (`keras_sslmeta.layers.MemoryQueue`) that serve as further negatives, without gradient; what
            rules need of these has the prefix `"memory_"`. Otherwise ignored.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.
        sample_weight: optional, `(batch,)`. It weighs the samples' own losses; every sample still
            serves as a negative.
    """

    least_views = 2

    def pair_losses(self, z: tf.Tensor, negatives: Any) -> tf.Tensor:
        """Losses `(batch, views, …)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `pair_losses`.")

    def sets_of_keys(self, keys_of: Callable) -> Any:
        """What `pair_losses` gets as `negatives`, from a function of rules to `NegativeKeys`."""
        return keys_of(self.negatives)

    def targets(self, y_true, y_pred):
        """What rules need and the memory holds."""
        return y_true if self.negatives or isinstance(y_true, dict) else None

    def call(self, y_true, y_pred):
        self.refuse_one_target_for_several(y_true)
        memory = self.scaled_memory(y_true, y_pred)
        self._check_views(y_pred, memory)
        z = self.scaled(y_pred)
        z = z[:, None] if len(z.shape) == 2 else z

        def keys_of(rules):
            return NegativeKeys(
                z,
                memory=memory,
                unit=self.temperature,
                bound=self.bound,
                gather=self.gather,
                rules=rules,
                information=y_true,
            )

        losses = self.pair_losses(z, self.sets_of_keys(keys_of))
        return tf.cast(tf.reduce_mean(losses, axis=list(range(1, len(losses.shape)))), y_pred.dtype)

    def _check_views(self, y_pred, memory):
        shape = tuple(y_pred.shape)
        ranks = (3,) if self.least_views == 2 else (2, 3)
        if len(shape) not in ranks:
            flat = "" if self.least_views == 2 else "(batch, dim), or "
            raise ValueError(
                "`y_pred` must hold the embeddings of all views of a sample, of shape "
                f"{flat}(batch, views, dim): stack views on axis 1, and wrap an encoder of single "
                f"samples in `keras_sslmeta.layers.PerView`. Received: shape={shape}"
            )
        if None in shape[1:]:
            raise ValueError(
                f"`y_pred` must have a static number of views and dimensions. Received: shape={shape}"
            )
        if len(shape) == 3 and shape[1] < self.least_views:
            raise ValueError(
                "`y_pred` must hold at least two views of each sample, on axis 1. "
                f"Received: shape={shape}"
            )
        if memory is None:
            self.refuse_single_sample(y_pred)


def positives(z: tf.Tensor) -> tf.Tensor:
    """Similarities to the other views of the same sample, `(batch, views, views − 1)`."""
    views = range(z.shape[1])
    if len(views) == 1:
        return z[:, :, :0]
    of_view = tf.unstack(z, axis=1)
    pairs = {
        (v, u): tf.reduce_sum(of_view[v] * of_view[u], axis=-1)
        for u in views
        for v in views
        if v < u
    }
    rows = [[pairs[min(v, u), max(v, u)] for u in views if u != v] for v in views]
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=1)
