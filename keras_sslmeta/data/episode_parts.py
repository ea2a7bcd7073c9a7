"""What all sources of episodes share: samples in memory, read by index, and put together as an episode."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import sample_nest

TURNS = 4  # By 0, 90, 180 and 270 degrees.


def sample_arrays(x: Any) -> tuple[Any, int]:
    """Unlabelled samples as a nest of NumPy arrays, and their number; a list is an array here."""
    x = sample_nest.as_arrays(x)
    is_numeric = all(array.dtype.kind in "biuf" for array in keras.tree.flatten(x))
    if not is_numeric or not sample_nest.length(x):
        raise ValueError(
            "`x` must be an array of numbers, (n, …), with a sample at least, or a nest of such "
            f"arrays of one length. Received: shapes {sample_nest.described(x)}, "
            f"dtypes {', '.join(str(array.dtype) for array in keras.tree.flatten(x))}"
        )
    return x, sample_nest.length(x)


def reader(x: Any, turned: bool = False):
    """A function from indices `(ways, m)` to samples `(ways, m, …)`, each class turned or not."""
    arrays = _tensors(x)
    count = keras.tree.flatten(arrays)[0].shape[0]

    def read(index):
        samples = keras.tree.map_structure(lambda array: tf.gather(array, index % count), arrays)
        if not turned:
            return samples
        turns = tf.cast(index[:, 0] // count, tf.int32)  # One of each class.
        return keras.tree.map_structure(lambda images: _rotated(images, turns), samples)

    return read


def _rotated(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Images `(ways, m, side, side, …)`, those of each class turned so many times by 90 degrees."""
    side = images.shape[2]
    quarter = np.rot90(np.arange(side * side, dtype="int32").reshape(side, side)).ravel()
    pixels = tf.reshape(images, [*images.shape[:2], side * side, *images.shape[4:]])
    # Classes that turn alike are turned together. By pixels: older processors make oneDNN print
    # that it can't transpose 8 bits.
    groups = tf.dynamic_partition(pixels, turns, TURNS)
    groups[1] = tf.gather(groups[1], quarter, axis=2)
    groups[2] = tf.reverse(groups[2], [2])
    groups[3] = tf.gather(groups[3], quarter[::-1].copy(), axis=2)
    places = tf.dynamic_partition(tf.range(tf.size(turns)), turns, TURNS)
    return tf.reshape(tf.dynamic_stitch(places, groups), images.shape)


def as_episode(samples: Any, ways: int, shots: int, queries: int) -> tuple[dict, tf.Tensor]:
    """The episode of samples `(ways, shots + queries, …)`, its classes numbered in their order."""
    classes = np.arange(ways)
    inputs = {
        "support_x": _in_a_row(samples, ways, slice(0, shots)),
        "support_y": tf.constant(np.repeat(classes, shots), tf.int64),
        "query_x": _in_a_row(samples, ways, slice(shots, None)),
    }
    return inputs, tf.constant(np.repeat(classes, queries), tf.int64)


def _in_a_row(samples, ways: int, part: slice):
    """Of samples `(ways, m, …)` a part of each class, `(ways * part, …)`, with 8 bits widened."""

    def in_a_row(array):
        array = array[:, part]
        array = tf.reshape(array, [ways * array.shape[1], *array.shape[2:]])
        return tf.cast(array, tf.float32) if array.dtype == tf.uint8 else array

    return keras.tree.map_structure(in_a_row, samples)


def _tensors(x):
    with tf.device("CPU"):
        try:
            return keras.tree.map_structure(tf.convert_to_tensor, x)
        except (TypeError, ValueError) as error:
            dtypes = ", ".join(str(array.dtype) for array in keras.tree.flatten(x))
            raise ValueError(f"`data` must hold numbers or strings. Received: {dtypes}") from error
