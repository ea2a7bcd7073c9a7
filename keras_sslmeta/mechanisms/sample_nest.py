"""Samples in memory: an array with a row each, or a nest of such arrays, for models of several inputs."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def as_arrays(x: Any) -> Any:
    """A nest of NumPy arrays: dicts and tuples are nests, a list is an array, as in `tf.data`."""
    return keras.tree.traverse(
        lambda part: None if isinstance(part, (dict, tuple)) else _array(part), x
    )


def _array(x: Any) -> np.ndarray:
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(
            "Samples in a list must be of one shape; for several inputs pass a dictionary or tuple of "
            f"arrays. Received: a list of {len(x)}"
        ) from error


def length(*nests: Any) -> int:
    """The number of samples of nests that go together; 0 where they differ, or have none."""
    lengths = {shape[:1] for shape in shapes(nests)}
    return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else 0


def shapes(x: Any) -> list[tuple[int, ...]]:
    """Of each array."""
    return [tuple(array.shape) for array in keras.tree.flatten(x)]


def count(x: Any) -> int:
    """The number of samples."""
    return len(keras.tree.flatten(x)[0])


def take(x: Any, rows: Any) -> Any:
    """Some of the samples: indices, or a slice."""
    return keras.tree.map_structure(lambda array: array[rows], x)


def strings_as_tensors(x: Any) -> Any:
    """Keras takes strings as tensors only, neither as NumPy's nor as objects."""
    return keras.tree.map_structure(lambda a: tf.constant(a) if a.dtype.kind in "USO" else a, x)


def described(x: Any) -> str:
    """The shapes, for errors."""
    listed = [str(shape) for shape in shapes(x)]
    return ", ".join(listed if len(listed) < 9 else [*listed[:4], f"… ({len(listed)} arrays)"])
