"""Random brightness, contrast, saturation and hue, each image by its own draw."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.planar_augmentation import PlanarAugmentation

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomColorJitter(PlanarAugmentation):
    """Changes brightness, contrast, saturation and hue of each image, in that order.

    As torchvision's `ColorJitter`, with a factor `f` uniform in `[max(0, 1 - s), 1 + s]` for the
    strength `s` of each of the first three, drawn for each image, and the result clipped to
    `value_range` after each step:

    - brightness: `f · image + (1 - f) · black`
    - contrast: `f · image + (1 - f) · mean(luma(image))`, one mean an image
    - saturation: `f · image + (1 - f) · luma(image)`, pixel by pixel
    - hue: the HSV hue turned by a fraction of the circle uniform in `[-hue, hue]`

    The order is the fixed one that Chen et al. 2020 print in appendix A (torchvision shuffles it).
    Images of one channel have no saturation and no hue; those two are passed over.

    It exists because `keras.layers.RandomColorJitter` (3.15) is another distribution: it adds to
    the brightness instead of multiplying, takes the contrast's mean for each channel, and
    multiplies the HSV saturation by `u / (1 - u)` with `u` uniform in `[-s, s]`, which makes half
    of the images grey and, with no hue step after it, leaves `value_range` (down to -733 in 0 to
    255). Built under a `tf.distribute` strategy it also repeats its draws on every replica.

    Args:
        brightness: Strength, at least 0. Default 0.0, as torchvision: no change.
        contrast: Strength, at least 0. Default 0.0.
        saturation: Strength, at least 0. Default 0.0.
        hue: Largest turn as a fraction of the circle, in [0, 0.5]. Default 0.0.
        value_range: Lowest and highest value of the images' pixels. Default (0, 255), as Keras.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Returns:
        Images of the same shape in the layer's compute dtype, within `value_range`.

    Raises:
        ValueError: if an argument is not as above, or if images have other than 1 or 3 channels.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomColorJitter
    >>> images = numpy.zeros((4, 32, 32, 3), "uint8")
    >>> RandomColorJitter(brightness=0.8, hue=0.2, seed=0)(images).shape
    TensorShape([4, 32, 32, 3])
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        value_range: Sequence[float] = (0, 255),
        seed: int | None = None,
        **kwargs,
    ):
        self.brightness = image_arguments.number("brightness", brightness, 0.0)
        self.contrast = image_arguments.number("contrast", contrast, 0.0)
        self.saturation = image_arguments.number("saturation", saturation, 0.0)
        self.hue = image_arguments.number("hue", hue, 0.0, 0.5)
        self.value_range = image_arguments.value_range("value_range", value_range)
        super().__init__(seed=seed, **kwargs)

    def augment_planes(self, planes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        draws = self.uniform(seed, [4, tf.shape(planes)[0], 1, 1, 1], dtype=planes.dtype)
        is_color = planes.shape[1] == 3
        if self.brightness:
            black = tf.constant(self.value_range[0], planes.dtype)
            planes = self._blend(planes, black, self.brightness, draws[0])
        if self.contrast:
            mean = tf.reduce_mean(luma(planes), axis=[1, 2, 3], keepdims=True)
            planes = self._blend(planes, mean, self.contrast, draws[1])
        if self.saturation and is_color:
            planes = self._blend(planes, luma(planes), self.saturation, draws[2])
        if self.hue and is_color:
            planes = turn_hue(planes, self.hue * (2.0 * draws[3] - 1.0))
        return planes

    def check_images(self, shape: tuple[int | None, ...]) -> None:
        image_arguments.check_channels(shape)

    def get_config(self):
        return {
            **super().get_config(),
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
            "hue": self.hue,
            "value_range": self.value_range,
        }

    def _blend(self, planes, base, strength, draw):
        low = max(0.0, 1.0 - strength)
        factor = low + (1.0 + strength - low) * draw
        blended = factor * planes + (1.0 - factor) * base
        return tf.clip_by_value(blended, *self.value_range)


def luma(planes: tf.Tensor) -> tf.Tensor:
    """The grey image `(batch, 1, height, width)` of planes with 1 or 3 channels."""
    if planes.shape[1] == 1:
        return planes
    red, green, blue = (planes[:, channel : channel + 1] for channel in range(3))
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def turn_hue(planes: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Turns the HSV hue of `(batch, 3, height, width)` by `turn` `(batch, 1, 1, 1)` of the circle.

    Equals RGB to HSV, hue + turn modulo 1, and back. Value and chroma stay, so the image never
    takes HSV's form and any range of values will do.
    """
    red, green, blue = (planes[:, channel : channel + 1] for channel in range(3))
    highest = tf.maximum(tf.maximum(red, green), blue)
    lowest = tf.minimum(tf.minimum(red, green), blue)
    chroma = highest - lowest
    is_red, is_green = tf.equal(red, highest), tf.equal(green, highest)
    slope = tf.where(is_red, green - blue, tf.where(is_green, blue - red, red - green))
    two, four = tf.constant(2.0, planes.dtype), tf.constant(4.0, planes.dtype)
    sextant = tf.where(is_red, tf.zeros_like(red), tf.where(is_green, two, four))
    hue = tf.math.divide_no_nan(slope, chroma) + sextant + 6.0 * turn  # in sixths of the circle
    channels = []
    for shift in (0.0, 4.0, 2.0):  # red peaks at hue 0, green at 2, blue at 4
        angle = hue + shift
        angle -= 6.0 * tf.floor(angle / 6.0)  # `angle % 6`, many times as fast
        channels.append(lowest + chroma * tf.clip_by_value(tf.abs(angle - 3.0) - 1.0, 0.0, 1.0))
    return tf.concat(channels, axis=1)
