"""CLIP: the symmetric contrastive loss of two modalities (Radford et al. 2021)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.losses.paired_loss import PairedLoss
from keras_sslmeta.mechanisms import cross_replica, streaming_similarity
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class CLIP(PairedLoss):
    r"""Half the cross-entropy of each way round between two modalities.

    With a and c the embeddings of the two modalities, such as images and texts, and s the cosine similarity,
    sample i of the global batch has the value

    ```
    l_i = ½ [ − s(a_i, c_i)/T + log Σ_j exp(s(a_i, c_j)/T) ]
        + ½ [ − s(a_i, c_i)/T + log Σ_j exp(s(a_j, c_i)/T) ]
    ```

    Both modalities get a gradient. The temperature that CLIP learns belongs to a layer, since a loss has
    no variables: `keras_sslmeta.layers.LogitScale` scales the embeddings, and the loss leaves them alone,
    `CLIP(temperature=1.0, normalize=False)`.

    Args:
        temperature: T, a positive number. Defaults to 0.07 (where CLIP starts).
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
        gather: whether embeddings are compared with those of all replicas. Defaults to True.
        negatives: rules of `keras_sslmeta.negatives` on which pairs of different samples count, and how
            much, for either way round. Defaults to none.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: the one modality, `(batch, dim)`; with a stack as `y_pred` None, or what rules need. A dict
            holds the modality under `"keys"`, and what rules need.
        y_pred: the other, `(batch, dim)`; or a stack of both, `(batch, 2, dim)`.
        sample_weight: optional, `(batch,)`.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `temperature` is not a positive number or `negatives` holds anything but rules; if
            embeddings are not as above, or known to be of a single sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> images, texts = np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32")
    >>> float(ksm.losses.CLIP()(images, texts)) > 0
    True
    >>> scale = ksm.layers.LogitScale(initial_temperature=0.07)
    >>> learnt = ksm.losses.CLIP(temperature=1.0, normalize=False)(*scale([images, texts]))
    >>> bool(np.isclose(learnt, ksm.losses.CLIP()(images, texts), rtol=1e-4))
    True

    Reference:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
        2021, Fig. 3. https://arxiv.org/abs/2103.00020
    """

    takes_more_negatives = False

    def __init__(
        self,
        temperature: float = 0.07,
        normalize: bool = True,
        gather: bool = True,
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "clip",
        dtype=None,
    ):
        super().__init__(temperature, normalize, gather, negatives, reduction, name, dtype)

    def pair_losses(self, pairs):
        a, c, positives = pairs.anchors, pairs.keys, pairs.positives
        one_walk = not self.negatives and not (
            self.gather and cross_replica.replica_context() is not None
        )
        if one_walk:
            ways = streaming_similarity.two_sided_log_sum_exp(a, c, own_key=0, bound=self.bound)
        else:
            # Each replica's samples as anchors, against the other modality of all replicas.
            there = self.negative_keys(a, pairs, c)
            back = self.negative_keys(c, pairs, a, row_slot=1)
            ways = (there.log_sum_exp()[:, 0], back.log_sum_exp()[:, 0])
        return (tf.math.softplus(ways[0] - positives) + tf.math.softplus(ways[1] - positives)) / 2
