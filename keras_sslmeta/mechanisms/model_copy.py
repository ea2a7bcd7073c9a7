"""A copy of a model with other values in its variables, which shares nothing with it."""

from typing import Any

import keras
import tensorflow as tf


def copy_with(model: keras.Model, news: "dict[int, tf.Tensor]", inputs: Any) -> keras.Model:
    """A model of the same architecture.

    Args:
        model: a built model.
        news: new values by the `id` of the model's variable; the others keep theirs.
        inputs: a batch of inputs, for models that know their shapes only when called.
    """
    copy = _clone(model)
    if not copy.built:
        copy(
            keras.tree.map_structure(
                lambda x: keras.KerasTensor((None, *x.shape[1:]), dtype=x.dtype.name), inputs
            )
        )
    for target, source in zip(copy.variables, model.variables, strict=True):
        target.assign(news.get(id(source), source.value))
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # It computes with constants of its own.
    return copy


def _clone(model):
    def clone_layer(layer):
        if isinstance(layer, keras.layers.Lambda):
            # Keras would refuse it, as from a file of unknown origin.
            return keras.layers.Lambda(
                layer.function,
                output_shape=layer._output_shape,
                mask=layer.mask,
                arguments=layer.arguments,
                name=layer.name,
                dtype=layer.dtype_policy,
            )
        return type(layer).from_config(layer.get_config())

    is_graph = isinstance(model, keras.Sequential) or getattr(model, "inputs", None)
    if is_graph:
        return keras.models.clone_model(model, clone_function=clone_layer, recursive=True)
    return keras.models.clone_model(model)
