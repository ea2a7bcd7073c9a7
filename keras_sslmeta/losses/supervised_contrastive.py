"""SupervisedContrastive, the loss of SupCon (Khosla et al. 2020)."""

from collections.abc import Sequence

import keras

from keras_sslmeta.losses.contrastive_loss import ContrastiveLoss, positives
from keras_sslmeta.mechanisms import labelled_softmax
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class SupervisedContrastive(ContrastiveLoss):
    r"""NT-Xent whose positives are all embeddings with the anchor's label.

    For each embedding i of the global batch, with A(i) all others, P(i) those of A(i) with the label of i,
    and s the cosine similarity,

    ```
    l_i = − 1/|P(i)| · Σ_{p ∈ P(i)} s_ip/T  +  log Σ_{a ∈ A(i)} exp(s_ia/T)
    ```

    This is the paper's L_out, whose mean stands outside the logarithm, without the factor T/T_base of the
    authors' code (T/0.07). The value of a sample is the mean over its views. An embedding without
    positives has the value 0 and counts in the mean, but serves as a negative.

    Labels are compared exactly, whatever their type, across all replicas. With a label of its own for
    each sample this is `NTXent`.

    Args:
        temperature: T, a positive number. Defaults to 0.1 (the paper).
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
        gather: whether positives and negatives come from all replicas. Defaults to True.
        negatives: rules of `keras_sslmeta.negatives` on which embeddings **of other labels** count in the
            denominator, and how much. Defaults to none.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: labels `(batch,)`, integers of any type or strings; or a dict with these under
            `"labels"`, with what rules need, and with earlier embeddings under `"memory"`, `(m, dim)`, and
            their labels under `"memory_labels"`: a cross-batch memory (`layers.MemoryQueue`), whose entries
            are positives and negatives without gradient.
        y_pred: floating-point embeddings `(batch, views, dim)`, or `(batch, dim)`, one view a sample.
        sample_weight: optional, `(batch,)`. It weighs the samples' own losses; every sample still
            serves as a positive or negative.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `temperature` is not a positive number or `negatives` holds anything but rules; if
            labels are missing, floats, or not one a sample; if `y_pred` is of another rank, holds
            integers, or is known to hold a single sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> embeddings = np.random.default_rng(0).normal(size=(6, 16)).astype("float32")
    >>> float(ksm.losses.SupervisedContrastive()(np.array([0, 0, 1, 1, 2, 2]), embeddings)) > 0
    True
    >>> names = np.array(["cat", "cat", "dog", "dog", "fox", "fox"], object)
    >>> same = np.ones((6, 16), "float32")        # all equal: log(N − 1)
    >>> bool(np.isclose(ksm.losses.SupervisedContrastive()(names, same), np.log(5)))
    True

    Reference:
        Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan, "Supervised Contrastive
        Learning", NeurIPS 2020, Eq. 2. https://arxiv.org/abs/2004.11362
        With a memory: Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020.
        https://arxiv.org/abs/1912.06798
    """

    least_views = 1

    def __init__(
        self,
        temperature: float = 0.1,
        normalize: bool = True,
        gather: bool = True,
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "supervised_contrastive",
        dtype=None,
    ):
        super().__init__(temperature, normalize, gather, negatives, reduction, name, dtype)

    def targets(self, y_true, y_pred):
        return labelled_softmax.checked(y_true, y_pred.shape[0])

    def pair_losses(self, z, negatives):
        return labelled_softmax.losses(negatives, positives(z), is_key=True)

    def sets_of_keys(self, keys_of):
        return labelled_softmax.sets_of_keys(keys_of, self.negatives)
