"""What evaluation compares: features and labels as NumPy arrays."""

from typing import Any

import keras
import numpy as np

from keras_sslmeta.mechanisms import arguments


def encode(encoder: Any, x: Any, batch_size: int = 256) -> np.ndarray:
    """The features of samples, `(n, dim)` in float32.

    Args:
        encoder: a `keras.Model`, whose `predict` is called; another callable, called on
            `batch_size` samples at a time; or None for the samples themselves.
        x: samples, `(n, …)`.
        batch_size: samples a call. Defaults to 256.

    Returns:
        Float32 features, all axes but the first flattened into one.

    Raises:
        ValueError: if the encoder is not callable, takes samples of another rank, or gives anything but
            one array with a row a sample.
    """
    x = np.asarray(x)
    if encoder is None:
        return as_features(x, "data")
    if not callable(encoder):
        raise ValueError(
            "`encoder` must be a keras.Model, another callable, or None for the samples "
            f"themselves. Received: {encoder!r}"
        )
    if isinstance(encoder, keras.Model):
        _check_rank(encoder, x)
        outputs = encoder.predict(x, batch_size=batch_size, verbose=0)
    else:
        batches = [encoder(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
        _check_one_array(batches[0])
        outputs = np.concatenate([keras.ops.convert_to_numpy(batch) for batch in batches])
    _check_one_array(outputs)
    features = as_features(outputs, "encoder")
    if len(features) != len(x):
        raise ValueError(
            f"`encoder` must give one row a sample. Received: {len(features)} rows for "
            f"{len(x)} samples"
        )
    return features


def as_features(features: Any, name: str) -> np.ndarray:
    """Features `(n, dim)` in float32, all axes but the first flattened into one."""
    features = np.asarray(keras.ops.convert_to_numpy(features))
    if features.ndim < 2 or features.size == 0:
        raise ValueError(
            f"`{name}` must give features (n, dim), at least one. Received: shape={features.shape}"
        )
    with np.errstate(over="ignore"):  # What float32 doesn't hold is infinite, and treated as such.
        return features.reshape(len(features), -1).astype("float32", copy=False)


def as_labels(labels: Any, name: str, samples: int) -> np.ndarray:
    """Labels `(n,)`, as many as there are samples."""
    labels = arguments.labels(name, labels)
    if len(labels) != samples:
        raise ValueError(
            f"`{name}` must be as long as its samples. "
            f"Received: {len(labels)} labels for {samples} samples"
        )
    return labels


def unit_length(features: np.ndarray) -> np.ndarray:
    """L2-normalised rows. A row of zeros stays zero; one that isn't finite becomes NaN."""
    with np.errstate(invalid="ignore"):
        largest = np.abs(features).max(axis=-1, keepdims=True)
        # Scaled by the largest entry first: squares of 1e30 overflow, of 1e-30 underflow.
        scaled = features / np.where(largest == 0, 1, largest)
        norm = np.linalg.norm(scaled, axis=-1, keepdims=True)
        return scaled / np.where(norm == 0, 1, norm)


def _check_rank(encoder: keras.Model, x: np.ndarray) -> None:
    expected = getattr(encoder, "input_shape", None) if encoder.built else None
    if not isinstance(expected, tuple) or any(isinstance(size, (list, tuple)) for size in expected):
        return  # Several inputs, or a shape that only a call will tell.
    if len(expected) != x.ndim:
        raise ValueError(
            f"Samples must be as the encoder takes them, {expected[1:]} each; a missing axis of channels is "
            f"added by `x[..., None]`. Received: {x.shape[1:]}"
        )


def _check_one_array(outputs: Any) -> None:
    if isinstance(outputs, (dict, list, tuple)):
        raise ValueError(
            f"`encoder` must give one array of features. Received: {type(outputs).__name__}"
        )
