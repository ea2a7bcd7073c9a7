"""Softmax losses whose positives are told by labels: the mean over positives outside the logarithm.

The similarities to positives are linear in the keys, so their mean needs the sum of each class's keys
alone, and no walk over pairs.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_sslmeta.mechanisms import label_ids, row_blocks
from keras_sslmeta.mechanisms.negative_keys import NegativeKeys
from keras_sslmeta.negatives.exclude_same_label import ExcludeSameLabel
from keras_sslmeta.negatives.negative_rule import left_out


def checked(information, batch):
    """The same, whose labels are tensors of integers or strings: alone, or in a dict as `"labels"`."""
    if not isinstance(information, dict):
        return label_ids.check("y_true", information, batch)
    labels = label_ids.check("labels", information.get("labels"), batch)
    return {**information, "labels": labels}


def sets_of_keys(keys_of: Callable, rules: list) -> "tuple[NegativeKeys, NegativeKeys | None]":
    """All keys of other samples, and None; or, since rules are for negatives alone, negatives and
    positives apart. `keys_of` makes `NegativeKeys` with given rules."""
    if not rules:
        return keys_of([]), None
    return keys_of([ExcludeSameLabel(), *rules]), keys_of([_OnlySameLabel()])


class _OnlySameLabel(ExcludeSameLabel):
    """The keys that `ExcludeSameLabel` leaves out."""

    def log_weights(self, similarity, of_rows, of_keys):
        return left_out(tf.not_equal(of_rows[:, None], of_keys), similarity)


def losses(
    keys: "tuple[NegativeKeys, NegativeKeys | None]", own: tf.Tensor, is_key: bool
) -> tf.Tensor:
    """``− mean over positives of s + log Σ over all keys of e^s`` for each row; 0 without positives.

    Args:
        keys: the `sets_of_keys`.
        own: similarities to the keys of the row's own sample, `(batch, slots, own)`, less the row itself.
        is_key: whether each row is one of the keys, which is no positive of itself.

    Returns:
        `(batch, slots)`.
    """
    negatives, same = keys
    shape = tf.shape(own)[:2]
    denominators = [negatives.log_sum_exp()] + ([] if same is None else [same.log_sum_exp()])
    parts = tf.concat([*(x[:, :, None] for x in denominators), own], axis=2)
    total = row_blocks.log_sum_exp(tf.reshape(parts, [-1, parts.shape[2]]))

    vectors = negatives.rows if negatives.keys is None else negatives.keys
    ids, key_ids = negatives.labels("labels")
    classes = tf.shape(key_ids)[0]  # At most.
    if negatives.memory is None:
        classes //= negatives.group  # The embeddings of a sample share a label.
    attraction = _sums_over_classes(negatives.rows, vectors, ids, key_ids, classes, is_key)
    sizes = tf.math.unsorted_segment_sum(tf.ones_like(vectors[:, 0]), key_ids, classes)
    count = tf.gather(sizes, ids) - (1 if is_key else 0)
    has_positives = count > 0
    value = total - attraction / tf.where(has_positives, count, tf.ones_like(count))
    return tf.reshape(tf.where(has_positives, value, tf.zeros_like(value)), shape)


def _sums_over_classes(rows, keys, ids, key_ids, classes, is_key):
    """The sum of each row's similarities to the keys of its class, `(n,)`, less itself if it is one.

    With a gradient of its own, which keeps the classes' sums alone: TensorFlow's would keep several
    tensors of the size of the embeddings.
    """

    def sums_and_gradient(rows, keys):
        sums = tf.math.unsorted_segment_sum(keys, key_ids, classes)

        def others(times):
            return tf.gather(sums, ids) - times * rows if is_key else tf.gather(sums, ids)

        def gradient(upstream):
            weights = upstream[:, None]
            of_keys = tf.math.unsorted_segment_sum(rows * weights, ids, classes)
            return weights * others(2), tf.gather(of_keys, key_ids)

        return tf.reduce_sum(rows * others(1), axis=1), gradient

    if keys is not rows:
        return tf.custom_gradient(sums_and_gradient)(tf.identity(rows), tf.identity(keys))

    @tf.custom_gradient
    def among_rows(rows):
        value, gradient = sums_and_gradient(rows, rows)
        return value, lambda upstream: tf.add_n(gradient(upstream))

    return among_rows(tf.identity(rows))
