"""The axis of views: `(batch, views, …)` to `(batch · views, …)` and back, for structures of tensors."""

import keras
import tensorflow as tf


def count(views) -> int:
    """The number of views on axis 1 of every tensor of the structure."""
    shapes = [tuple(x.shape) for x in keras.tree.flatten(views)]
    counts = {shape[1] if len(shape) > 1 else None for shape in shapes}
    known = [count for count in counts if count is not None]
    if len(counts) != 1 or not known:
        raise ValueError(
            "Views must share a second axis of known length, (batch, views, …). "
            f"Received: shapes={shapes}"
        )
    return known[0]


def require(model, views, number: int) -> None:
    """Refuses any other number of views than a method is made for."""
    _refuse_other_than(model, count(views), number)


def require_to_make(model, number: int) -> None:
    """As `require`, of the number that the model's augmentation is to make."""
    _refuse_other_than(model, model.views, number)


def _refuse_other_than(model, given, number):
    if given != number:
        raise ValueError(
            f"{type(model).__name__} takes {number} views of each sample, on axis 1. "
            f"Received: {given} views"
        )


def both(model, views):
    """The first and the second of two views, `(batch, …)` each."""
    require(model, views, 2)
    return [keras.tree.map_structure(lambda x, view=view: x[:, view], views) for view in (0, 1)]


def merge(views):
    """`(batch, views, …)` → `(batch · views, …)`."""

    def merge_one(x):
        # In numbers rather than as −1, which an empty share could not be divided by.
        shape = tf.shape(x)
        merged = tf.reshape(x, tf.concat([[shape[0] * shape[1]], shape[2:]], 0))
        rows = None if x.shape[0] is None else x.shape[0] * x.shape[1]
        return tf.ensure_shape(merged, [rows, *x.shape[2:]])

    return keras.tree.map_structure(merge_one, views)


def split(x, views: int):
    """`(batch · views, …)` → `(batch, views, …)`."""

    def split_one(x):
        shape = tf.shape(x)
        split = tf.reshape(x, tf.concat([[shape[0] // views, views], shape[1:]], 0))
        rows = None if x.shape[0] is None else x.shape[0] // views
        return tf.ensure_shape(split, [rows, views, *x.shape[1:]])

    return keras.tree.map_structure(split_one, x)


def crossed(targets: tf.Tensor, predictions: tf.Tensor) -> "tuple[tf.Tensor, tf.Tensor]":
    """Each view's prediction beside the target of every other view: two of `(batch, V·(V − 1), dim)`."""
    views = range(count(predictions))
    pairs = [(v, u) for u in views for v in views if u != v]
    of_targets, of_predictions = zip(*pairs, strict=True)
    return tf.gather(targets, of_targets, axis=1), tf.gather(predictions, of_predictions, axis=1)
