"""The two augmentations of BYOL (Grill et al. 2020, appendix B), which Barlow Twins shares."""

from collections.abc import Sequence

import keras

from keras_sslmeta.layers.solarizing_augmentation import SolarizingAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class BYOLAugmentation(SolarizingAugmentation):
    """The augmentation of one of BYOL's views; `BYOLAugmentation.pair` makes both. Barlow Twins' too.

    The two views of BYOL differ in blur and solarisation alone:

    | | blur | solarisation |
    |---|---|---|
    | first view, the defaults here | 1.0 | 0.0 |
    | second view | 0.1 | 0.2 |

    The rest is in this order: a random resized crop to `image_size`; a horizontal flip of half of
    the images; with `color_jitter_probability`, brightness and contrast of 0.8 × `strength`,
    saturation of 0.4 × `strength` and hue of 0.2 × `strength` (`RandomColorJitter`); with
    `grayscale_probability`, grey; blur by `RandomGaussianBlur`; values clipped to `value_range`;
    solarisation by `RandomSolarization`. Against SimCLR it has half of the jitter, a quarter of
    the saturation, and solarisation.

    Barlow Twins (Zbontar et al. 2021, section 2.2) takes this pair as it is, so it has no class of
    its own. The papers resize bicubically and shuffle the steps of the jitter; here resizing is
    bilinear and the order is fixed, as in the parts (see `RandomResizedCrop`, `RandomColorJitter`).

    Images of one channel skip saturation, hue and grey. With `training=False` images are only
    brought to `image_size`.

    Args:
        image_size: Size of the output in pixels: an integer, or (height, width).
        value_range: Lowest and highest value of the images' pixels. Default (0, 255), as Keras.
        crop_scale: Smallest and largest fraction of the area to crop. Default (0.08, 1.0).
        strength: Of the colour jitter, in [0, 2.5], on SimCLR's scale. Default 0.5, which is BYOL's
            0.4, 0.4, 0.2 and 0.1.
        flip: Whether to flip half of the images. Default True; digits and letters want False.
        color_jitter_probability: Default 0.8.
        grayscale_probability: Default 0.2.
        blur_probability: Default 1.0; images as small as CIFAR's want 0, as in SimCLR.
        solarize_probability: Default 0.0.
        seed: Integer, or None for one drawn from Keras's global seed. Two layers with one seed
            would crop alike: `pair` gives them two.
        **kwargs: Keras's own, such as `name` and `dtype`.

    The defaults are those of Grill et al. for ImageNet and their first view.

    Returns:
        `(batch, *image_size, channels)`, or `(*image_size, channels)` for a single image, in the
        layer's compute dtype, within `value_range`.

    Raises:
        ValueError: as `SimCLRAugmentation`.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import BYOLAugmentation
    >>> from keras_sslmeta.data import two_views
    >>> images = numpy.zeros((8, 32, 32, 3), "uint8")
    >>> pair = BYOLAugmentation.pair((32, 32), seed=0)
    >>> [layer.solarize_probability for layer in pair]
    [0.0, 0.2]
    >>> next(iter(two_views(images, augmentation=pair, batch_size=4))).shape
    TensorShape([4, 2, 32, 32, 3])

    References:
        Grill et al. 2020, Bootstrap Your Own Latent, appendix B and table 6.
        https://arxiv.org/abs/2006.07733
        Zbontar et al. 2021, Barlow Twins. https://arxiv.org/abs/2103.03230
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
        blur_probability: float = 1.0,
        solarize_probability: float = 0.0,
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

    @classmethod
    def pair(
        cls,
        image_size: int | Sequence[int],
        blur_probability: Sequence[float] = (1.0, 0.1),
        solarize_probability: Sequence[float] = (0.0, 0.2),
        seed: int | None = None,
        **kwargs,
    ) -> "list[BYOLAugmentation]":
        """The augmentations of both views, for `augmentation=` of a model or of `two_views`.

        Args:
            image_size: As above.
            blur_probability: Of the first and of the second view. Default (1.0, 0.1); (0.0, 0.0)
                for images as small as CIFAR's.
            solarize_probability: Of the first and of the second view. Default (0.0, 0.2).
            seed: Integer, the second view's being the next one; or None.
            **kwargs: Of the layer, the same for both views.

        Returns:
            A list of two layers.

        Raises:
            ValueError: if the probabilities are not two of each.
        """
        if len(blur_probability) != 2 or len(solarize_probability) != 2:
            raise ValueError(
                "`blur_probability` and `solarize_probability` must be pairs, of the first view and "
                f"of the second. Received: blur_probability={blur_probability!r}, "
                f"solarize_probability={solarize_probability!r}"
            )
        seeds = [None, None] if seed is None else [seed, seed + 1]
        return [
            cls(
                image_size,
                blur_probability=blur,
                solarize_probability=solarize,
                seed=view_seed,
                **kwargs,
            )
            for blur, solarize, view_seed in zip(
                blur_probability, solarize_probability, seeds, strict=True
            )
        ]
