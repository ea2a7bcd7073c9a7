"""InfoNCE (van den Oord et al. 2018), as MoCo, SimCSE and sentence encoders use it."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.losses.paired_loss import PairedLoss
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class InfoNCE(PairedLoss):
    r"""Cross-entropy of picking each query's own key out of many.

    With queries q and keys k, s the cosine similarity and k_i⁺ the key of query i,

    ```
    l_i = − s(q_i, k_i⁺)/T + log [ exp(s(q_i, k_i⁺)/T) + Σ_{k⁻} exp(s(q_i, k⁻)/T) ]
    ```

    The negatives k⁻ are the other keys of the global batch, explicit hard negatives of all samples, and
    a memory, whatever of these there is. With `in_batch_negatives=False` they are the memory and the
    sample's own hard negatives: MoCo v1 and v2 use the memory alone. (MoCo v3 uses the batch alone, both ways
    round, times 2T.)

    Args:
        temperature: T, a positive number. Defaults to 0.07 (MoCo; v2 uses 0.2, SimCSE 0.05).
        in_batch_negatives: whether other samples' keys, and their hard negatives, are negatives. Defaults
            to True.
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True.
        gather: whether keys come from all replicas. Defaults to True.
        negatives: rules of `keras_sslmeta.negatives` on which negatives count, and how much. Defaults to
            none.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: the keys of the queries in `y_pred`, **without gradient** (MoCo): `(batch, dim)`, or
            `(batch, 1 + h, dim)` with h hard negatives of each sample behind its key, or a dict with these
            under `"keys"`. With a stack as `y_pred`: None, or what rules need, or a dict. A dict may hold
            `"memory"`, embeddings `(m, dim)` of earlier batches (`layers.MemoryQueue`), without gradient, and
            what rules need.
        y_pred: queries `(batch, dim)`; or a stack `(batch, 2, dim)` of queries and keys, or `(batch, 2 + h,
            dim)` with hard negatives, in which **all** get a gradient (SimCSE, sentence-transformers).
        sample_weight: optional, `(batch,)`.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `temperature` is not a positive number or `negatives` holds anything but rules; if
            embeddings are not as above; if there is nothing that could be a negative.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> rng = np.random.default_rng(0)
    >>> queries, keys = rng.normal(size=(2, 6, 16)).astype("float32")
    >>> in_batch = ksm.losses.InfoNCE()(keys, queries)
    >>> stacked = ksm.losses.InfoNCE()(None, np.stack([queries, keys], axis=1))
    >>> bool(np.isclose(in_batch, stacked))
    True
    >>> memory = rng.normal(size=(100, 16)).astype("float32")
    >>> moco = ksm.losses.InfoNCE(in_batch_negatives=False)
    >>> float(moco({"keys": keys, "memory": memory}, queries)) > 0
    True

    Reference:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, Eq. 4.
        https://arxiv.org/abs/1807.03748
        He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
        CVPR 2020, Eq. 1. https://arxiv.org/abs/1911.05722
    """

    keys_are_targets = True

    def __init__(
        self,
        temperature: float = 0.07,
        in_batch_negatives: bool = True,
        normalize: bool = True,
        gather: bool = True,
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "info_nce",
        dtype=None,
    ):
        super().__init__(temperature, normalize, gather, negatives, reduction, name, dtype)
        self.in_batch_negatives = bool(in_batch_negatives)

    def pair_losses(self, pairs):
        if not self.in_batch_negatives and pairs.hard is None and pairs.memory is None:
            raise ValueError(
                "`in_batch_negatives=False` leaves no negatives: pass a dict with the keys as "
                '"keys" and earlier ones as "memory", or hard negatives behind each key. '
                f"Received: in_batch_negatives={self.in_batch_negatives!r}"
            )
        negatives = self.negative_keys(
            pairs.anchors, pairs, pairs.keys, in_batch=self.in_batch_negatives
        )
        return tf.math.softplus(negatives.log_sum_exp()[:, 0] - pairs.positives)

    def get_config(self):
        return {**super().get_config(), "in_batch_negatives": self.in_batch_negatives}
