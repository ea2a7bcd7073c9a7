"""`ExcludeSameLabel`: samples known to belong together are no negatives of each other."""

import keras
import tensorflow as tf

from keras_sslmeta.negatives.negative_rule import NegativeRule, left_out


@keras.saving.register_keras_serializable(package="keras_sslmeta.negatives")
class ExcludeSameLabel(NegativeRule):
    """Leaves out negatives with the anchor's own label: same class, same sequence, same document.

    Labels are compared exactly, as integers of any type or strings, across all replicas. Explicit hard
    negatives stay in; a memory needs labels of its own, under the key `"memory_" + key`.

    Args:
        key: the name of the labels, `(batch,)`, in a dict `y_true`; a plain tensor `y_true` serves
            whatever the name. Defaults to `"labels"`.

    Raises:
        ValueError: on the first call, if the labels are missing, floats, or not one a sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(6, 2, 8)).astype("float32")
    >>> loss = ksm.losses.NTXent(negatives=[ksm.negatives.ExcludeSameLabel()])
    >>> all_apart = loss(np.arange(6), views)
    >>> bool(np.isclose(all_apart, ksm.losses.NTXent()(None, views)))
    True
    >>> float(loss(np.array([0, 0, 0, 1, 1, 1]), views)) < float(all_apart)    # fewer negatives
    True

    Reference:
        Known false negatives: Chuang et al. 2020 (https://arxiv.org/abs/2007.00224), Sec. 1; Huynh et
        al., "Boosting Contrastive Self-Supervised Learning with False Negative Cancellation", WACV 2022.
        https://arxiv.org/abs/2011.11765
    """

    def __init__(self, key: str = "labels"):
        self.key = key

    def of_pairs(self, negatives):
        return negatives.labels(self.key)

    def log_weights(self, similarity, of_rows, of_keys):
        return left_out(tf.equal(of_rows[:, None], of_keys), similarity)

    def get_config(self):
        return {"key": self.key}
