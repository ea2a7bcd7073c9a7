"""Random resized crop (Szegedy et al. 2015), by two matrix multiplications a batch."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.planar_augmentation import PlanarAugmentation
from keras_sslmeta.mechanisms import separable_resampling

_TRIES = 10  # as torchvision

# First row, first column, height and width of a box in each image, whole numbers `(batch,)`.
Boxes = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomResizedCrop(PlanarAugmentation):
    """Cuts a random box out of each image and resizes it to `(height, width)`.

    The distribution is torchvision's and Inception's: an area that is uniform in `scale` as a
    fraction of the image, an aspect ratio (width / height) that is log-uniform in `ratio`, and a
    uniform position. The first of 10 draws that fits is taken, or else the largest central box
    whose ratio is in `ratio`. Boxes are whole pixels, as in both: so a crop is exactly
    crop-then-resize, without pixels from outside the box, and results compare with published ones.
    The price is that very small images have few different crops.

    The resizing is bilinear and, with `antialias`, averages over as many pixels as an output pixel
    covers, like `tf.image.resize(…, antialias=True)`, Pillow and torchvision.

    With `training=False` the largest central box with the aspect ratio of the output is resized;
    images that already have the output's size stay as they are.

    Args:
        height: Rows of the output, in pixels.
        width: Columns of the output, in pixels.
        scale: Smallest and largest fraction of the image's area. Default (0.08, 1.0), torchvision's
            and SimCLR's.
        ratio: Smallest and largest width / height. Default (3/4, 4/3), theirs too.
        antialias: Whether shrinking averages over the pixels. Default True.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Returns:
        `(batch, height, width, channels)`, or `(height, width, channels)` for a single image, in
        the layer's compute dtype and the values' own range.

    Raises:
        ValueError: if an argument is not as above, or if the images have a side of less than 2
            pixels or are so small that the smallest crop would have less than one pixel.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomResizedCrop
    >>> images = numpy.zeros((4, 48, 64, 3), "uint8")
    >>> RandomResizedCrop(32, 32, seed=0)(images).shape
    TensorShape([4, 32, 32, 3])

    Reference: Szegedy et al. 2015, Going Deeper with Convolutions, section 6.
    """

    def __init__(
        self,
        height: int,
        width: int,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        antialias: bool = True,
        seed: int | None = None,
        **kwargs,
    ):
        self.height = image_arguments.side("height", height)
        self.width = image_arguments.side("width", width)
        self.scale = image_arguments.positive_range("scale", scale, maximum=1.0)
        self.ratio = image_arguments.positive_range("ratio", ratio)
        self.antialias = bool(antialias)
        super().__init__(seed=seed, **kwargs)

    def draw_boxes(
        self, seed: tf.Tensor, batch: int | tf.Tensor, height: int | tf.Tensor, width
    ) -> Boxes:
        """A box for each of `batch` images of `height` by `width` pixels."""
        shape_seed, place_seed = self.split(seed)
        rows, columns = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
        box_heights, box_widths, fits = self._candidates(shape_seed, batch, rows, columns)
        fallback_height, fallback_width = self._fallback(rows, columns)
        found = tf.reduce_any(fits, axis=1)
        first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
        box_height = tf.gather(box_heights, first, batch_dims=1)
        box_width = tf.gather(box_widths, first, batch_dims=1)
        box_height = tf.where(found, box_height, fallback_height)
        box_width = tf.where(found, box_width, fallback_width)
        place = self.uniform(place_seed, [2, batch])
        room_below, room_right = rows - box_height, columns - box_width
        top = tf.floor(tf.where(found, place[0] * (room_below + 1.0), room_below / 2.0))
        left = tf.floor(tf.where(found, place[1] * (room_right + 1.0), room_right / 2.0))
        return top, left, box_height, box_width

    def resample(
        self, planes: tf.Tensor, boxes: Boxes, mirrored: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Resizes each image's box, from right to left where `mirrored`."""
        top, left, box_height, box_width = (tf.cast(edge, planes.dtype) for edge in boxes)
        in_height, in_width = _size(planes)
        rows = separable_resampling.resize_operator(
            top, box_height, in_height, self.height, self.antialias
        )
        columns = separable_resampling.resize_operator(
            left, box_width, in_width, self.width, self.antialias, mirrored
        )
        return separable_resampling.resample(planes, rows, columns)

    def augment_planes(self, planes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        height, width = _size(planes)
        return self.resample(planes, self.draw_boxes(seed, tf.shape(planes)[0], height, width))

    def without_augmentation(self, images: tf.Tensor) -> tf.Tensor:
        if images.shape[1:3] == (self.height, self.width):
            return images
        planes = tf.transpose(images, [0, 3, 1, 2])
        rows, columns = (tf.cast(side, tf.float32) for side in _size(planes))
        box_height = tf.minimum(rows, tf.round(columns * self.height / self.width))
        box_width = tf.minimum(columns, tf.round(rows * self.width / self.height))
        box_height, box_width = tf.maximum(box_height, 1.0), tf.maximum(box_width, 1.0)
        top, left = tf.floor((rows - box_height) / 2.0), tf.floor((columns - box_width) / 2.0)
        box = tuple(edge[tf.newaxis] for edge in (top, left, box_height, box_width))
        return tf.transpose(self.resample(planes, box), [0, 2, 3, 1])

    def check_images(self, shape: tuple[int | None, ...]) -> None:
        height, width = shape[-3:-1]
        too_thin = any(side is not None and side < 2 for side in (height, width))
        known = height is not None and width is not None
        too_small = known and self.scale[0] * height * width < 1.0  # type: ignore[operator]
        if too_thin or too_small:
            raise ValueError(
                "`images` must have sides of at least 2 pixels and be so large that the smallest "
                f"crop, {self.scale[0]:g} of their area, has at least one pixel. "
                f"Received shape: {shape}"
            )

    def compute_output_shape(self, input_shape):
        shape = super().compute_output_shape(input_shape)
        return (*shape[:-3], self.height, self.width, shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "height": self.height,
            "width": self.width,
            "scale": self.scale,
            "ratio": self.ratio,
            "antialias": self.antialias,
        }

    def _candidates(self, seed, batch, rows, columns):
        """Heights, widths and which of them fit, each `(batch, tries)`."""
        draws = self.uniform(seed, [2, batch, _TRIES])
        low, high = self.scale
        area = rows * columns * (low + (high - low) * draws[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = tf.exp(low + (high - low) * draws[1])
        widths, heights = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
        fits = (widths >= 1.0) & (widths <= columns) & (heights >= 1.0) & (heights <= rows)
        return heights, widths, fits

    def _fallback(self, rows, columns):
        """The largest box whose ratio, width / height, is in `ratio`."""
        height = tf.minimum(rows, tf.round(columns / self.ratio[0]))
        width = tf.minimum(columns, tf.round(rows * self.ratio[1]))
        return tf.maximum(height, 1.0), tf.maximum(width, 1.0)


def _size(planes: tf.Tensor):
    """Height and width, as integers where they are known."""
    dynamic = tf.shape(planes)
    return tuple(planes.shape[axis] or dynamic[axis] for axis in (2, 3))
