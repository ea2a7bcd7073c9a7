"""Samples in memory: an array with a row each, or a nest of such arrays, for models of several inputs."""

from typing import Any

import keras
import numpy as np


def as_arrays(x: Any) -> Any:
    """A nest of NumPy arrays: dicts and tuples are nests, a list is an array, as in `tf.data`."""
    return keras.tree.map_structure(np.asarray, np.asarray(x) if isinstance(x, list) else x)


def shapes(x: Any) -> list[tuple[int, ...]]:
    """Of each array."""
    return [array.shape for array in keras.tree.flatten(x)]


def count(x: Any) -> int:
    """The number of samples."""
    return len(keras.tree.flatten(x)[0])


def take(x: Any, rows: Any) -> Any:
    """Some of the samples: indices, or a slice."""
    return keras.tree.map_structure(lambda array: array[rows], x)


def described(x: Any) -> str:
    """The shapes, for errors."""
    return ", ".join(map(str, shapes(x)))
