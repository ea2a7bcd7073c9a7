"""The parent of the random layers for what is not an image: sequences, sound, tokens, tables."""

import tensorflow as tf

from keras_sslmeta.layers.random_augmentation import RandomAugmentation


class SampleAugmentation(RandomAugmentation):
    """A random layer for batches of any rank: subclass it and write `augment`.

    It has the seed, the replicas' ranks, the saved state, the `training` flag that is true unless
    said otherwise and the tools to draw of `ImageAugmentation` (see there), and takes batches
    alone: without an axis of images to count by, a single sample cannot be told from a batch. In
    `tf.data`, map it after `batch`.

    A subclass sets `ranks`, those of the batches it takes, and `axes`, their names for the error.
    """

    ranks: tuple[int, ...] = (2, 3, 4)
    axes: str = "(batch, time), (batch, time, channels) or (batch, time, frequency, channels)"

    def call(self, inputs, training=True):
        inputs = tf.convert_to_tensor(inputs)
        output_shape = self.compute_output_shape(inputs.shape)
        outputs = inputs
        if training:
            outputs = self.augment(tf.cast(inputs, self.working_dtype), self._next_seed())
        outputs = tf.cast(outputs, self.compute_dtype)
        outputs.set_shape(output_shape)
        return outputs

    def compute_output_shape(self, input_shape):
        if len(input_shape) not in self.ranks:
            raise ValueError(
                f"`inputs` must be a batch {self.axes}. Received: shape={tuple(input_shape)}"
            )
        return tuple(input_shape)
