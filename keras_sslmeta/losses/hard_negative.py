"""HardNegative: a contrastive loss in which similar negatives count more (Robinson et al. 2021)."""

from collections.abc import Sequence

import keras

from keras_sslmeta.losses.debiased_contrastive import DebiasedContrastive
from keras_sslmeta.mechanisms import arguments, row_blocks
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class HardNegative(DebiasedContrastive):
    r"""Debiased contrastive loss whose negatives count more the more similar they are to the anchor.

    As `DebiasedContrastive`, with the sum over the N negatives replaced by the weighted one

    ```
    Σ w_j e^{s_j}        w_j = e^{β s_j} / mean_k e^{β s_k}
    ```

    where s is the cosine similarity **over the temperature** and the weights have mean 1. β = 0 is
    `DebiasedContrastive`; a large β leaves the hardest negatives only. The weights have a gradient, as in
    the authors' code.

    Args:
        temperature: T, a positive number. Defaults to 0.5 (the paper).
        tau_plus: τ⁺, the probability that a negative has the anchor's class, from 0 to below 1. Defaults
            to 0.1 (the paper, CIFAR-10).
        beta: β, how much harder negatives count, a number from 0. Defaults to 1 (the paper, CIFAR-10).
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
        gather: whether negatives come from all replicas. Defaults to True.
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
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if an argument is not as above, or `y_pred` is not or known to hold a single sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(8, 2, 16)).astype("float32")
    >>> plain, even = ksm.losses.DebiasedContrastive(), ksm.losses.HardNegative(beta=0.0)
    >>> bool(np.isclose(plain(None, views), even(None, views)))
    True
    >>> bool(ksm.losses.HardNegative(beta=1.0)(None, views) > even(None, views))
    True

    Reference:
        Robinson, Chuang, Sra, Jegelka, "Contrastive Learning with Hard Negative Samples", ICLR 2021,
        Eq. 4 and App. D. https://arxiv.org/abs/2010.04592
    """

    def __init__(
        self,
        temperature: float = 0.5,
        tau_plus: float = 0.1,
        beta: float = 1.0,
        normalize: bool = True,
        gather: bool = True,
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "hard_negative",
        dtype=None,
    ):
        super().__init__(
            temperature, tau_plus, normalize, gather, negatives, reduction, name, dtype
        )
        self.beta = arguments.number_from_zero("beta", beta)

    def log_sum(self, negatives, count):
        weighted = negatives.log_sum_exp(1 + self.beta)[:, :, None]
        if self.beta == 0:
            return weighted
        return weighted + count - row_blocks.finite(negatives.log_sum_exp(self.beta))[:, :, None]

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}
