"""The parent of the policies that are SimCLR's with less colour jitter and solarisation after it."""

from collections.abc import Sequence

import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.random_solarization import RandomSolarization
from keras_sslmeta.layers.sim_clr_augmentation import SimCLRAugmentation


class SolarizingAugmentation(SimCLRAugmentation):
    """`SimCLRAugmentation` with half of its saturation, and solarisation at the end.

    Brightness and contrast are jittered by 0.8 × `strength`, saturation by 0.4 × `strength` and hue
    by 0.2 × `strength`: at 0.5, BYOL's 0.4, 0.4, 0.2 and 0.1.
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
        solarize_probability: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        self.solarize_probability = image_arguments.probability(
            "solarize_probability", solarize_probability
        )
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
        self.color_jitter.saturation = 0.4 * self.strength
        # A function of this layer's seed, as the parent's parts.
        self.solarization = RandomSolarization(
            self.solarize_probability, value_range=self.value_range, seed=0
        )

    def build(self, input_shape):
        super().build(input_shape)
        self.solarization.build(self.crop.compute_output_shape((None, *input_shape[-3:])))

    def augment_planes(self, planes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        parent_seed, solarize_seed = self.split(seed)
        planes = super().augment_planes(planes, parent_seed)
        if self.solarize_probability:
            planes = self.solarization.augment_planes(planes, solarize_seed)
        return planes

    def get_config(self):
        return {**super().get_config(), "solarize_probability": self.solarize_probability}
