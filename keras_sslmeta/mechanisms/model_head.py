"""Which of a model's variables are its head."""

from collections.abc import Callable
from typing import Any

import keras


def in_head(model: "keras.Model") -> Callable[[Any], bool]:
    """A function from a variable to whether it belongs to the last layer that has trainable weights.

    Layers stand in the order in which the model was made; of nested models the innermost layers count.

    Args:
        model: a built model.

    Raises:
        ValueError: if the model has several outputs.
    """
    if len(getattr(model, "outputs", None) or [0]) > 1:
        raise ValueError(
            "`adapted` must say which variables are of the heads, where a model has several outputs, such as "
            f"`lambda v: 'head' in v.path`. Received: adapted=None and {len(model.outputs)} outputs"
        )
    weights: list = []
    for layer in model._flatten_layers(include_self=False):
        is_leaf = not list(layer._flatten_layers(include_self=False, recursive=False))
        if is_leaf and layer.trainable_variables:
            weights = layer.trainable_variables
    ids = {id(v) for v in weights}
    return lambda v: id(v) in ids
