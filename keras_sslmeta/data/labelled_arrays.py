"""Samples and their labels as NumPy arrays, from a pair of arrays or from a dataset of pairs."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments

_BATCH = 1024  # Samples of a dataset read at a time.


def labelled_arrays(data: Any) -> tuple[Any, np.ndarray]:
    """Settles `data`, a pair `(x, y)` or a dataset of such pairs, which is read wholly.

    Args:
        data: `(x, y)`, where `x` is an array `(n, …)` or a nest of such arrays and `y` holds the
            labels `(n,)` or `(n, 1)`, integers or strings; or an unbatched finite
            `tf.data.Dataset` of `(sample, label)`.

    Returns:
        `(x, y)` as NumPy arrays, `y` of shape `(n,)`.

    Raises:
        ValueError: if it is neither, the lengths differ, or the labels are no labels.
    """
    if isinstance(data, tf.data.Dataset):
        x, y = _read(data)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = data
    else:
        held = f" of length {len(data)}" if isinstance(data, (tuple, list)) else ""
        raise ValueError(
            "`data` must be a pair, (x, y), or a tf.data.Dataset of such pairs. "
            f"Received: {type(data).__name__}{held}"
        )
    # A list is an array here; tuples and dicts are nests.
    x = keras.tree.map_structure(np.asarray, np.asarray(x) if isinstance(x, list) else x)
    labels = arguments.labels("data[1]", y, kinds="biuUS")
    shapes = [array.shape for array in [*keras.tree.flatten(x), labels]]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "`data` must be samples and labels of one length, with a sample at least. "
            f"Received: shapes {', '.join(map(str, shapes))}"
        )
    return x, labels


def _read(dataset: tf.data.Dataset) -> tuple[Any, np.ndarray]:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            "`data` must be a dataset of pairs, (x, y): make them with `map`. "
            f"Received: a dataset of {spec}"
        )
    if not isinstance(spec[1], tf.TensorSpec) or spec[1].shape.rank not in (None, 0):
        raise ValueError(
            "`data` must be an unbatched dataset with one integer or string a sample for label: "
            "call `unbatch()` on it, and take the argmax of one-hot labels. "
            f"Received: labels {spec[1]}"
        )
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`data` must be finite, since it is read into memory: leave out `repeat()`, or call "
            "`take(n)`. Received: an endless dataset"
        )
    try:
        batches = list(dataset.batch(_BATCH).as_numpy_iterator())
    except tf.errors.InvalidArgumentError as error:
        reason = str(error.message).splitlines()[0]
        raise ValueError(
            f"`data` must be a dataset of samples of one shape that can be read. Received: {reason}"
        ) from error
    if not batches:
        raise ValueError("`data` must hold a sample at least. Received: an empty dataset")
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
