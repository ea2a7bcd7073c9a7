"""DebiasedContrastive: a contrastive loss corrected for false negatives (Chuang et al. 2020)."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.losses.contrastive_loss import ContrastiveLoss, positives
from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class DebiasedContrastive(ContrastiveLoss):
    r"""Contrastive loss whose negatives are corrected for those that belong to the anchor's own class.

    Of the N negatives of an anchor a fraction τ⁺ shares its class, though nobody knows which. Their
    expected part, estimated by the positive, is taken off the sum. With s the cosine similarity over T,

    ```
    l = −s⁺ + log(e^{s⁺} + G)     G = max( (Σ e^{s⁻} − τ⁺ N e^{s⁺}) / (1 − τ⁺),  N e^{−1/T} )
    ```

    for each view and each other view of its sample as positive; N = V·B − V negatives are all views of
    all other samples. The value of a sample is the mean over these pairs. Where G is at its floor, the
    least that N unit vectors can give, it has no gradient.

    Args:
        temperature: T, a positive number. Defaults to 0.5 (the paper).
        tau_plus: τ⁺, the probability that a negative has the anchor's class, from 0 to below 1: with C
            classes of equal size 1/C. Defaults to 0.1 (the paper, CIFAR-10). 0 gives NT-Xent of two views.
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
            False keeps the floor N e^{−1/T}, which then is no bound.
        gather: whether negatives come from all replicas. Defaults to True.
        negatives: rules of `keras_sslmeta.negatives` on which negatives count, and how much; N is then what
            the counted ones weigh. Defaults to none.
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
        ValueError: if `temperature` is not a positive number or `tau_plus` not from 0 to below 1,
            `negatives` holds anything but rules, or `y_pred` is not as above or known to hold a single
            sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(8, 2, 16)).astype("float32")
    >>> no_false_ones = ksm.losses.DebiasedContrastive(temperature=0.5, tau_plus=0.0)
    >>> bool(np.isclose(no_false_ones(None, views), ksm.losses.NTXent(0.5)(None, views)))
    True

    Reference:
        Chuang, Robinson, Lin, Torralba, Jegelka, "Debiased Contrastive Learning", NeurIPS 2020, Eq. 7
        and 8. https://arxiv.org/abs/2007.00224
    """

    def __init__(
        self,
        temperature: float = 0.5,
        tau_plus: float = 0.1,
        normalize: bool = True,
        gather: bool = True,
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "debiased_contrastive",
        dtype=None,
    ):
        super().__init__(temperature, normalize, gather, negatives, reduction, name, dtype)
        if not arguments.is_number(tau_plus) or not 0 <= tau_plus < 1:
            raise ValueError(
                f"`tau_plus` must be a number from 0 to below 1. Received: tau_plus={tau_plus!r}"
            )
        self.tau_plus = float(tau_plus)

    def pair_losses(self, z, negatives):
        s = positives(z)
        count = negatives.log_count()
        if len(count.shape):
            count = count[:, :, None]
        others = self.log_sum(negatives, count)
        return tf.math.softplus(self._debiased(others, s, count) - s)

    def log_sum(self, negatives, count) -> tf.Tensor:
        """Logarithm of the sum over the negatives, `(batch, views, 1)`; `count` is that of their number."""
        return negatives.log_sum_exp()[:, :, None]

    def _debiased(self, others, s, count):
        """The logarithm of G, `(batch, views, views − 1)`."""
        floor = tf.broadcast_to(count - 1 / self.temperature, tf.shape(s))
        if self.tau_plus == 0:
            return tf.maximum(others + tf.zeros_like(s), floor)
        # e^others − e^false, in logarithms.
        false = math.log(self.tau_plus) + count + s
        none_left = tf.stop_gradient(false >= others)
        # Twice: the gradient of the branch not taken would be NaN.
        part = tf.where(
            none_left, -tf.ones_like(s), false - tf.where(none_left, tf.zeros_like(s), others)
        )
        log = others + tf.math.log(-tf.math.expm1(part)) - math.log1p(-self.tau_plus)
        at_floor = none_left | (log <= floor)
        return tf.where(at_floor, tf.stop_gradient(floor), log)

    def get_config(self):
        return {**super().get_config(), "tau_plus": self.tau_plus}
