"""L2 normalisation that is finite, in value and gradient, whatever the size of the input: down to the
smallest normal numbers of its type, where 1/norm is none any more."""

import tensorflow as tf


@tf.custom_gradient
def _normalize(x):
    # Any finite magnitude is safe: the largest component is divided out before squaring.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=-1, keepdims=True))
    is_zero = tf.equal(largest, 0)
    largest = tf.where(is_zero, tf.ones_like(largest), largest)
    x = x / largest
    squared = tf.reduce_sum(x * x, axis=-1, keepdims=True)
    # In place of zero, whose root has an infinite gradient.
    inverse = tf.math.rsqrt(tf.where(is_zero, tf.ones_like(squared), squared))
    unit = x * inverse

    def gradient(upstream):
        # (g − u (u·g)) / ‖x‖: a third of the operations that TensorFlow would derive from the above.
        along = tf.reduce_sum(unit * upstream, axis=-1, keepdims=True)
        scale = tf.where(is_zero, tf.zeros_like(inverse), inverse / largest)
        return (upstream - unit * along) * scale

    return unit, gradient


def normalize(x: tf.Tensor) -> tf.Tensor:
    """`x` over its L2 norm along the last axis; a zero vector stays zero and gets a zero gradient."""
    return _normalize(x)
