"""NT-Xent, the loss of SimCLR (Chen et al. 2020)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import (
    arguments,
    cross_replica,
    streaming_similarity,
    unit_vectors,
)


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class NTXent(BatchLoss):
    r"""Normalised temperature-scaled cross-entropy between the views of each sample.

    Each embedding has to pick out the other views of its own sample among all other embeddings of the
    global batch. With B samples, V views and s the cosine similarity, view v of sample i has the loss

    ```
    l_iv = − 1/(V−1) · Σ_{u≠v} s(z_iv, z_iu)/T  +  log Σ_{(k,w)≠(i,v)} exp(s(z_iv, z_kw)/T)
    ```

    whose sum runs over the other V·B − 1 embeddings; the value of sample i is the mean over its views.
    For V > 2 the mean over the positives stands outside the logarithm, as in SupCon (Khosla et al. 2020)
    with a label of its own for each sample. The mean over the batch is what SimCLR's paper and lightly
    report; SimCLR's own code and TensorFlow Similarity report twice that.

    The similarity matrix is never stored: memory grows with the batch and not with its square.

    Args:
        temperature: T, a positive number. Defaults to 0.1 (SimCLR's for ImageNet; 0.5 is common on CIFAR-10).
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
            A zero embedding then stays zero and gets no gradient.
        gather: whether negatives come from all replicas of a `tf.distribute` strategy, which makes the
            loss independent of their number. False compares within each replica only. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: ignored, and may be None.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.
        sample_weight: optional, `(batch,)`. It weighs the samples' own losses; every sample still
            serves as a negative. On a plain model pass some `y` with it: Keras drops weights without.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`. NaN in the embeddings gives NaN, so that
        `keras.callbacks.TerminateOnNaN` sees it. A batch of unknown size that turns out to hold one
        sample, of two views, gives 0: there is nothing to tell it from.

    Raises:
        ValueError: if `temperature` is not a positive number; if `y_pred` is of another rank, has one
            view, holds integers, or is known to hold a single sample, which has no negatives.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(8, 2, 16)).astype("float32")
    >>> float(ksm.losses.NTXent(temperature=0.5)(None, views)) > 0
    True
    >>> same = np.ones((8, 2, 16), "float32")    # all equal: log(2B − 1)
    >>> bool(np.isclose(ksm.losses.NTXent()(None, same), np.log(15)))
    True

    Reference:
        Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
        Representations", ICML 2020, Eq. 1. https://arxiv.org/abs/2002.05709
    """

    def __init__(
        self,
        temperature: float = 0.1,
        normalize: bool = True,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "nt_xent",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = arguments.positive_number("temperature", temperature)
        self.normalize = bool(normalize)
        self.gather = bool(gather)

    def call(self, y_true, y_pred):
        _check_views(y_pred, self.gather)
        z = y_pred if y_pred.dtype == tf.float64 else tf.cast(y_pred, tf.float32)
        if self.normalize:
            z = unit_vectors.normalize(z)
        # On both sides, so that rows and keys are the same vectors: z · z' is then s/T.
        z = z * self.temperature**-0.5

        negatives = self._negatives(z)  # (batch, views)
        own = tf.matmul(z, z, transpose_b=True)  # (batch, views, views), s_vu of one sample
        losses = _losses_of_pairs(negatives, own)
        return tf.cast(tf.reduce_mean(losses, axis=[1, 2]), y_pred.dtype)

    def _negatives(self, z):
        """Log-sum-exps of each embedding's similarities to the other samples of the global batch."""
        views, dim = z.shape[1:]
        bound = 1 / self.temperature if self.normalize else None
        rows = tf.reshape(z, [-1, dim])
        keys, own_key = None, None
        if self.gather and cross_replica.replica_context() is not None:
            own_key = cross_replica.first_row(tf.shape(z)[0]) * views
            keys = tf.reshape(cross_replica.gather(z), [-1, dim])
        value = streaming_similarity.log_sum_exp(rows, keys, own_key, bound, group=views)
        return tf.reshape(value, tf.shape(z)[:2])

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "normalize": self.normalize,
            "gather": self.gather,
        }


def _losses_of_pairs(negatives, own):
    """``−s_vu + log(e^{s_vu} + rest)`` for each view v and positive u, `(batch, views, views − 1)`.

    Written as ``softplus(log rest − s_vu)``: near convergence, at a low temperature, the difference of
    two nearly equal logarithms would leave nothing but rounding of the loss and its gradient.
    """
    views = own.shape[-1]
    pairs = [(v, u) for v in range(views) for u in range(views) if u != v]
    rests = []
    for v, u in pairs:
        others = [own[:, v, w] for w in range(views) if w not in (v, u)]
        rest = tf.stack([negatives[:, v], *others], axis=1) if others else negatives[:, v]
        rests.append(tf.reduce_logsumexp(rest, axis=1) if others else rest)
    positives = tf.stack([own[:, v, u] for v, u in pairs], axis=1)
    losses = tf.math.softplus(tf.stack(rests, axis=1) - positives)
    return tf.reshape(losses, [-1, views, views - 1])


def _check_views(y_pred, gather):
    shape = tuple(y_pred.shape)
    if len(shape) != 3:
        raise ValueError(
            "`y_pred` must hold the embeddings of all views of a sample, of shape "
            "(batch, views, dim): stack views on axis 1, and wrap an encoder of single samples in "
            f"`keras_sslmeta.layers.PerView`. Received: shape={shape}"
        )
    if shape[1] is None or shape[2] is None:
        raise ValueError(
            f"`y_pred` must have a static number of views and dimensions. Received: shape={shape}"
        )
    if shape[1] < 2:
        raise ValueError(
            "`y_pred` must hold at least two views of each sample, on axis 1. "
            f"Received: shape={shape}"
        )
    if shape[0] == 1 and (not gather or cross_replica.sees_whole_batch()):
        raise ValueError(
            "A batch of one sample has no negatives: `y_pred` must hold at least two samples. "
            f"Received: shape={shape}"
        )
