"""L2 normalisation that is finite, in value and gradient, whatever the size of the input: down to the
smallest normal numbers of its type, where 1/norm is none any more."""

import tensorflow as tf


def normalize(x: tf.Tensor, length: float = 1.0) -> tf.Tensor:
    """`x` with the L2 norm `length` along the last axis; a zero vector stays zero, with a zero gradient."""
    return tf.custom_gradient(lambda x: _of_length(x, length))(x)


def _of_length(x, length):
    # Any finite magnitude is safe: the largest component is divided out before squaring.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=-1, keepdims=True))
    is_zero = tf.equal(largest, 0)
    largest = tf.where(is_zero, tf.ones_like(largest), largest)
    x = x / largest
    squared = tf.reduce_sum(x * x, axis=-1, keepdims=True)
    # In place of zero, whose root has an infinite gradient.
    inverse = tf.math.rsqrt(tf.where(is_zero, tf.ones_like(squared), squared))
    result = x * (inverse * length)

    def gradient(upstream):
        # (g − u (u·g)) · length / ‖x‖, with u = result / length: a third of the operations that TensorFlow
        # would derive from the above.
        along = tf.reduce_sum(result * upstream, axis=-1, keepdims=True) / length**2
        scale = tf.where(is_zero, tf.zeros_like(inverse), inverse * length / largest)
        return (upstream - result * along) * scale

    return result, gradient
