"""The parent of the random layers for what is not an image: sequences, sound, tokens, tables."""

import math

import tensorflow as tf

from keras_sslmeta.layers.image_augmentation import ImageAugmentation


class SampleAugmentation(ImageAugmentation):
    """A random layer for batches of any rank: subclass it and write `augment`.

    It has the seed, the replicas' ranks, the saved state, the `training` flag that is true unless
    said otherwise and the tools to draw of `ImageAugmentation` (see there), and takes batches
    alone: without an axis of images to count by, a single sample cannot be told from a batch. In
    `tf.data`, map it after `batch`.

    A subclass sets `ranks`, those of the batches it takes, and `axes`, their names for the error.
    """

    ranks: tuple[int, ...] = (2, 3, 4)
    axes: str = "(batch, time), (batch, time, channels) or (batch, time, frequency, channels)"

    @classmethod
    def normal(cls, seed: tf.Tensor, shape, dtype="float32") -> tf.Tensor:
        """Standard normal numbers, the same in every dtype and, but for rounding, under XLA."""
        radius, angle = tf.unstack(cls.uniform(seed, tf.concat([[2], shape], axis=0), dtype=dtype))
        # Box and Muller's pair, of which one is enough; 1 - radius is never 0.
        return tf.sqrt(-2.0 * tf.math.log(1.0 - radius)) * tf.cos(2.0 * math.pi * angle)

    @classmethod
    def integers(cls, seed: tf.Tensor, shape, count: int | tf.Tensor) -> tf.Tensor:
        """Whole numbers from 0 to `count - 1`, int32; `count` may be a tensor, up to 2²⁴."""
        count = tf.cast(count, tf.float32)
        drawn = tf.floor(cls.uniform(seed, shape) * count)
        return tf.cast(tf.minimum(drawn, count - 1.0), tf.int32)  # the product may round up

    def call(self, inputs, training=True):
        inputs = tf.convert_to_tensor(inputs)
        output_shape = self.compute_output_shape(inputs.shape)
        outputs = inputs
        if training:
            working_dtype = "float64" if self.compute_dtype == "float64" else "float32"
            outputs = self.augment(tf.cast(inputs, working_dtype), self._next_seed())
        outputs = tf.cast(outputs, self.compute_dtype)
        outputs.set_shape(output_shape)
        return outputs

    def compute_output_shape(self, input_shape):
        if len(input_shape) not in self.ranks:
            raise ValueError(
                f"`inputs` must be a batch {self.axes}. Received: shape={tuple(input_shape)}"
            )
        return tuple(input_shape)
