"""Random crop of a time series, resized back to all of its steps."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments, time_axis
from keras_sslmeta.layers.sample_augmentation import SampleAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomTimeCrop(SampleAugmentation):
    """Cuts a random stretch out of each series and stretches it to the series' length.

    The stretch covers a fraction of the time that is uniform in `scale`, at a uniform place, both
    to fractions of a step; its values are interpolated linearly at equal distances from its first
    moment to its last. So the series also slows down by that fraction.

    Args:
        scale: Smallest and largest fraction of the time to keep, in (0, 1]. Default (0.5, 1.0),
            ours.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: series, `(batch, time, channels)`, or spectrograms, `(batch, time, frequency, channels)`.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if `scale` is not as above, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomTimeCrop
    >>> series = numpy.linspace(0.0, 1.0, 50)[None, :, None]
    >>> cropped = RandomTimeCrop(scale=(0.5, 0.5), seed=0)(series).numpy()
    >>> round(float(cropped[0, -1, 0] - cropped[0, 0, 0]), 4)
    0.5

    Reference: Um et al. 2017, Data Augmentation of Wearable Sensor Data for Parkinson's Disease
        Monitoring, section 3 (cropping). https://arxiv.org/abs/1706.00527
    """

    ranks = (3, 4)
    axes = "(batch, time, channels) or (batch, time, frequency, channels)"

    def __init__(self, scale: Sequence[float] = (0.5, 1.0), seed: int | None = None, **kwargs):
        self.scale = image_arguments.positive_range("scale", scale, maximum=1.0)
        super().__init__(seed=seed, **kwargs)

    def augment(self, series: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        scale_seed, place_seed = self.split(seed)
        batch, time = tf.unstack(tf.shape(series)[:2])
        last = tf.cast(time - 1, series.dtype)
        fraction = self.uniform(scale_seed, [batch, 1], *self.scale, series.dtype)
        start = (1.0 - fraction) * last * self.uniform(place_seed, [batch, 1], dtype=series.dtype)
        moment = start + fraction * tf.range(last + 1.0)
        return time_axis.read_at(series, moment)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}
