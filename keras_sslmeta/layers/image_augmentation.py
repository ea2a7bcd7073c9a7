"""The parent of the random image layers: ranks, dtypes and the `training` flag."""

import abc

import tensorflow as tf

from keras_sslmeta.layers.random_augmentation import RandomAugmentation


class ImageAugmentation(RandomAugmentation):
    """A random image layer: subclass it and write `augment`.

    The layer takes one image `(height, width, channels)` or a batch `(batch, height, width,
    channels)`, inside a model, in `tf.data.Dataset.map`, in eager code or compiled by XLA. Each
    call draws one seed, from which `augment` derives all that it needs, so equal seeds give equal
    images. Each replica of a `tf.distribute` strategy folds its rank into the seed, so replicas
    draw different numbers (Keras's own random layers, built under a strategy, repeat theirs on
    every replica).

    As in Keras's own augmentation layers `training` is true unless said otherwise: the layer
    augments when it is called by itself or in `tf.data`, and inside a model it follows the model's
    `training`, so `fit` augments while `evaluate` and `predict` give the images as they are.

    In `tf.data` the numbers repeat from run to run with `map(layer)`; with `num_parallel_calls`
    they depend on the order in which threads arrive, as for every layer with a seed. The seed's
    position is saved with the weights (Keras leaves it out), so a run that is resumed from a
    checkpoint draws what it would have drawn.

    Args:
        seed: Integer; None, the default, draws one that `keras.utils.set_random_seed` fixes.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Returns:
        The images in the layer's compute dtype, in the range of values that they came in (integers
        become floats, with no rescaling). The arithmetic is in float32 or wider.

    Raises:
        ValueError: at the first call, if the images have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import ImageAugmentation
    >>> class RandomInvert(ImageAugmentation):
    ...     def augment(self, images, seed):
    ...         return self.apply_to_some(seed, 0.5, 255.0 - images, images)
    >>> images = numpy.full((4, 8, 8, 3), 255, "uint8")
    >>> RandomInvert(seed=1)(images).shape
    TensorShape([4, 8, 8, 3])
    """

    @abc.abstractmethod
    def augment(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augments a batch, each image by its own draw; a pure function of its arguments.

        Args:
            images: `(batch, height, width, channels)`, float32 or float64. Batch, height and width
                may be unknown until the graph runs.
            seed: `(2,)`, int32, for `self.uniform` and `tf.random.stateless_*`; `self.split` it to
                draw more than once.

        Returns:
            The augmented batch.
        """

    def without_augmentation(self, images: tf.Tensor) -> tf.Tensor:
        """What `training=False` gives for a batch: the images themselves."""
        return images

    def check_images(self, shape: tuple[int | None, ...]) -> None:
        """Raises a ValueError for images that the layer cannot take; unknown sizes are None."""

    def call(self, images, training=True):
        images = tf.convert_to_tensor(images)
        output_shape = self.compute_output_shape(images.shape)
        is_batch = len(output_shape) == 4
        batch = tf.cast(images, self.working_dtype)
        batch = batch if is_batch else batch[tf.newaxis]
        if training:
            batch = self.augment(batch, self._next_seed())
        else:
            batch = self.without_augmentation(batch)
        outputs = tf.cast(batch if is_batch else batch[0], self.compute_dtype)
        outputs.set_shape(output_shape)
        return outputs

    def compute_output_shape(self, input_shape):
        if len(input_shape) not in (3, 4):
            raise ValueError(
                "`images` must be one image (height, width, channels) or a batch "
                f"(batch, height, width, channels). Received shape: {tuple(input_shape)}"
            )
        self.check_images(tuple(input_shape))
        return tuple(input_shape)
