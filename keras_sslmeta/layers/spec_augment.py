"""SpecAugment (Park et al. 2019): bands of time and of frequency masked in spectrograms."""

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class SpecAugment(SampleAugmentation):
    """Masks bands of time steps and bands of frequencies of each spectrogram.

    Each band along an axis of `size` has a width and a first position

        width ~ U{0, …, min(W, ⌊fraction · size⌋)},  first ~ U{0, …, size − width}

    with W the `time_width` or the `frequency_width`, drawn for each spectrogram and band; bands may
    overlap. `fraction` is `time_fraction` along time and 1 along frequency. (The paper's `first` is
    below `size − width`, which would never mask the last step.)

    Park et al. also warp time, first of all. That is left out: in their ablation it contributes
    least, and costs most (section 5).

    Args:
        time_masks: Bands of time steps. Default 2.
        time_width: Largest width of each, in steps. Default 100.
        frequency_masks: Bands of frequencies. Default 2.
        frequency_width: Largest width of each, in channels. Default 27.
        time_fraction: Largest width of a band of time steps as a fraction of all steps, in [0, 1]
            (the paper's p). Default 1.0. Short sounds want less: 0.2 is the paper's for
            Switchboard.
        fill: What takes the masked places: a number, or "mean" for the mean of each spectrogram
            (of each of its channels). Default 0.0: the paper's spectrograms are normalised to mean
            zero, where both are one.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    The defaults are the paper's policy LD, for LibriSpeech with 80 channels; of the others, LB has
    one band of each kind, and SM and SS have widths of 70, and of 15 and 27, at a fraction of 0.2
    (table 1).

    Call arguments:
        inputs: spectrograms, `(batch, time, frequency)` or `(batch, time, frequency, channels)`.

    Returns:
        Spectrograms of the same shape in the layer's compute dtype.

    Raises:
        ValueError: if an argument is not as above, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import SpecAugment
    >>> spectrograms = numpy.ones((4, 50, 16), "float32")
    >>> augmented = SpecAugment(time_width=10, frequency_width=4, seed=0)(spectrograms)
    >>> augmented.shape, bool((augmented.numpy() == 0).any())
    (TensorShape([4, 50, 16]), True)

    Reference: Park et al. 2019, SpecAugment, section 2 and table 1.
        https://arxiv.org/abs/1904.08779
    """

    ranks = (3, 4)
    axes = "(batch, time, frequency) or (batch, time, frequency, channels)"

    def __init__(
        self,
        time_masks: int = 2,
        time_width: int = 100,
        frequency_masks: int = 2,
        frequency_width: int = 27,
        time_fraction: float = 1.0,
        fill: float | str = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        self.time_masks = arguments.count("time_masks", time_masks, least=0)
        self.time_width = arguments.count("time_width", time_width, least=0)
        self.frequency_masks = arguments.count("frequency_masks", frequency_masks, least=0)
        self.frequency_width = arguments.count("frequency_width", frequency_width, least=0)
        self.time_fraction = image_arguments.number("time_fraction", time_fraction, 0.0, 1.0)
        if fill != "mean" and not arguments.is_number(fill):
            raise ValueError(f'`fill` must be a number or "mean". Received: fill={fill!r}')
        self.fill = fill if fill == "mean" else float(fill)
        super().__init__(seed=seed, **kwargs)

    def augment(self, spectrograms: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        time_seed, frequency_seed = self.split(seed)
        batch, time, frequency = tf.unstack(tf.shape(spectrograms)[:3])
        longest = tf.floor(self.time_fraction * tf.cast(time, tf.float32))
        longest = tf.minimum(longest, self.time_width)
        widest = tf.minimum(tf.cast(frequency, tf.float32), self.frequency_width)
        times = self._bands(time_seed, [batch, self.time_masks, 1], time, longest)
        frequencies = self._bands(
            frequency_seed, [batch, self.frequency_masks, 1], frequency, widest
        )
        masked = times[:, :, tf.newaxis] | frequencies[:, tf.newaxis, :]
        masked = masked[..., tf.newaxis] if spectrograms.shape.rank == 4 else masked
        fill = self.fill
        if fill == "mean":
            fill = tf.reduce_mean(spectrograms, axis=[1, 2], keepdims=True)
        return tf.where(masked, fill, spectrograms)

    def get_config(self):
        return {
            **super().get_config(),
            "time_masks": self.time_masks,
            "time_width": self.time_width,
            "frequency_masks": self.frequency_masks,
            "frequency_width": self.frequency_width,
            "time_fraction": self.time_fraction,
            "fill": self.fill,
        }

    def _bands(self, seed, shape, size, widest):
        """`(batch, size)`: what the bands, `shape` of them, cover."""
        width_seed, place_seed = self.split(seed)
        width = self.integers(width_seed, shape, widest + 1.0)
        first = self.integers(place_seed, shape, size - width + 1)
        position = tf.range(size)
        return tf.reduce_any((position >= first) & (position < first + width), axis=1)
