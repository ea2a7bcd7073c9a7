"""Random permutation of the segments of time series (Um et al. 2017)."""

import keras
import tensorflow as tf

from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomPermutation(SampleAugmentation):
    """Cuts each series into equal segments and puts them in a random order.

    The number of segments is uniform in `{1, …, max_segments}` for each series; with one, and where
    the random order is the old one, the series stays. Where the number does not divide the steps,
    segments differ by one step. No value is lost and none repeated.

    Args:
        max_segments: Largest number of segments. Default 5, as TS-TCC's code for Epilepsy (8 and 12 for
            its HAR and Sleep-EDF; its numbers stay below, and it cuts at random places).
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: series, `(batch, time, channels)`.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if `max_segments` is not a positive integer, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomPermutation
    >>> series = numpy.arange(12.0).reshape(1, 12, 1)
    >>> permuted = RandomPermutation(max_segments=4, seed=0)(series)
    >>> sorted(permuted.numpy().ravel()) == list(range(12))
    True

    References:
        Um et al. 2017, Data Augmentation of Wearable Sensor Data for Parkinson's Disease
        Monitoring, section 3. https://arxiv.org/abs/1706.00527
        Eldele et al. 2021, Time-Series Representation Learning via Temporal and Contextual
        Contrasting, section 3.1. https://arxiv.org/abs/2106.14112
    """

    ranks = (3,)
    axes = "(batch, time, channels)"

    def __init__(self, max_segments: int = 5, seed: int | None = None, **kwargs):
        self.max_segments = arguments.count("max_segments", max_segments)
        super().__init__(seed=seed, **kwargs)

    def augment(self, series: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        number_seed, order_seed = self.split(seed)
        batch, time, _ = tf.unstack(tf.shape(series))
        number = 1 + self.integers(number_seed, [batch, 1], self.max_segments)
        segment = tf.range(self.max_segments)
        first = tf.minimum(segment * time // number, time)  # of each segment, `(batch, segments)`
        length = tf.minimum((segment + 1) * time // number, time) - first
        # Segments beyond the number are empty, so that it doesn't matter where they go.
        place = self.uniform(order_seed, [batch, self.max_segments])
        comes_before = place[:, tf.newaxis, :] < place[:, :, tf.newaxis]
        new_first = tf.reduce_sum(
            tf.where(comes_before, length[:, tf.newaxis, :], 0), axis=-1, keepdims=True
        )
        offset = tf.range(time) - new_first  # of each step within each segment's new place
        is_inside = (offset >= 0) & (offset < length[:, :, tf.newaxis])
        source = tf.reduce_sum(tf.where(is_inside, first[:, :, tf.newaxis] + offset, 0), axis=1)
        return tf.gather(series, source, axis=1, batch_dims=1)

    def get_config(self):
        return {**super().get_config(), "max_segments": self.max_segments}
