"""DecoupledContrastive, the loss of DCL and its weighted form DCLW (Yeh et al. 2022)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.losses.contrastive_loss import ContrastiveLoss, positives
from keras_sslmeta.mechanisms import arguments, cross_replica, row_blocks
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class DecoupledContrastive(ContrastiveLoss):
    r"""NT-Xent without the positive in its denominator, which lets small batches learn.

    With s the cosine similarity, view v of sample i of a batch of B has the loss

    ```
    l_iv = mean_{u≠v} [ − w_i^vu · s(z_iv, z_iu)/T ]  +  log Σ_{k≠i} Σ_w exp(s(z_iv, z_kw)/T)
    w_i^vu = 1,     or weighted     2 − B · exp(s(z_iv, z_iu)/σ) / Σ_k exp(s(z_kv, z_ku)/σ)
    ```

    whose sum runs over all views of all other samples; the value of sample i is the mean over its
    views. Without the positive a pair that fits well no longer shrinks the gradients of its negatives
    (the "negative-positive coupling" of InfoNCE). The weights, without gradient, let pairs count more
    that do not fit yet; their softmax is over the global batch. Values may be negative.

    Args:
        temperature: T, a positive number. Defaults to 0.1 (the paper).
        weighted: whether the positives are weighed (DCLW). Defaults to False.
        sigma: σ of the weights, a positive number. Defaults to 0.5 (the paper).
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
        gather: whether negatives, and the softmax of the weights, come from all replicas. Defaults to
            True.
        negatives: rules of `keras_sslmeta.negatives` on which negatives count, and how much. Defaults to
            none.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: as of `NTXent`: None, or what rules need, or a dict that may hold a `"memory"`.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.
        sample_weight: optional, `(batch,)`.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`. A sample without any negative, such as that
        of a batch that turns out to hold one, has its attraction alone.

    Raises:
        ValueError: if `temperature` or `sigma` is not a positive number, `negatives` holds anything but
            rules, or `y_pred` is not as above or known to hold a single sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> same = np.ones((8, 2, 16), "float32")    # all equal: log(2B − 2)
    >>> bool(np.isclose(ksm.losses.DecoupledContrastive()(None, same), np.log(14), atol=1e-5))
    True
    >>> views = np.random.default_rng(0).normal(size=(8, 2, 16)).astype("float32")
    >>> plain, weighted = (ksm.losses.DecoupledContrastive(weighted=w) for w in (False, True))
    >>> bool(plain(None, views) != weighted(None, views))
    True

    Reference:
        Yeh, Hong, Hsu, Liu, Chen, LeCun, "Decoupled Contrastive Learning", ECCV 2022, Eq. 6 and 7.
        https://arxiv.org/abs/2110.06848
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weighted: bool = False,
        sigma: float = 0.5,
        normalize: bool = True,
        gather: bool = True,
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "decoupled_contrastive",
        dtype=None,
    ):
        super().__init__(temperature, normalize, gather, negatives, reduction, name, dtype)
        self.weighted = bool(weighted)
        self.sigma = arguments.positive_number("sigma", sigma)

    def pair_losses(self, z, negatives):
        s = positives(z)
        others = row_blocks.finite(negatives.log_sum_exp())[:, :, None]
        return others - s * self._weights(s) if self.weighted else others - s

    def _weights(self, s):
        """2 − B · softmax over the global batch, `(batch, views, views − 1)`."""
        logits = tf.stop_gradient(s) * (self.temperature / self.sigma)
        several = self.gather and cross_replica.replica_context() is not None
        largest, total = tf.reduce_max(logits, axis=0), tf.identity
        if several:
            largest, total = cross_replica.largest(largest), cross_replica.total
        terms = tf.exp(logits - largest)
        batch = total(tf.cast(tf.shape(s)[0], s.dtype))
        return 2 - batch * terms / total(tf.reduce_sum(terms, axis=0))

    def get_config(self):
        return {**super().get_config(), "weighted": self.weighted, "sigma": self.sigma}
