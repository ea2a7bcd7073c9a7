"""Resampling of images as a pair of linear operators, one over the rows and one over the columns.

Resizing a box of an image and blurring it are separable: `out = rows · plane · columnsᵀ` for each
channel, with `rows` `(batch, out_height, in_height)` and `columns` `(batch, out_width, in_width)`
different for every image. So a batch is two batched matrix multiplications, which XLA compiles and
accelerators like, with no loop over images and no `tf.image.crop_and_resize` (which has neither an
XLA kernel nor antialiasing).
"""

import tensorflow as tf


def resample(planes: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Applies the operators of each image to each of its channels.

    Args:
        planes: `(batch, channels, in_height, in_width)`.
        rows: `(batch, out_height, in_height)`, or `(1, …)` where all images share it.
        columns: `(batch, out_width, in_width)`, or `(1, …)` where all images share it.

    Returns:
        `(batch, channels, out_height, out_width)`.
    """
    tall = tf.matmul(rows[:, tf.newaxis], planes)
    # One multiplication an image and not one a channel: all its rows share `columns`.
    batch, channels, out_height, in_width = tf.unstack(tf.shape(tall))
    flat = tf.reshape(tall, [batch, channels * out_height, in_width])
    flat = tf.matmul(flat, columns, transpose_b=True)
    return tf.reshape(flat, [batch, channels, out_height, tf.shape(columns)[1]])


def resize_operator(
    start: tf.Tensor,
    length: tf.Tensor,
    in_size: int | tf.Tensor,
    out_size: int,
    antialias: bool,
    mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Bilinear resizing of the pixels `start … start + length - 1` to `out_size` pixels.

    Equals cutting the box out and `tf.image.resize(box, …, "bilinear", antialias=antialias)`:
    half-pixel centres, a triangle kernel that is as wide as an output pixel where `antialias` and
    the box shrinks, nothing read from outside the box, weights that sum to 1.

    Args:
        start: `(batch,)`, first pixel of each box, whole numbers in a floating dtype.
        length: `(batch,)`, pixels of each box, whole numbers of at least 1.
        in_size: pixels of the image along this axis.
        out_size: pixels of the output along this axis.
        antialias: whether to widen the kernel when shrinking.
        mirrored: `(batch,)` of booleans: the boxes to read backwards, which makes a flip free.

    Returns:
        `(batch, out_size, in_size)` in the dtype of `start`.
    """
    dtype = start.dtype
    start, length = start[:, tf.newaxis], length[:, tf.newaxis]
    step = length / tf.cast(out_size, dtype)  # input pixels for each output pixel
    offset = (tf.range(out_size, dtype=dtype) + 0.5) * step
    if mirrored is not None:
        offset = tf.where(mirrored[:, tf.newaxis], length - offset, offset)
    centre = (start + offset)[:, :, tf.newaxis]  # of each output pixel, in input pixels
    pixel = tf.range(tf.cast(in_size, dtype), dtype=dtype) + 0.5
    half_width = tf.maximum(step, 1.0)[:, :, tf.newaxis] if antialias else tf.ones([], dtype)
    triangle = tf.nn.relu(half_width - tf.abs(pixel - centre))
    inside = tf.logical_and(pixel > start, pixel < start + length)
    weights = triangle * tf.cast(inside, dtype)[:, tf.newaxis, :]
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def blur_operator(sigma: tf.Tensor, radius: int | tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Gaussian blur of `2 * radius + 1` taps, reflected at the borders without repeating them.

    The borders are those of `numpy.pad(mode="reflect")` and of torchvision, and the taps
    `exp(-d² / 2σ²)` are normalised to sum 1.

    Args:
        sigma: `(batch,)`, standard deviations in pixels, positive.
        radius: taps on each side, at most `size - 1`.
        size: pixels along this axis.

    Returns:
        `(batch, size, size)` in the dtype of `sigma`.
    """
    dtype = sigma.dtype
    distance = tf.range(radius + 1, dtype=tf.int32)
    sigma = sigma[:, tf.newaxis]
    taps = tf.exp(-0.5 * tf.square(tf.cast(distance, dtype) / sigma))  # (batch, radius + 1)
    taps /= 2.0 * tf.reduce_sum(taps, axis=-1, keepdims=True) - 1.0  # the middle tap is 1, once
    # A tap that leaves the image comes back to pixel j from its mirror image -j or 2(size-1) - j.
    i, j = tf.range(size)[:, tf.newaxis], tf.range(size)[tf.newaxis, :]
    last = size - 1
    placement = _one_hot(tf.abs(j - i), distance, dtype)
    placement += _one_hot(tf.where(j > 0, i + j, -1), distance, dtype)
    placement += _one_hot(tf.where(j < last, 2 * last - j - i, -1), distance, dtype)
    weights = tf.matmul(taps, tf.reshape(placement, [radius + 1, size * size]))
    return tf.reshape(weights, [-1, size, size])


def _one_hot(index: tf.Tensor, values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """`(values, rows, columns)`, 1 where `index` is that value."""
    return tf.cast(index[tf.newaxis] == values[:, tf.newaxis, tf.newaxis], dtype)
