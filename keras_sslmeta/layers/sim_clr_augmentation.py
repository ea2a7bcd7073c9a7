"""The augmentation of SimCLR (Chen et al. 2020, appendix A)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.planar_augmentation import PlanarAugmentation
from keras_sslmeta.layers.random_color_jitter import RandomColorJitter, luma
from keras_sslmeta.layers.random_gaussian_blur import RandomGaussianBlur
from keras_sslmeta.layers.random_resized_crop import RandomResizedCrop


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class SimCLRAugmentation(PlanarAugmentation):
    """Crop and resize, flip, colour jitter, greyscale and blur, drawn for each image.

    In this order: a random resized crop to `image_size`; a horizontal flip of half of the images;
    with `color_jitter_probability`, brightness, contrast and saturation of 0.8 × `strength` and hue
    of 0.2 × `strength` (`RandomColorJitter`); with `grayscale_probability`, grey; with
    `blur_probability`, a Gaussian blur over a tenth of the side with sigma in [0.1, 2]
    (`RandomGaussianBlur`); then the values are clipped to `value_range`. Call it twice for
    two views.

    Images of one channel skip saturation, hue and grey, which mean nothing there. With
    `training=False` images are only brought to `image_size` (see `RandomResizedCrop`).

    Args:
        image_size: Size of the output in pixels: an integer, or (height, width).
        value_range: Lowest and highest value of the images' pixels. Default (0, 255), as Keras.
        crop_scale: Smallest and largest fraction of the area to crop. Default (0.08, 1.0).
        strength: Of the colour jitter, in [0, 2.5]. Default 1.0; Chen et al. use 0.5 for CIFAR-10.
        flip: Whether to flip half of the images. Default True; digits and letters want False.
        color_jitter_probability: Default 0.8.
        grayscale_probability: Default 0.2.
        blur_probability: Default 0.5; Chen et al. use 0 for CIFAR-10.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    The defaults are those of Chen et al. for ImageNet.

    Returns:
        `(batch, *image_size, channels)`, or `(*image_size, channels)` for a single image, in the
        layer's compute dtype, within `value_range`.

    Raises:
        ValueError: if an argument is not as above, if the images have other than 1 or 3 channels,
            or if they are too small for the crop (see `RandomResizedCrop`).

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import SimCLRAugmentation
    >>> images = numpy.zeros((4, 32, 32, 3), "uint8")
    >>> augmentation = SimCLRAugmentation((32, 32), strength=0.5, blur_probability=0.0, seed=0)
    >>> view_a, view_b = augmentation(images), augmentation(images)
    >>> view_a.shape
    TensorShape([4, 32, 32, 3])

    Reference: Chen et al. 2020, A Simple Framework for Contrastive Learning, appendix A.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        value_range: Sequence[float] = (0, 255),
        crop_scale: Sequence[float] = (0.08, 1.0),
        strength: float = 1.0,
        flip: bool = True,
        color_jitter_probability: float = 0.8,
        grayscale_probability: float = 0.2,
        blur_probability: float = 0.5,
        seed: int | None = None,
        **kwargs,
    ):
        probability = image_arguments.probability
        self.image_size = image_arguments.image_size("image_size", image_size)
        self.value_range = image_arguments.value_range("value_range", value_range)
        self.crop_scale = image_arguments.positive_range("crop_scale", crop_scale, maximum=1.0)
        self.strength = image_arguments.number("strength", strength, 0.0, 2.5)  # hue at most 0.5
        self.flip = bool(flip)
        self.color_jitter_probability = probability(
            "color_jitter_probability", color_jitter_probability
        )
        self.grayscale_probability = probability("grayscale_probability", grayscale_probability)
        self.blur_probability = probability("blur_probability", blur_probability)
        super().__init__(seed=seed, **kwargs)
        # The parts work as functions of this layer's seed; their own generators stand still.
        self.crop = RandomResizedCrop(*self.image_size, scale=self.crop_scale, seed=0)
        self.color_jitter = RandomColorJitter(
            brightness=0.8 * self.strength,
            contrast=0.8 * self.strength,
            saturation=0.8 * self.strength,
            hue=0.2 * self.strength,
            value_range=self.value_range,
            seed=0,
        )
        self.blur = RandomGaussianBlur(probability=self.blur_probability, seed=0)

    def build(self, input_shape):
        batch_shape = (None, *input_shape[-3:])
        self.crop.build(batch_shape)
        cropped_shape = self.crop.compute_output_shape(batch_shape)
        self.color_jitter.build(cropped_shape)
        self.blur.build(cropped_shape)
        self.built = True

    def augment_planes(self, planes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        crop_seed, flip_seed, *color_seeds, blur_seed = self.split(seed, 6)
        batch, _, height, width = tf.unstack(tf.shape(planes))
        boxes = self.crop.draw_boxes(crop_seed, batch, height, width)
        mirrored = self.uniform(flip_seed, [batch]) < 0.5 if self.flip else None
        planes = self.crop.resample(planes, boxes, mirrored)
        planes = self._distort_color(planes, *color_seeds)
        if self.blur_probability:
            planes = self.blur.augment_planes(planes, blur_seed)
        return tf.clip_by_value(planes, *self.value_range)

    def without_augmentation(self, images: tf.Tensor) -> tf.Tensor:
        return self.crop.without_augmentation(images)

    def check_images(self, shape: tuple[int | None, ...]) -> None:
        image_arguments.check_channels(shape)
        self.crop.check_images(shape)

    def compute_output_shape(self, input_shape):
        shape = super().compute_output_shape(input_shape)
        return (*shape[:-3], *self.image_size, shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "value_range": self.value_range,
            "crop_scale": self.crop_scale,
            "strength": self.strength,
            "flip": self.flip,
            "color_jitter_probability": self.color_jitter_probability,
            "grayscale_probability": self.grayscale_probability,
            "blur_probability": self.blur_probability,
        }

    def _distort_color(self, planes, jitter_choice_seed, jitter_seed, gray_choice_seed):
        """Colour jitter, then grey (`color_distortion` in appendix A)."""
        if self.color_jitter_probability and self.strength:
            jittered = self.color_jitter.augment_planes(planes, jitter_seed)
            planes = self.apply_to_some(
                jitter_choice_seed, self.color_jitter_probability, jittered, planes
            )
        if self.grayscale_probability and planes.shape[1] == 3:
            gray = tf.repeat(luma(planes), 3, axis=1)
            planes = self.apply_to_some(gray_choice_seed, self.grayscale_probability, gray, planes)
        return planes
