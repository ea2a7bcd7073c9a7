"""Random time shift: each sequence earlier or later."""

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.sample_augmentation import SampleAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomTimeShift(SampleAugmentation):
    """Shifts each sample in time by a whole number of steps, with zeros or its other end moving in.

    `out[t] = in[t - s]` with `s` uniform in `{-m, …, m}` and `m = ⌊max_shift · time⌋`.

    Args:
        max_shift: Largest shift as a fraction of the steps, in [0, 1]. Default 0.1, of TensorFlow's
            speech commands example (100 ms of a second).
        wrap: Whether what leaves at one end enters at the other. Default False: zeros enter.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: `(batch, time)`, `(batch, time, channels)` or `(batch, time, frequency, channels)`.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if `max_shift` is not as above, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomTimeShift
    >>> waveforms = numpy.arange(1, 9, dtype="float32")[None]
    >>> shifted = RandomTimeShift(0.5, wrap=True, seed=0)(waveforms)
    >>> sorted(shifted.numpy()[0]) == list(range(1, 9))
    True
    """

    def __init__(
        self, max_shift: float = 0.1, wrap: bool = False, seed: int | None = None, **kwargs
    ):
        self.max_shift = image_arguments.number("max_shift", max_shift, 0.0, 1.0)
        self.wrap = bool(wrap)
        super().__init__(seed=seed, **kwargs)

    def augment(self, samples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        batch, time = tf.unstack(tf.shape(samples)[:2])
        most = tf.cast(tf.floor(self.max_shift * tf.cast(time, tf.float32)), tf.int32)
        shift = self.integers(seed, [batch, 1], 2 * most + 1) - most
        source = tf.range(time) - shift
        shifted = tf.gather(samples, tf.math.floormod(source, time), axis=1, batch_dims=1)
        if self.wrap:
            return shifted
        inside = (source >= 0) & (source < time)
        inside = tf.reshape(inside, [batch, time, *[1] * (samples.shape.rank - 2)])
        return tf.where(inside, shifted, tf.zeros([], samples.dtype))

    def get_config(self):
        return {**super().get_config(), "max_shift": self.max_shift, "wrap": self.wrap}
