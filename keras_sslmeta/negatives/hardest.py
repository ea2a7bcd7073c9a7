"""`Hardest`: the k most similar negatives of each anchor, and no others."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, row_blocks
from keras_sslmeta.negatives.negative_rule import NegativeRule, left_out


@keras.saving.register_keras_serializable(package="keras_sslmeta.negatives")
class Hardest(NegativeRule):
    """Keeps each anchor's k most similar negatives, of those that the rules before it left.

    An anchor with k negatives or fewer keeps all of them. Negatives as similar as the k-th, up to
    rounding, are kept too. Costs one more walk over the similarities.

    Args:
        k: how many, a positive integer.

    Raises:
        ValueError: if `k` is not a positive integer.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(6, 2, 8)).astype("float32")
    >>> everyone = ksm.losses.NTXent(negatives=[ksm.negatives.Hardest(10)])    # there are ten
    >>> bool(np.isclose(everyone(None, views), ksm.losses.NTXent()(None, views)))
    True
    >>> rules = [ksm.negatives.ExcludeSameLabel(), ksm.negatives.Hardest(2)]
    >>> float(ksm.losses.NTXent(negatives=rules)(np.arange(6), views)) > 0
    True

    Reference:
        Kalantidis et al., "Hard Negative Mixing for Contrastive Learning", NeurIPS 2020, Sec. 3 (the hardest
        negatives by similarity). https://arxiv.org/abs/2010.01028
    """

    def __init__(self, k: int):
        self.k = arguments.count("k", k)

    def of_pairs(self, negatives):
        return negatives.kth_largest(self.k), tf.zeros([tf.shape(negatives.keys)[0]])

    def log_weights(self, similarity, of_rows, of_keys):
        rounding = 1e-6 * (1 + tf.abs(row_blocks.finite(of_rows)))
        return left_out(similarity < (of_rows - rounding)[:, None], similarity)

    def get_config(self):
        return {"k": self.k}
