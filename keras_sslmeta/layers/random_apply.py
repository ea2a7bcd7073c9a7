"""Applies a layer to some of the images (torchvision's `RandomApply`, one decision an image)."""

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.image_augmentation import ImageAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomApply(ImageAugmentation):
    """Applies a layer to each image with a probability, and leaves the others as they are.

    The layer runs on the whole batch and each image then takes its output or itself, so the
    probability saves no time; graphs, XLA and `tf.data` want it so. The layer's own randomness is
    its own: a Keras layer that shares one draw over the batch, or over the replicas, still does.

    Args:
        layer: A Keras layer that keeps the shape of images, with the same dtype policy as this one.
        probability: With which each image goes through it. Default 0.5, torchvision's.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Returns:
        Images of the same shape in the layer's compute dtype.

    Raises:
        ValueError: if `layer` is not a Keras layer, if `probability` is outside [0, 1], or, at the
            first call, if the layer changes the images' shape or dtype.

    Example:

    >>> import keras, numpy
    >>> from keras_sslmeta.layers import RandomApply
    >>> invert = keras.layers.Rescaling(-1.0, offset=255.0)
    >>> images = numpy.zeros((4, 8, 8, 3), "float32")
    >>> RandomApply(invert, probability=0.3, seed=0)(images).shape
    TensorShape([4, 8, 8, 3])
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        probability: float = 0.5,
        seed: int | None = None,
        **kwargs,
    ):
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"`layer` must be a Keras layer. Received: {layer!r}")
        self.probability = image_arguments.probability("probability", probability)
        super().__init__(seed=seed, **kwargs)
        self.layer = layer

    def build(self, input_shape):
        self.compute_output_shape(input_shape)  # refuses another rank
        images = keras.KerasTensor((None, *input_shape[-3:]), dtype=self.compute_dtype)
        if not self.layer.built:
            self.layer.build(images.shape)
        self._check_output(images, self.layer.compute_output_spec(images))
        self.built = True

    def augment(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        images = tf.cast(images, self.compute_dtype)
        transformed = self.layer(images)  # in training mode too: Keras hands the flag on
        self._check_output(images, transformed)  # `build` saw only the first images' shape
        return self.apply_to_some(seed, self.probability, transformed, images)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "probability": self.probability,
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})

    def _check_output(self, images, output):
        before, after = tuple(images.shape), tuple(output.shape)
        same_shape = len(after) == 4 and all(
            None in sides or sides[0] == sides[1] for sides in zip(before, after, strict=True)
        )
        dtype = keras.backend.standardize_dtype(output.dtype)
        if not same_shape or dtype != self.compute_dtype:
            raise ValueError(
                "`layer` must keep the shape of the images and give this layer's dtype, "
                f"{self.compute_dtype}. Received: {self.layer.name} "
                f"({type(self.layer).__name__}), which turns {before} into {after} of {dtype}"
            )
