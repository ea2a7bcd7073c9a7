"""`ExcludeNearDuplicates`: negatives too similar to the anchor to be negatives."""

import keras

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.negatives.negative_rule import NegativeRule, left_out


@keras.saving.register_keras_serializable(package="keras_sslmeta.negatives")
class ExcludeNearDuplicates(NegativeRule):
    """Leaves out negatives whose similarity to the anchor is above a threshold.

    The similarity is the one that the loss compares: the cosine, or the dot product with
    `normalize=False`. For the judgement of another model see `ExcludeByGuide`.

    Args:
        similarity: the threshold, a number. Defaults to 0.95.

    Raises:
        ValueError: if `similarity` is not a finite number.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(6, 2, 8)).astype("float32")
    >>> views[5] = views[4]                                             # the same picture twice
    >>> loss = ksm.losses.NTXent(negatives=[ksm.negatives.ExcludeNearDuplicates(0.99)])
    >>> float(loss(None, views)) < float(ksm.losses.NTXent()(None, views))
    True

    Reference:
        Huynh et al., "Boosting Contrastive Self-Supervised Learning with False Negative Cancellation",
        WACV 2022, Sec. 3 (elimination by a threshold). https://arxiv.org/abs/2011.11765
    """

    def __init__(self, similarity: float = 0.95):
        if not arguments.is_number(similarity):
            raise ValueError(
                f"`similarity` must be a finite number. Received: similarity={similarity!r}"
            )
        self.similarity = float(similarity)

    def of_pairs(self, negatives):
        return [], []

    def log_weights(self, similarity, of_rows, of_keys):
        return left_out(similarity > self.similarity, similarity)

    def get_config(self):
        return {"similarity": self.similarity}
