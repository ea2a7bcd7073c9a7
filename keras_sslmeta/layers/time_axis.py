"""Reading samples at moments between their steps."""

import tensorflow as tf


def read_at(series: tf.Tensor, moments: tf.Tensor) -> tf.Tensor:
    """Values at moments, linear between the steps.

    Args:
        series: `(batch, time, …)`.
        moments: in steps from the first, each from 0 to `time − 1`, `(batch, moments)`.

    Returns:
        `(batch, moments, …)`.
    """
    last = tf.shape(series)[1] - 1
    before = tf.clip_by_value(tf.floor(moments), 0.0, tf.cast(last, moments.dtype))
    weight = moments - before
    weight = tf.reshape(
        weight, tf.concat([tf.shape(weight), [1] * (series.shape.rank - 2)], axis=0)
    )
    index = tf.cast(before, tf.int32)
    after = tf.minimum(index + 1, last)
    values, next_values = (
        tf.gather(series, where, axis=1, batch_dims=1) for where in (index, after)
    )
    return values + weight * (next_values - values)
