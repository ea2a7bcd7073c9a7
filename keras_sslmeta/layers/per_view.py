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
            # A symbolic call builds any layer, subclassed models without a `build` too.
            self.layer(
                keras.tree.map_shape_structure(
                    lambda shape: keras.KerasTensor((shape[0], *shape[2:])), input_shape
                )
            )
        self.built = True

    def call(self, views):
        # Keras hands `training` on to the layers within.
        count = view_axis.count(views)
        return view_axis.split(self.layer(view_axis.merge(views)), count)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
