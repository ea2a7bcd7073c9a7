"""The augmentation of MoCo v2 (Chen et al. 2020b), which SimSiam shares."""

from collections.abc import Sequence

import keras

from keras_sslmeta.layers.sim_clr_augmentation import SimCLRAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class MoCoV2Augmentation(SimCLRAugmentation):
    """`SimCLRAugmentation` with half of the jitter and larger crops. SimSiam's too.

    Crops have a fifth of the area at least, and brightness, contrast and saturation are jittered by
    0.4 and hue by 0.1, where SimCLR has 0.08, 0.8 and 0.2. SimSiam (Chen & He 2021) takes these
    figures as they are, so it has no class of its own. The authors flip last, which gives the same
    distribution.

    Args:
        image_size: Size of the output in pixels: an integer, or (height, width).
        value_range: Lowest and highest value of the images' pixels. Default (0, 255), as Keras.
        crop_scale: Smallest and largest fraction of the area to crop. Default (0.2, 1.0).
        strength: Of the colour jitter, in [0, 2.5], on SimCLR's scale. Default 0.5.
        flip: Whether to flip half of the images. Default True; digits and letters want False.
        color_jitter_probability: Default 0.8.
        grayscale_probability: Default 0.2.
        blur_probability: Default 0.5; SimSiam uses 0 for CIFAR-10 (its appendix D).
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    The defaults are those of the authors' code for ImageNet (`main_moco.py --aug-plus` and
    `main_simsiam.py`).

    Returns:
        `(batch, *image_size, channels)`, or `(*image_size, channels)` for a single image, in the
        layer's compute dtype, within `value_range`.

    Raises:
        ValueError: as `SimCLRAugmentation`.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import MoCoV2Augmentation
    >>> images = numpy.zeros((4, 32, 32, 3), "uint8")
    >>> MoCoV2Augmentation((32, 32), blur_probability=0.0, seed=0)(images).shape
    TensorShape([4, 32, 32, 3])

    References:
        Chen, Fan, Girshick, He 2020, Improved Baselines with Momentum Contrastive Learning,
        section 3. https://arxiv.org/abs/2003.04297
        Chen, He 2021, Exploring Simple Siamese Representation Learning, section 3 and appendix D.
        https://arxiv.org/abs/2011.10566
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        value_range: Sequence[float] = (0, 255),
        crop_scale: Sequence[float] = (0.2, 1.0),
        strength: float = 0.5,
        flip: bool = True,
        color_jitter_probability: float = 0.8,
        grayscale_probability: float = 0.2,
        blur_probability: float = 0.5,
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
            seed=seed,
            **kwargs,
        )
