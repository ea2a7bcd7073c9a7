"""NT-Xent, the loss of SimCLR (Chen et al. 2020)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.losses.contrastive_loss import ContrastiveLoss, positives
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class NTXent(ContrastiveLoss):
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
        negatives: rules of `keras_sslmeta.negatives`, in their order, on which negatives count, and how
            much: known false negatives, the hardest, weights. Defaults to none.
        gather: whether negatives come from all replicas of a `tf.distribute` strategy, which makes the
            loss independent of their number. False compares within each replica only. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: what the rules of `negatives` need (a tensor, or a dict of them), and under the key
            `"memory"` of a dict further negatives `(m, dim)` of earlier batches, without gradient
            (`keras_sslmeta.layers.MemoryQueue`). Otherwise ignored, and may be None.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.
        sample_weight: optional, `(batch,)`. It weighs the samples' own losses; every sample still
            serves as a negative. On a plain model pass some `y` with it: Keras drops weights without.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`. NaN in the embeddings gives NaN, so that
        `keras.callbacks.TerminateOnNaN` sees it. A batch of unknown size that turns out to hold one
        sample, of two views, gives 0: there is nothing to tell it from.

    Raises:
        ValueError: if `temperature` is not a positive number or `negatives` holds anything but rules; if
            `y_pred` is of another rank, has one view, holds integers, or is known to hold a single
            sample, which has no negatives; if something that a rule needs is missing.

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
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "nt_xent",
        dtype=None,
    ):
        super().__init__(temperature, normalize, gather, negatives, reduction, name, dtype)

    def pair_losses(self, z, negatives):
        """``−s_vu + log(e^{s_vu} + rest)`` for each view v and positive u, `(batch, views, views − 1)`.

        Written as ``softplus(log rest − s_vu)``: near convergence, at a low temperature, the difference
        of two nearly equal logarithms would leave nothing but rounding of the loss and its gradient.
        """
        others = negatives.log_sum_exp()[:, :, None]
        s = positives(z)
        # The rest are the other samples and, of more than two views, the other positives.
        rest = [
            tf.concat([others, s[:, :, :u], s[:, :, u + 1 :]], axis=2) for u in range(s.shape[2])
        ]
        rest = [x[:, :, 0] if x.shape[2] == 1 else tf.reduce_logsumexp(x, axis=2) for x in rest]
        return tf.math.softplus(tf.stack(rest, axis=2) - s)
