"""The multi-similarity loss with its mining of pairs (Wang et al. 2019)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.labelled_pairs_loss import LabelledPairsLoss
from keras_sslmeta.losses.triplet_loss import extremes
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class MultiSimilarity(LabelledPairsLoss):
    r"""Pulls the less similar positives and pushes the more similar negatives of each sample.

    With s the cosine similarity, sample a keeps of the other samples of its label those that are less
    similar than its most similar negative, and of the samples of other labels those that are more similar
    than its least similar positive, both within ε:

    ```
    P_a = {p : s_ap < max_n s_an + ε}          N_a = {n : s_an > min_p s_ap − ε}
    ```

    and has the value

    ```
    l_a = 1/α · log(1 + Σ_{p ∈ P_a} e^{−α (s_ap − λ)}) + 1/β · log(1 + Σ_{n ∈ N_a} e^{β (s_an − λ)})
    ```

    A sample without positives or without negatives keeps nothing and has the value 0. The loss is the
    mean over **all** samples of the global batch, these included, as in the paper, the authors' code and
    pytorch-metric-learning with its `MultiSimilarityMiner` (whose loss alone does not mine).

    The authors' code leaves out positives of a similarity above 1 − 1e-5, which is how it tells a sample
    from itself; here duplicates of a sample stay its positives. No gradient flows through the choice of
    pairs. The similarity matrix is never stored as a whole.

    Args:
        alpha: α, a positive number, sharpness of the positives. Defaults to 2.0 (the paper).
        beta: β, a positive number, sharpness of the negatives. Defaults to 50.0 (the paper).
        base: λ, a number, the similarity at which a pair counts as much as the 1 in its sum. Defaults to
            0.5, that of the authors' code and of pytorch-metric-learning; the paper's text says 1.
        epsilon: ε, a number from 0. Defaults to 0.1 (the paper). From 2 on nothing is left out of a sample
            that has both positives and negatives.
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
            A zero embedding then stays zero and gets no gradient.
        gather: whether embeddings are compared with those of all replicas of a `tf.distribute` strategy,
            which makes the loss independent of their number. False compares within each replica only.
            Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: one integer or string a sample, `(batch,)`, compared exactly.
        y_pred: floating-point embeddings `(batch, dim)`, or `(batch, views, dim)`, whose views are
            samples of one label.
        sample_weight: optional, `(batch,)`. It weighs the samples as anchors.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `alpha` or `beta` is not a positive number, `base` not a number, or `epsilon` not a
            number from 0; if labels are floats or not one a sample; if `y_pred` is of another rank or
            holds integers.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> z = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], "float32")
    >>> loss = ksm.losses.MultiSimilarity()
    >>> float(loss(np.array([0, 0, 1, 1]), z))    # apart by more than ε: no pair is kept
    0.0
    >>> float(loss(np.array([0, 1, 0, 1]), z)) > 1
    True

    Reference:
        Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting for Deep Metric
        Learning", CVPR 2019. https://arxiv.org/abs/1904.06627
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float = 0.1,
        normalize: bool = True,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "multi_similarity",
        dtype=None,
    ):
        super().__init__(normalize, gather, reduction, name, dtype)
        self.alpha = arguments.positive_number("alpha", alpha)
        self.beta = arguments.positive_number("beta", beta)
        if not arguments.is_number(base):
            raise ValueError(f"`base` must be a number. Received: base={base!r}")
        self.base = float(base)
        self.epsilon = arguments.number_from_zero("epsilon", epsilon)

    def compare(self, rows, keys, is_self):
        return tf.matmul(rows, keys, transpose_b=True)

    def terms(self, compared, positive, negative):
        fixed = tf.stop_gradient(compared)
        least, most = (
            extremes(fixed, positive, largest=False),
            extremes(fixed, negative, largest=True),
        )
        keeps = (
            tf.reduce_any(positive, axis=1, keepdims=True)
            & tf.reduce_any(negative, axis=1, keepdims=True)
            & (least < most + self.epsilon)
        )
        positive &= keeps & (fixed < most + self.epsilon)
        negative &= keeps & (fixed > least - self.epsilon)
        shifted = compared - self.base
        losses = (
            _log_one_plus_sum(-self.alpha * shifted, positive) / self.alpha
            + _log_one_plus_sum(self.beta * shifted, negative) / self.beta
        )
        return losses, tf.ones_like(losses)

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
            "base": self.base,
            "epsilon": self.epsilon,
        }


def _log_one_plus_sum(exponents, chosen):
    """``log(1 + Σ e^x)`` over the chosen of each row."""
    infinity = tf.constant(float("inf"), exponents.dtype)
    exponents = tf.where(chosen, exponents, -infinity)
    return tf.reduce_logsumexp(tf.pad(exponents, [[0, 0], [0, 1]]), axis=1)
