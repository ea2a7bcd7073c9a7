"""What a two-view model is handed: known mistakes refused, and completed where Keras needs more."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.layers.random_augmentation import RandomAugmentation
from keras_sslmeta.mechanisms import arguments, augmented_views


def check_layers(**layers) -> None:
    """Refuses arguments that are neither None nor a layer."""
    for name, layer in layers.items():
        if layer is not None and not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"`{name}` must be a Keras layer or model. Received: {layer!r}")
        if isinstance(layer, RandomAugmentation):
            raise ValueError(
                f"`{name}` must be a head on features, not an augmentation: several of these go into one "
                f"list, `augmentation=[first, second]`. Received: {layer!r}"
            )


def refuse_a_pair_of_views(x, y) -> None:
    """Refuses views that would pass as samples and labels."""
    are_tensors = tf.is_tensor(x) and tf.is_tensor(y) and (y.shape.rank or 0) > 1
    are_alike = are_tensors and y.shape[1:].as_list() == x.shape[1:].as_list()
    # A column may be labels.
    if are_alike and (y.shape.rank > 2 or (y.dtype.is_floating and (y.shape[1] or 2) > 1)):
        raise ValueError(
            "A dataset of (view_1, view_2) is read as samples and labels: stack the views on "
            "axis 1, `tf.stack([view_1, view_2], axis=1)`. "
            f"Received: x.shape={tuple(x.shape)}, y.shape={tuple(y.shape)}"
        )


def refuse_metrics_of_labels(metrics) -> None:
    """Refuses metrics by their names: these are all of labels."""
    names = [name for name in keras.tree.flatten(metrics) if isinstance(name, str)]
    if names:
        raise ValueError(
            "`metrics` see embeddings, which are no predictions of labels: pass a callback to `fit`, such as "
            f"keras_sslmeta.callbacks.KNNProbe. Received: metrics={names}"
        )


def placeholder_labels(x, y, sample_weight):
    """Zeros where weights come without labels: Keras would drop the weights without a word."""
    if y is not None or sample_weight is None:
        return y
    (first, *_) = keras.tree.flatten(x)
    # Data that brings its own weights, a generator for instance, is Keras's to refuse.
    return np.zeros(len(first), "float32") if hasattr(first, "__len__") else y


def check_views(views, augmentation, least: int) -> None:
    """Refuses a number of views below `least`, and augmentations that do not make so many."""
    if not arguments.is_integer(views) or views < least:
        raise ValueError(
            f"`views` must be an integer of at least {least}. Received: views={views!r}"
        )
    if augmentation is not None:
        augmented_views.check(augmentation, views)


def warn_of_value_range(x, augmentation) -> None:
    """Warns of images in memory that an augmentation's `value_range` would clip, or that fill none of it."""
    layers = augmentation if isinstance(augmentation, (list, tuple)) else [augmentation]
    value_range = next(
        filter(None, (getattr(layer, "value_range", None) for layer in layers)), None
    )
    if value_range is None or not isinstance(x, (np.ndarray, tf.Tensor)) or len(x) == 0:
        return
    some = np.asarray(x[:256])
    least, largest, (low, high) = float(some.min()), float(some.max()), value_range
    span = high - low
    is_clipped = least < low - 1e-3 * span or largest > high + 1e-3 * span
    if is_clipped or (least >= low and largest < low + 0.01 * span):
        warnings.warn(
            f"Images have values from {least:g} to {largest:g}, and the augmentation `value_range=({low:g}, "
            f"{high:g})`: {'what lies outside is clipped' if is_clipped else 'all of them look black'}. "
            "Pass the range of the images, (0, 255) for bytes.",
            stacklevel=3,
        )


def listed(shapes) -> str:
    """Shapes for an error message."""
    return ", ".join(map(str, shapes))


def shapes_of(inputs):
    """The shapes of a structure of tensors, for an error message."""
    return keras.tree.map_structure(lambda x: tuple(x.shape), inputs)
