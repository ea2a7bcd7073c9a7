"""The augmentation of VICReg (Bardes et al. 2022, appendix C.1)."""

from collections.abc import Sequence

import keras

from keras_sslmeta.layers.solarizing_augmentation import SolarizingAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class VICRegAugmentation(SolarizingAugmentation):
    """Crop and resize, flip, colour jitter, greyscale, blur and solarisation, alike for both views.

    The steps and the jitter of `BYOLAugmentation`, with one setting for all views: half of the
    images are blurred and a tenth solarised, where BYOL's views have 1.0 and 0.1, 0.0 and 0.2 of
    that: on average over two views, nearly the same.

    Args:
        image_size: Size of the output in pixels: an integer, or (height, width).
        value_range: Lowest and highest value of the images' pixels. Default (0, 255), as Keras.
        crop_scale: Smallest and largest fraction of the area to crop. Default (0.08, 1.0).
        strength: Of the colour jitter, in [0, 2.5], on SimCLR's scale. Default 0.5: brightness and
            contrast of 0.4, saturation of 0.2 and hue of 0.1.
        flip: Whether to flip half of the images. Default True; digits and letters want False.
        color_jitter_probability: Default 0.8.
        grayscale_probability: Default 0.2.
        blur_probability: Default 0.5; images as small as CIFAR's want 0, as in SimCLR.
        solarize_probability: Default 0.1.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    The defaults are those of the paper (App. C.1) for ImageNet; the authors' published code takes
    BYOL's pair instead (`BYOLAugmentation.pair`). They resize bicubically and shuffle the
    steps of the jitter; here resizing is bilinear and the order is fixed, as in the parts.

    Returns:
        `(batch, *image_size, channels)`, or `(*image_size, channels)` for a single image, in the
        layer's compute dtype, within `value_range`.

    Raises:
        ValueError: as `SimCLRAugmentation`.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import VICRegAugmentation
    >>> images = numpy.zeros((4, 32, 32, 3), "uint8")
    >>> VICRegAugmentation((32, 32), blur_probability=0.0, seed=0)(images).shape
    TensorShape([4, 32, 32, 3])

    Reference: Bardes, Ponce, LeCun 2022, VICReg, appendix C.1. https://arxiv.org/abs/2105.04906
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        value_range: Sequence[float] = (0, 255),
        crop_scale: Sequence[float] = (0.08, 1.0),
        strength: float = 0.5,
        flip: bool = True,
        color_jitter_probability: float = 0.8,
        grayscale_probability: float = 0.2,
        blur_probability: float = 0.5,
        solarize_probability: float = 0.1,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(
            image_size,
            value_range=value_range,
            crop_scale=crop_scale,
            strength=strength,
            flip=flip,
            color_jitter_probability=color_jitter_probability,
            grayscale_probability=grayscale_probability,
            blur_probability=blur_probability,
            solarize_probability=solarize_probability,
            seed=seed,
            **kwargs,
        )
