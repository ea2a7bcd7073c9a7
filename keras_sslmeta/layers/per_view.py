"""`PerView`: a model for single samples, applied to every view of a sample."""

import keras

from keras_sslmeta.mechanisms import view_axis


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class PerView(keras.layers.Layer):
    """Applies a layer or model to each view of each sample, with one set of weights.

    Views share a second axis: `(batch, views, …)` is merged into `(batch · views, …)`, given to the
    layer, and split again. Layers with batch statistics thus see all views of the batch together, as
    in SimCLR (unlike `keras.layers.TimeDistributed`, which takes the steps one after the other).

    Args:
        layer: a Keras layer or model that takes a batch of samples, as one tensor or a structure of them.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        views: tensor, or structure of tensors, `(batch, views, …)` with a static number of views.

    Returns:
        What the layer gives, with the axes `(batch, views)` in place of the batch axis.

    Raises:
        ValueError: if `layer` is not a Keras layer, or an input has no static axis of views.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(16)])
    >>> ksm.layers.PerView(encoder)(np.zeros((4, 2, 8, 8, 1), "float32")).shape
    TensorShape([4, 2, 16])
    """

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"`layer` must be a Keras layer or model. Received: {layer!r}")
        self.layer = layer

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(_without_views(input_shape))
        self.built = True

    def call(self, views):
        # Keras hands `training` on to the layers within.
        return view_axis.split(self.layer(view_axis.merge(views)), view_axis.count(views))

    def compute_output_shape(self, input_shape):
        count = _view_counts(input_shape)[0]
        shape = self.layer.compute_output_shape(_without_views(input_shape))
        return (shape[0], count, *shape[1:])

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def _is_shape(x):
    return isinstance(x, (tuple, list)) and all(n is None or isinstance(n, int) for n in x)


def _map_shapes(function, shapes):
    if _is_shape(shapes):
        return function(tuple(shapes))
    if isinstance(shapes, dict):
        return {key: _map_shapes(function, shape) for key, shape in shapes.items()}
    return [_map_shapes(function, shape) for shape in shapes]


def _without_views(shapes):
    return _map_shapes(lambda shape: (shape[0], *shape[2:]), shapes)


def _view_counts(shapes):
    counts: list = []
    _map_shapes(lambda shape: counts.append(shape[1]), shapes)
    return counts
