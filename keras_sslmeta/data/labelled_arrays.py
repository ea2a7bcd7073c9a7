"""Samples and their labels as NumPy arrays, from a pair of arrays or from a dataset of pairs."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, sample_nest

_BATCH = 1024  # Samples of a dataset read at a time.


def labelled_arrays(data: Any, name: str = "data", kinds: str = "biufUS") -> tuple[Any, np.ndarray]:
    """Settles `data`, a pair `(x, y)` or a dataset of such pairs, which is read wholly.

    Args:
        data: `(x, y)`, where `x` is an array `(n, …)` or a nest of such arrays and `y` holds the
            labels `(n,)` or `(n, 1)`, integers or strings; or a finite `tf.data.Dataset` of such pairs,
            batched or not.
        name: of the argument, for errors.
        kinds: of NumPy's dtypes, which labels may have.

    Returns:
        `(x, y)` as NumPy arrays, `y` of shape `(n,)`.

    Raises:
        ValueError: if it is neither, the lengths differ, or the labels are no labels.
    """
    if isinstance(data, tf.data.Dataset):
        x, y = _read(data, name)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = data
    else:
        held = f" of length {len(data)}" if isinstance(data, (tuple, list)) else ""
        raise ValueError(
            f"`{name}` must be a pair, (x, y), or a tf.data.Dataset of such pairs. "
            f"Received: {type(data).__name__}{held}"
        )
    samples = sample_nest.as_arrays(x)
    labels = arguments.labels(f"{name}[1]", y, kinds)
    if not sample_nest.length(samples, labels):
        hint = "A list is one array; several inputs are a tuple. " if isinstance(x, list) else ""
        raise ValueError(
            f"`{name}` must be samples and labels of one length, with a sample at least. {hint}"
            f"Received: samples {sample_nest.described(samples)}, labels {labels.shape}"
        )
    return samples, labels


def _read(dataset: tf.data.Dataset, name: str) -> tuple[Any, Any]:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"`{name}` must be a dataset of pairs, (x, y): make them with `map`. "
            f"Received: a dataset of {spec}"
        )
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"`{name}` must be finite, since it is read into memory: leave out `repeat()`, or call "
            "`take(n)`. Received: an endless dataset"
        )
    if _is_batched(*spec):
        dataset = dataset.unbatch()
    elif not isinstance(spec[1], tf.TensorSpec) or spec[1].shape.rank not in (None, 0):
        raise ValueError(
            f"`{name}` must be a dataset of samples with one integer or string each for label, batched or "
            f"not; of one-hot labels, take the argmax. Received: {spec}"
        )
    try:
        batches = list(dataset.batch(_BATCH).as_numpy_iterator())
    except tf.errors.InvalidArgumentError as error:
        reason = str(error.message).splitlines()[0]
        raise ValueError(
            f"`{name}` must be a dataset of samples of one shape that can be read. Received: {reason}"
        ) from error
    if not batches:
        raise ValueError(f"`{name}` must hold a sample at least. Received: an empty dataset")
    x, y = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
    if spec[1].shape.rank and _are_one_hot(y, spec[1].shape[0]):
        raise ValueError(
            f"`{name}` must have one integer or string a sample for label: of one-hot labels, take the "
            f"argmax; if these are batches, call `unbatch()`. Received: labels {spec[1]}"
        )
    return x, y


def _is_batched(x: Any, y: Any) -> bool:
    """Whether samples and labels share a first axis."""
    specs = keras.tree.flatten((x, y))
    if not isinstance(y, tf.TensorSpec) or y.shape.rank not in (1, 2):
        return False
    if y.shape.rank == 2 and y.shape[1] != 1:
        return False
    sizes = {s.shape[0] for s in specs if s.shape.rank}
    return all(s.shape.rank != 0 for s in specs) and len(sizes - {None}) < 2


def _are_one_hot(labels: np.ndarray, size: int | None) -> bool:
    """Whether what passed for batches of labels of that size were classes of single samples."""
    if size in (None, 1, 2) or len(labels) == size or labels.dtype.kind not in "biuf":
        return False
    rows = labels.reshape(-1, size)
    return bool(np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all())
