"""Random solarisation: the bright pixels of some of the images inverted (Grill et al. 2020)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.planar_augmentation import PlanarAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomSolarization(PlanarAugmentation):
    """Inverts the values above a threshold in each image that is drawn with the probability.

    `out = image` below `low + threshold · (high - low)` and `low + high - image` from there on, for
    the `value_range` `(low, high)`: of bytes, what Pillow's `ImageOps.solarize` does at 128.

    It exists because `keras.layers.Solarization` (3.15) solarises every image and draws its
    threshold anew: it scales the upper end of `threshold_factor` to 255 and leaves the lower end
    as it is, so that `(0.5, 0.5)` is uniform from 0.5 to 127.5 and no setting gives one of 127.5.

    Args:
        probability: With which each image is solarised. Default 0.2, BYOL's for its second view.
        threshold: Fraction of `value_range` from which values are inverted, in [0, 1]. Default
            0.5, BYOL's.
        value_range: Lowest and highest value of the images' pixels. Default (0, 255), as Keras.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Returns:
        Images of the same shape in the layer's compute dtype, within `value_range` if they were.

    Raises:
        ValueError: if an argument is not as above.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomSolarization
    >>> images = numpy.array([0, 100, 200, 255], "uint8").reshape(1, 2, 2, 1)
    >>> RandomSolarization(probability=1.0)(images).numpy().ravel()
    array([  0., 100.,  55.,   0.], dtype=float32)

    Reference: Grill et al. 2020, Bootstrap Your Own Latent, appendix B.
        https://arxiv.org/abs/2006.07733
    """

    def __init__(
        self,
        probability: float = 0.2,
        threshold: float = 0.5,
        value_range: Sequence[float] = (0, 255),
        seed: int | None = None,
        **kwargs,
    ):
        self.probability = image_arguments.probability("probability", probability)
        self.threshold = image_arguments.number("threshold", threshold, 0.0, 1.0)
        self.value_range = image_arguments.value_range("value_range", value_range)
        super().__init__(seed=seed, **kwargs)

    def augment_planes(self, planes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        low, high = self.value_range
        is_dark = planes < low + self.threshold * (high - low)
        solarized = tf.where(is_dark, planes, low + high - planes)
        return self.apply_to_some(seed, self.probability, solarized, planes)

    def get_config(self):
        return {
            **super().get_config(),
            "probability": self.probability,
            "threshold": self.threshold,
            "value_range": self.value_range,
        }
