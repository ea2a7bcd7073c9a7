"""Gaussian blur with a width of its own for each image (Chen et al. 2020)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.planar_augmentation import PlanarAugmentation
from keras_sslmeta.mechanisms import separable_resampling


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomGaussianBlur(PlanarAugmentation):
    """Blurs each image with the probability, by a Gaussian whose sigma is drawn for that image.

    `out = Σ_d w_d · image[i + d]` along rows and then columns, with `w_d ∝ exp(-d² / 2σ²)` over
    `kernel_size` pixels, σ uniform in `sigma`, and the image reflected at its borders.

    It exists because `keras.layers.RandomGaussianBlur` (3.15) draws one sigma for the whole batch
    (one for rows, one for columns), refuses a sigma that is all above 1, darkens the borders with
    zeros, and blurs half as many images as its factor says. Built under a `tf.distribute` strategy
    it also repeats its draws on every replica.

    Args:
        probability: With which each image is blurred. Default 0.5, SimCLR's.
        sigma: Smallest and largest standard deviation in pixels. Default (0.1, 2.0), SimCLR's.
        kernel_size: Odd number of pixels. None, the default, takes a tenth of each side as SimCLR
            does, made odd, and at least 3. Chen et al. do not blur images as small as CIFAR's.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Returns:
        Images of the same shape in the layer's compute dtype and the values' own range.

    Raises:
        ValueError: if an argument is not as above, or if `kernel_size` does not fit the images
            (half of it must be less than each side).

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomGaussianBlur
    >>> images = numpy.zeros((4, 32, 32, 3), "float32")
    >>> RandomGaussianBlur(probability=1.0, kernel_size=5, seed=0)(images).shape
    TensorShape([4, 32, 32, 3])

    Reference: Chen et al. 2020, A Simple Framework for Contrastive Learning, appendix A.
    """

    def __init__(
        self,
        probability: float = 0.5,
        sigma: Sequence[float] = (0.1, 2.0),
        kernel_size: int | None = None,
        seed: int | None = None,
        **kwargs,
    ):
        self.probability = image_arguments.probability("probability", probability)
        self.sigma = image_arguments.positive_range("sigma", sigma)
        self.kernel_size = image_arguments.kernel_size("kernel_size", kernel_size)
        super().__init__(seed=seed, **kwargs)

    def augment_planes(self, planes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        choice_seed, sigma_seed = self.split(seed)
        sigma = self.uniform(sigma_seed, tf.shape(planes)[:1], *self.sigma, dtype=planes.dtype)
        operators = []
        for axis in (2, 3):
            size = planes.shape[axis] or tf.shape(planes)[axis]
            operators.append(separable_resampling.blur_operator(sigma, self._radius(size), size))
        blurred = separable_resampling.resample(planes, *operators)
        return self.apply_to_some(choice_seed, self.probability, blurred, planes)

    def check_images(self, shape: tuple[int | None, ...]) -> None:
        sides = [side for side in shape[-3:-1] if side is not None]
        if self.kernel_size is not None and any(side <= self.kernel_size // 2 for side in sides):
            raise ValueError(
                f"`kernel_size` must be less than twice each side of the images. "
                f"Received: kernel_size={self.kernel_size}, images of shape {shape}"
            )

    def get_config(self):
        return {
            **super().get_config(),
            "probability": self.probability,
            "sigma": self.sigma,
            "kernel_size": self.kernel_size,
        }

    def _radius(self, size):
        if self.kernel_size is not None:
            radius = self.kernel_size // 2
        elif isinstance(size, int):
            radius = max(1, size // 20)  # SimCLR's code: half of a tenth, rounded down twice
        else:
            radius = tf.maximum(1, size // 20)
        # Only a side that is unknown until now, or of one pixel, can be too small.
        return min(radius, size - 1) if isinstance(size, int) else tf.minimum(radius, size - 1)
