"""Random gain: each sound louder or softer."""

import math

import keras
import tensorflow as tf

from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomGain(SampleAugmentation):
    """Multiplies each sample by `10^(g / 20)`, with `g` uniform in `[-max_db, max_db]` decibels.

    It is for waveforms and for spectrograms of amplitudes. Nothing is clipped.

    Args:
        max_db: Largest change of the level in decibels, at least 0. Default 12.0, the range of
            audiomentations' `Gain`.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: `(batch, time)`, `(batch, time, channels)` or `(batch, time, frequency, channels)`.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if `max_db` is not as above, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomGain
    >>> waveforms = numpy.ones((4, 1000), "float32")
    >>> louder = RandomGain(max_db=6.0, seed=0)(waveforms).numpy()
    >>> bool(0.5 < louder.min() and louder.max() < 2.0)
    True
    """

    def __init__(self, max_db: float = 12.0, seed: int | None = None, **kwargs):
        self.max_db = arguments.number_from_zero("max_db", max_db)
        super().__init__(seed=seed, **kwargs)

    def augment(self, samples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        shape = [tf.shape(samples)[0], *[1] * (samples.shape.rank - 1)]
        level = self.uniform(seed, shape, -self.max_db, self.max_db, samples.dtype)
        return samples * tf.exp(level * (math.log(10.0) / 20.0))

    def get_config(self):
        return {**super().get_config(), "max_db": self.max_db}
