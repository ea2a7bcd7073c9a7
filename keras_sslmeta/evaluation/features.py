"""What evaluation compares: features and labels as NumPy arrays."""

from typing import Any

import keras
import numpy as np

from keras_sslmeta.mechanisms import arguments, encoder_shapes, sample_nest


def encode(encoder: Any, x: Any, batch_size: int = 256) -> np.ndarray:
    """The features of samples, `(n, dim)` in float32.

    Args:
        encoder: a `keras.Model`, whose `predict` is called; another callable, called on
            `batch_size` samples at a time; or None for the samples themselves.
        x: samples, `(n, …)`; for encoders of several inputs a dictionary or tuple of such arrays.
        batch_size: samples a call. Defaults to 256.

    Returns:
        Float32 features, all axes but the first flattened into one.

    Raises:
        ValueError: if the encoder is not callable, takes samples of another shape, or gives anything but
            one array with a row a sample.
    """
    x = sample_nest.as_arrays(x)
    if encoder is None:
        return as_features(x, "data")
    if not callable(encoder):
        raise ValueError(
            "`encoder` must be a keras.Model, another callable, or None for the samples "
            f"themselves. Received: {encoder!r}"
        )
    count = sample_nest.count(x)
    if isinstance(encoder, keras.Model):
        check_samples(encoder, x, "Samples")
        x = keras.tree.map_structure(_as_predict_takes_it, x)
        outputs = encoder.predict(x, batch_size=batch_size, verbose=0)
    else:
        slices = [slice(i, i + batch_size) for i in range(0, count, batch_size)]
        batches = [encoder(sample_nest.take(x, part)) for part in slices]
        _check_one_array(batches[0])
        outputs = np.concatenate([keras.ops.convert_to_numpy(batch) for batch in batches])
    _check_one_array(outputs)
    features = as_features(outputs, "encoder")
    if len(features) != count:
        raise ValueError(
            f"`encoder` must give one row a sample. Received: {len(features)} rows for {count} samples"
        )
    return features


def input_shapes(encoder: Any, x: Any) -> list[tuple[tuple, tuple]]:
    """The shape that the encoder takes, `(None, …)`, beside that of the samples, for each input.

    Empty where only a call will tell: of other than functional models, and of nests that differ.
    """
    expected = getattr(encoder, "input_shape", None) if isinstance(encoder, keras.Model) else None
    if not isinstance(expected, (list, tuple)):
        return []
    wanted = encoder_shapes.flat_shapes(expected)
    names = [tensor.name for tensor in encoder.inputs]
    if isinstance(x, dict) and set(names) <= set(x):
        x = tuple(x[name] for name in names)
    held = sample_nest.shapes(x)
    return list(zip(wanted, held, strict=True)) if len(wanted) == len(held) else []


def check_samples(encoder: Any, x: Any, name: str, views: bool = False) -> None:
    """Refuses samples of other shapes than the encoder takes; or views of them, with one axis more."""
    for wanted, held in input_shapes(encoder, x):
        sample = held[2:] if views else held[1:]
        fits = len(wanted) == len(sample) + 1 and all(
            size in (None, given) for size, given in zip(wanted[1:], sample, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{name} must be as the encoder takes them, {wanted[1:]} each (a missing axis of channels "
                "is added by `x[..., None]`; for a model of another kind, of views for instance, pass "
                f"`encoder=` the part that encodes plain samples). Received: {sample}"
            )


def as_features(features: Any, name: str) -> np.ndarray:
    """Features `(n, dim)` in float32, all axes but the first flattened into one."""
    if isinstance(features, (dict, tuple)):
        raise ValueError(
            f"`{name}` must be one array of features, not a nest. Received: {type(features).__name__}; "
            "for samples of several inputs, an encoder makes one of them"
        )
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


def _as_predict_takes_it(x: np.ndarray) -> np.ndarray:
    """Keras takes strings as objects only."""
    return x.astype(object) if x.dtype.kind in "US" else x


def _check_one_array(outputs: Any) -> None:
    if isinstance(outputs, (dict, list, tuple)):
        raise ValueError(
            f"`encoder` must give one array of features. Received: {type(outputs).__name__}"
        )
