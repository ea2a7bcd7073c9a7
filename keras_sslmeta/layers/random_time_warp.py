"""Random distortion of time: samples run now faster, now slower."""

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments, time_axis
from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class RandomTimeWarp(SampleAugmentation):
    """Lets each series run at a speed that changes smoothly, from its first step to its last.

    The speed is drawn at `knots + 2` moments at equal distances, both ends among them, and linear between
    them:

        speed = exp(σ z),  z ~ N(0, 1)

    Step t shows the moment `(time − 1) · ∫₀ᵗ speed / ∫₀^{time − 1} speed`, interpolated linearly, so that the
    ends stay, and time never runs backwards. (The authors draw speeds from N(1, σ²) and put a cubic spline
    through them, which may.)

    Args:
        stddev: σ, at least 0. Default 0.2, the authors' code's.
        knots: Moments between the ends at which the speed is drawn. Default 4, the authors' code's.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: series, `(batch, time, channels)`, or spectrograms, `(batch, time, frequency, channels)`.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if an argument is not as above, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import RandomTimeWarp
    >>> series = numpy.arange(50.0)[None, :, None]
    >>> warped = RandomTimeWarp(stddev=0.5, seed=0)(series).numpy()[0, :, 0]
    >>> warped[[0, -1]].round(4).tolist(), bool((numpy.diff(warped) > 0).all())
    ([0.0, 49.0], True)

    Reference: Um et al. 2017, Data Augmentation of Wearable Sensor Data for Parkinson's Disease
        Monitoring, section 3 (time-warping). https://arxiv.org/abs/1706.00527
    """

    ranks = (3, 4)
    axes = "(batch, time, channels) or (batch, time, frequency, channels)"

    def __init__(self, stddev: float = 0.2, knots: int = 4, seed: int | None = None, **kwargs):
        self.stddev = image_arguments.number("stddev", stddev, 0.0)
        self.knots = arguments.count("knots", knots, least=0)
        super().__init__(seed=seed, **kwargs)

    def augment(self, series: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        batch, time = tf.unstack(tf.shape(series)[:2])
        last = tf.cast(time - 1, series.dtype)
        drawn = self.normal(seed, [batch, self.knots + 2], series.dtype)
        places = tf.linspace(tf.zeros([], series.dtype), self.knots + 1.0, time)
        places = tf.repeat(places[tf.newaxis], batch, axis=0)
        speed = time_axis.read_at(tf.exp(self.stddev * drawn)[..., tf.newaxis], places)[..., 0]
        passed = tf.cumsum((speed[:, :-1] + speed[:, 1:]) / 2, axis=1)
        moments = last * passed / passed[:, -1:]
        moments = tf.concat([tf.zeros([batch, 1], series.dtype), moments], axis=1)
        return time_axis.read_at(series, moments)

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev, "knots": self.knots}
