"""Random scaling of time series (Um et al. 2017)."""

import keras
import tensorflow as tf

from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomScaling(SampleAugmentation):
    """Multiplies each series by a factor, `out = f · in` with `f ~ N(1, stddev²)`.

    Args:
        stddev: Standard deviation of the factor, at least 0. Default 0.1, the authors' code's.
        per_channel: Whether each channel has a factor of its own, as in the authors' code. Default
            False, one factor a series, as in the paper's text.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: series, `(batch, time, channels)`.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if an argument is not as above, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomScaling
    >>> series = numpy.ones((4, 100, 3), "float32")
    >>> RandomScaling(stddev=0.1, seed=0)(series).shape
    TensorShape([4, 100, 3])

    Reference: Um et al. 2017, Data Augmentation of Wearable Sensor Data for Parkinson's Disease
        Monitoring, section 3. https://arxiv.org/abs/1706.00527
    """

    ranks = (3,)
    axes = "(batch, time, channels)"

    def __init__(
        self,
        stddev: float = 0.1,
        per_channel: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        self.stddev = arguments.number_from_zero("stddev", stddev)
        self.per_channel = bool(per_channel)
        super().__init__(seed=seed, **kwargs)

    def augment(self, series: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        batch, _, channels = tf.unstack(tf.shape(series))
        shape = [batch, 1, channels if self.per_channel else 1]
        return series * (1.0 + self.stddev * self.normal(seed, shape, series.dtype))

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev, "per_channel": self.per_channel}
