"""The parent of all random layers for views: the seed, the replicas' ranks, the saved state, and draws."""

import abc
import math

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica
from keras_sslmeta.mechanisms.random_state import SavedRandomState


class RandomAugmentation(SavedRandomState, abc.ABC):
    """What `ImageAugmentation` and `SampleAugmentation` share; subclass one of these.

    Each call draws one seed, from which `augment` derives all that it needs, so equal seeds give equal
    views, inside a model, in `tf.data`, in eager code or compiled by XLA. Each replica of a
    `tf.distribute` strategy folds its rank into the seed, so replicas draw different numbers (Keras's own
    random layers, built under a strategy, repeat theirs on every replica). The seed's position is saved
    with the weights (Keras leaves it out), so a run that is resumed from a checkpoint draws what it would
    have drawn.
    """

    def __init__(self, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @abc.abstractmethod
    def augment(self, inputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augments a batch, each sample by its own draw; a pure function of its arguments.

        Args:
            inputs: the batch, float32 or float64. Its sizes may be unknown until the graph runs.
            seed: `(2,)`, int32, for `self.uniform` and `tf.random.stateless_*`; `self.split` it to
                draw more than once.

        Returns:
            The augmented batch.
        """

    @staticmethod
    def split(seed: tf.Tensor, count: int = 2) -> list[tf.Tensor]:
        """Independent seeds to draw from."""
        return tf.unstack(_without_sign(tf.random.split(_without_sign(seed), count)))

    @staticmethod
    def uniform(
        seed: tf.Tensor, shape, minimum: float = 0.0, maximum: float = 1.0, dtype="float32"
    ) -> tf.Tensor:
        """Numbers uniform in `[minimum, maximum)`, the same in every dtype and under XLA.

        `tf.random.stateless_uniform` gives other floats when XLA compiles it, but equal integers.
        """
        bits = tf.random.stateless_uniform(shape, _without_sign(seed), None, None, tf.uint32)
        fraction = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), dtype) * 2**-24
        return minimum + (maximum - minimum) * fraction

    @classmethod
    def apply_to_some(
        cls, seed: tf.Tensor, probability: float, augmented: tf.Tensor, inputs: tf.Tensor
    ) -> tf.Tensor:
        """Takes each sample from `augmented` with the probability, and from `inputs` otherwise."""
        draw = cls.uniform(seed, tf.shape(inputs)[:1])
        # This op selects whole samples; `tf.where` broadcasts the mask, three times slower on a CPU.
        return tf.raw_ops.Select(condition=draw < probability, x=augmented, y=inputs)

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

    @property
    def working_dtype(self) -> str:
        """Of `augment`: float32, or wider where the layer's is."""
        return "float64" if self.compute_dtype == "float64" else "float32"

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}

    def _next_seed(self) -> tf.Tensor:
        # The generator counts in int64, and XLA's random ops want int32.
        seed = tf.cast(tf.math.floormod(self.seed_generator.next(), tf.int32.max), tf.int32)
        return _without_sign(tf.random.fold_in(seed, cross_replica.replica_id()))


def _without_sign(seed) -> tf.Tensor:
    # XLA and TensorFlow's own kernels (2.21) draw different bits from a negative seed.
    return tf.bitwise.bitwise_and(tf.cast(seed, tf.int32), tf.int32.max)
