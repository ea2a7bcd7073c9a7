"""`WeighPairs`: how much each negative counts for each anchor."""

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.negatives")
class WeighPairs(NegativeRule):
    """Lets negative j of anchor i count w_ij times, by a function of what is known of both.

    The denominator's terms become ``w_ij e^{s_ij}``. A weight of 0 leaves a pair out; one below 0 makes the
    loss NaN. `function` gets the anchors' information with an axis of one behind its first, and the
    negatives' with one before it, so that it broadcasts to `(anchors, negatives)`; it is called on one tile
    of pairs after the other.

    Args:
        function: `(of_anchors (n, 1, …), of_negatives (1, m, …)) → (n, m)` weights from 0. Register it by
            `keras.saving.register_keras_serializable` for the loss to be saved.
        key: the name of the information in a dict `y_true`, one number or vector a sample, `(batch, …)`; a
            plain tensor `y_true` serves whatever the name. That of a memory: `"memory_" + key`. Explicit
            hard negatives have their sample's. Defaults to `"labels"`.

    Raises:
        ValueError: if `function` is not callable; on the first call, if the information is missing.

    Example:

    >>> import numpy as np, tensorflow as tf, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(6, 2, 8)).astype("float32")
    >>> ages = np.array([20.0, 21.0, 40.0, 41.0, 60.0, 61.0], "float32")
    >>> def further_apart_more(a, b):
    ...     return 1 - tf.exp(-((a - b) ** 2) / 50)
    >>> rule = ksm.negatives.WeighPairs(further_apart_more, key="age")
    >>> loss = ksm.losses.NTXent(negatives=[rule])
    >>> float(loss({"age": ages}, views)) < float(ksm.losses.NTXent()(None, views))
    True

    Reference:
        Dufumier et al., "Contrastive Learning with Continuous Proxy Meta-Data", MICCAI 2021 (weights by a
        kernel of the samples' metadata). https://arxiv.org/abs/2106.08808
    """

    def __init__(self, function: Callable, key: str = "labels"):
        if isinstance(function, dict):
            function = keras.saving.deserialize_keras_object(function)
        if not callable(function):
            raise ValueError(f"`function` must be callable. Received: function={function!r}")
        self.function, self.key = function, key

    def of_pairs(self, negatives):
        return negatives.of_samples(self.key)

    def log_weights(self, similarity, of_rows, of_keys):
        weights = tf.cast(self.function(of_rows[:, None], of_keys[None]), similarity.dtype)
        is_none = weights == 0  # A negative weight gives NaN, and so does the loss.
        log = tf.math.log(tf.where(is_none, tf.ones_like(weights), weights))
        return tf.where(is_none, tf.constant(float("-inf"), log.dtype), log)

    def get_config(self):
        return {"function": keras.saving.serialize_keras_object(self.function), "key": self.key}
