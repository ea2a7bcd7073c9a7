"""Distances of all rows to all keys, by the name of a metric; finite in value and gradient."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_sslmeta.mechanisms import unit_vectors

METRICS = ("L2", "squared-L2", "angular")


def check(name: str, metric: Any) -> "str | Callable[[tf.Tensor], tf.Tensor]":
    """One of `METRICS`, or a function from embeddings `(n, dim)` to their distances `(n, n)`."""
    if not callable(metric) and (not isinstance(metric, str) or metric not in METRICS):
        names = ", ".join(repr(x) for x in METRICS)
        raise ValueError(
            f"`{name}` must be one of {names}, or a function of the embeddings. "
            f"Received: {name}={metric!r}"
        )
    return metric


def distances(metric: str, rows: tf.Tensor, keys: tf.Tensor, is_self: tf.Tensor) -> tf.Tensor:
    """Distances `(n, m)` of `(n, dim)` rows to `(m, dim)` keys.

    Args:
        metric: `"L2"`, `"squared-L2"`, or `"angular"`, one less the cosine, where a zero vector has the
            cosine 0 with any.
        rows: `(n, dim)` float32 or float64.
        keys: `(m, dim)` of the same dtype.
        is_self: `(n, m)`, where the key is the row itself: its Euclidean distance is 0 and not rounding.

    Returns:
        `(n, m)`. The gradient of a Euclidean distance is 0 where it is 0.
    """
    if metric == "angular":
        rows, keys = unit_vectors.normalize(rows), unit_vectors.normalize(keys)
        return tf.maximum(1 - tf.matmul(rows, keys, transpose_b=True), 0)
    # Distances do not change with the origin, and from the mean less of them is cancelled.
    center = tf.stop_gradient(tf.reduce_mean(keys, axis=0))
    rows, keys = rows - center, keys - center
    squared = (
        tf.reduce_sum(rows * rows, axis=1, keepdims=True)
        + tf.reduce_sum(keys * keys, axis=1)
        - 2 * tf.matmul(rows, keys, transpose_b=True)
    )
    is_zero = is_self | (squared <= 0)
    if metric == "squared-L2":
        return tf.where(is_zero, tf.zeros_like(squared), squared)
    # Twice: the gradient of the branch not taken would be infinite at zero.
    root = tf.sqrt(tf.where(is_zero, tf.ones_like(squared), squared))
    return tf.where(is_zero, tf.zeros_like(root), root)
