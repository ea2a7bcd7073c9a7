"""What evaluation compares: features and labels as NumPy arrays."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, encoder_shapes, sample_nest
from keras_sslmeta.mechanisms.prompt_epochs import untuned


def encode(encoder: Any, x: Any, batch_size: int = 256) -> np.ndarray:
    """The features of samples, `(n, dim)` in float32.

    Args:
        encoder: a `keras.Model`, whose `predict` is called; another callable, called on
            `batch_size` samples at a time; or None for the samples themselves.
        x: samples `(n, …)`, an array; for encoders of several inputs a nest of arrays.
        batch_size: samples a call. Defaults to 256.

    Returns:
        Float32 features, all axes but the first flattened into one.

    Raises:
        ValueError: if the encoder is not callable, takes samples of another shape, or gives anything but
            one array with a row a sample.
    """
    if encoder is None:
        return as_features(x, "data")
    if not callable(encoder):
        raise ValueError(
            "`encoder` must be a keras.Model, another callable, or None for the samples "
            f"themselves. Received: {encoder!r}"
        )
    count = sample_nest.count(x)
    if isinstance(encoder, keras.Model):
        check_samples(encoder, x, "Samples", sizes=_predicts_as_keras(encoder))
        outputs = encoder.predict(_batches(x, count, batch_size), verbose=0)
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


def _batches(x: Any, count: int, batch_size: int) -> tf.data.Dataset:
    """As Keras makes them of arrays, but untuned, and strings as tensors."""
    with tf.device("CPU"):
        tensors = keras.tree.map_structure(_as_tensor, keras.tree.lists_to_tuples(x))
    if isinstance(tensors, tuple):
        tensors = (tensors,)  # Or they were taken for samples and labels.

    # Not captured by the function: what that holds stays in memory until Python next looks for cycles.
    indices = tf.data.Dataset.range(count).batch(batch_size)
    pairs = tf.data.Dataset.zip(indices, tf.data.Dataset.from_tensors(tensors).repeat())
    return pairs.map(_gathered).prefetch(2).with_options(untuned())


def _gathered(rows, tensors):
    return keras.tree.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)


def _as_tensor(x: np.ndarray) -> tf.Tensor:
    is_double = x.dtype == np.float64
    return tf.convert_to_tensor(x.astype(keras.config.floatx()) if is_double else x)


def check_samples(encoder: Any, x: Any, name: str, views: bool = False, sizes: bool = True) -> None:
    """Refuses samples of other shapes than a functional encoder takes; or views, with one axis more.

    Columns `(n,)` and `(n, 1)` are taken for each other, as Keras does. `sizes` are left to the encoder where
    its `predict` may change them.
    """
    inputs = encoder_shapes.paired(encoder, x) if encoder_shapes.symbolic_inputs(encoder) else []
    for key, shape, held in inputs:
        sample, wanted = held.shape[2:] if views else held.shape[1:], shape[1:]
        if _fits(sample, wanted, sizes) or {sample, wanted} == {(), (1,)}:
            continue
        of_input = f" for its input {key!r}" if len(inputs) > 1 else ""
        raise ValueError(
            f"{name} must be as the encoder takes them, {wanted} each{of_input} (a missing axis of channels "
            "is added by `x[..., None]`; for a model of another kind, of views for instance, pass "
            f"`encoder=` the part that encodes plain samples). Received: {sample}"
        )


def _predicts_as_keras(encoder: keras.Model) -> bool:
    kind = type(encoder)
    return kind.predict is keras.Model.predict and kind.predict_step is keras.Model.predict_step


def _fits(sample: tuple, wanted: tuple, sizes: bool) -> bool:
    return len(sample) == len(wanted) and all(
        not sizes or size in (None, given) for size, given in zip(wanted, sample, strict=True)
    )


def as_features(features: Any, name: str) -> np.ndarray:
    """Features `(n, dim)` in float32, all axes but the first flattened into one."""
    if isinstance(features, dict) or (isinstance(features, tuple) and np.ndim(features[0]) > 1):
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


def _check_one_array(outputs: Any) -> None:
    if isinstance(outputs, (dict, list, tuple)):
        raise ValueError(
            f"`encoder` must give one array of features. Received: {type(outputs).__name__}"
        )
