"""A labelled set, as the probes take it: a pair of arrays, or a dataset that is read into memory."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_sslmeta.data.labelled_arrays import labelled_arrays
from keras_sslmeta.evaluation.features import as_labels


def labelled_set(name: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Settles `data` as `(x, y)`.

    Args:
        name: of the argument, for errors.
        data: `(x, y)`, samples `(n, …)` and labels `(n,)`; or a finite `tf.data.Dataset` of
            `(x, y)`, batched or not.

    Returns:
        `(x, y)` as NumPy arrays.

    Raises:
        ValueError: if it is neither, the lengths differ, or the labels are no labels.
    """
    if isinstance(data, tf.data.Dataset):
        data = _read(name, data)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            f"`{name}` must be a pair, (x, y), or a tf.data.Dataset of such pairs. "
            f"Received: {type(data).__name__}"
        )
    x = np.asarray(data[0])
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"`{name}` must hold samples (n, …). Received: shape={x.shape}")
    return x, as_labels(data[1], f"{name}[1]", len(x))


def _read(name: str, dataset: tf.data.Dataset) -> tuple[Any, np.ndarray]:
    spec = dataset.element_spec
    is_batched = (
        isinstance(spec, tuple)
        and len(spec) == 2
        and isinstance(spec[1], tf.TensorSpec)
        and spec[1].shape.rank == 1
        and spec[1].shape[0] in (None, *_batch_sizes(spec[0]))
    )
    try:
        return labelled_arrays(dataset.unbatch() if is_batched else dataset)
    except ValueError as error:
        raise ValueError(str(error).replace("`data", f"`{name}", 1)) from error


def _batch_sizes(samples) -> tuple:
    is_tensor = isinstance(samples, tf.TensorSpec) and (samples.shape.rank or 0) > 1
    return (samples.shape[0],) if is_tensor else ()
