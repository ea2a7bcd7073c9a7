"""L2 normalisation that is finite, in value and gradient, for every finite input."""

import tensorflow as tf


def normalize(x: tf.Tensor) -> tf.Tensor:
    """`x` over its L2 norm along the last axis; a zero vector stays zero and gets a zero gradient.

    Any finite magnitude is safe: the largest component is divided out before squaring.
    """
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=-1, keepdims=True))
    is_zero = tf.equal(largest, 0)
    x = x / tf.where(is_zero, tf.ones_like(largest), largest)
    squared = tf.reduce_sum(x * x, axis=-1, keepdims=True)
    # Twice: the gradient of the branch not taken would be NaN at zero.
    squared = tf.where(is_zero, tf.ones_like(squared), squared)
    return tf.where(is_zero, tf.zeros_like(x), x * tf.math.rsqrt(squared))
