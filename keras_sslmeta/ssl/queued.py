"""`Queued`: what methods share that keep a queue of keys."""

import tensorflow as tf

from keras_sslmeta.layers.memory_queue import MemoryQueue
from keras_sslmeta.ssl.two_view import TwoViewModel


class Queued(TwoViewModel):
    """A method with a `queue` of `queue_size` keys of the projector's dimensions.

    It makes the queue with the heads, and refuses batches that hold more samples than it has places.
    """

    queue_size: int

    def build_heads(self, features):
        dim = super().build_heads(features)
        self.queue = MemoryQueue(self.queue_size, dim=dim, name="queue")
        return dim

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`; `sample_weight` works without labels too."""
        try:
            return super().fit(*args, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            if "A queue of size" not in str(error):
                raise
            raise self._batch_too_large("more") from error

    def check_batch(self, samples):
        """Refuses batches that are known to be larger than the queue."""
        super().check_batch(samples)
        if samples is not None and samples > self.queue_size:
            raise self._batch_too_large(samples)

    def _batch_too_large(self, samples):
        return ValueError(
            "`queue_size` must be at least the number of samples of a global batch: make it larger, or "
            f"the batch smaller. Received: queue_size={self.queue_size} and {samples} samples a batch"
        )

    def get_config(self):
        return {**super().get_config(), "queue_size": self.queue_size}
