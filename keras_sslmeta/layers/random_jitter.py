"""Random jitter: noise on every value (Um et al. 2017)."""

import keras
import tensorflow as tf

from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomJitter(SampleAugmentation):
    """Adds Gaussian noise, `out = in + stddev · ε` with `ε ~ N(0, 1)` for every value.

    For time series, waveforms, spectrograms and rows of a table. It exists beside
    `keras.layers.GaussianNoise` because that one (3.15) refuses a `stddev` above 1 (sound in 16
    bits wants more), does nothing in `tf.data` unless told to train, adds the same noise on every
    replica, and forgets where its random numbers stood when a model is saved.

    Args:
        stddev: Standard deviation of the noise, in the unit of the data, at least 0. Default 0.05,
            the authors', for accelerations.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: `(batch, …)`, of rank 2 to 4.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if `stddev` is not as above, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomJitter
    >>> series = numpy.zeros((4, 100, 3), "float32")
    >>> RandomJitter(stddev=0.05, seed=0)(series).shape
    TensorShape([4, 100, 3])

    Reference: Um et al. 2017, Data Augmentation of Wearable Sensor Data for Parkinson's Disease
        Monitoring, section 3. https://arxiv.org/abs/1706.00527
    """

    axes = "(batch, …) of rank 2 to 4"

    def __init__(self, stddev: float = 0.05, seed: int | None = None, **kwargs):
        self.stddev = arguments.number_from_zero("stddev", stddev)
        super().__init__(seed=seed, **kwargs)

    def augment(self, samples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return samples + self.stddev * self.normal(seed, tf.shape(samples), samples.dtype)

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev}
