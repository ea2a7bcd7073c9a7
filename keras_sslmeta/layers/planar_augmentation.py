"""The parent of the image layers that work channel by channel."""

import abc

import tensorflow as tf

from keras_sslmeta.layers.image_augmentation import ImageAugmentation


class PlanarAugmentation(ImageAugmentation):
    """An augmentation that works on planes `(batch, channels, height, width)`.

    Within it each channel is contiguous, which makes colour operations faster (the hue twice) and
    resampling two matrix multiplications; layers that are built from others stay in it throughout.
    """

    @abc.abstractmethod
    def augment_planes(self, planes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """As `augment`, on planes."""

    def augment(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        planes = tf.transpose(images, [0, 3, 1, 2])
        return tf.transpose(self.augment_planes(planes, seed), [0, 2, 3, 1])
