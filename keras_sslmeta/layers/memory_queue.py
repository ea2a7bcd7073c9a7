"""`MemoryQueue`: keys of earlier batches (He et al. 2020; with labels Wang et al. 2020)."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, cross_replica, label_ids, unit_vectors


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class MemoryQueue(keras.layers.Layer):
    """First-in-first-out memory of key embeddings: MoCo's queue, and with labels a cross-batch memory.

    A call returns what the memory held **before** this batch, so that keys never meet themselves; in
    training it then takes in the keys of all replicas, in place of the oldest. The places form a ring:
    a batch that reaches the last one goes on at the first, and no key is lost there (lightly's memory bank
    drops what does not fit). Order among the returned keys means nothing.

    Keys that are not finite are left out, and what their places held stays. The others are stored without
    gradient, in float32 (float64 under a float64 policy), the same on every
    replica. Places that have not been filled hold random unit vectors (MoCo), which serve as negatives.
    With labels, each such place has a label that is negative and smaller than all in this batch,
    so that it is never a positive of one of them; others may be negative too.

    Args:
        size: number of keys held, a positive integer, at least the global batch (MoCo: 65,536).
        normalize: whether keys are divided by their L2 norm. Defaults to True (MoCo).
        dim: length of a key. With it the queue has its variables at once, and not only after its first
            call: what a model needs that calls it in a step of training (`compute_loss`, `train_step`), to
            be saved, loaded and trained on replicas. Defaults to None.
        labelled: with `dim`, whether keys come with labels. Defaults to False.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        keys: `(batch, dim)`.
        labels: one integer for each key, `(batch,)`, kept exactly, or None. With labels always or never.
        training: whether the keys are taken in.

    Returns:
        The keys held before `(size, dim)`, as they are stored, also in mixed precision; with labels a
        tuple of them and their labels, `(size,)` in int64. Compare these with labels in int64: a shorter
        type cannot hold all of them.

    Raises:
        ValueError: if `size` is not a positive integer; if `keys` are of another rank, or known to be
            more than `size` at once; if `labels` are floats or strings, or missing where they were there
            before, or the reverse. Where the number of keys is known in the graph only (on replicas
            too), too many raise an InvalidArgumentError; under XLA, which drops such checks, the
            last `size` keys are kept.

    Attributes:
        filled: number of places that have been filled, a scalar int64 tensor.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> queue = ksm.layers.MemoryQueue(6)
    >>> keys = np.eye(4, dtype="float32")
    >>> first, labels = queue(keys, labels=np.array([7, 7, 8, 9]), training=True)
    >>> first.shape, labels.numpy().tolist()
    (TensorShape([6, 4]), [-1, -1, -1, -1, -1, -1])
    >>> int(queue.filled)
    4
    >>> queue(keys, labels=np.array([7, 7, 8, 9]))[1].numpy().tolist()
    [7, 7, 8, 9, -1, -1]

    Reference:
        He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
        CVPR 2020, Sec. 3.2 and Algorithm 1. https://arxiv.org/abs/1911.05722
        Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020, Sec. 3.3.
        https://arxiv.org/abs/1912.06798
    """

    def __init__(
        self,
        size: int,
        normalize: bool = True,
        dim: int | None = None,
        labelled: bool = False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.size = arguments.count("size", size)
        self.normalize = bool(normalize)
        self.dim = None if dim is None else arguments.count("dim", dim)
        self.labelled = bool(labelled)
        if self.dim is not None:
            self.build((None, self.dim), (None,) if self.labelled else None)

    def build(self, keys_shape, labels_shape=None):
        if cross_replica.replica_context() is not None:
            raise ValueError(
                "A queue cannot make its variables within a step on replicas: give it `dim`, and "
                "`labelled=True` if keys have labels, or call it once under the strategy's scope first. "
                f"Received: dim={self.dim}"
            )
        if len(keys_shape) != 2 or keys_shape[1] is None:
            raise ValueError(
                "`keys` must be (batch, dim), with a static dimension: a queue holds one view. "
                f"Received: shape={tuple(keys_shape)}"
            )
        # Every replica assigns the same values.
        settings = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}
        self.keys = self.add_weight(
            name="keys",
            shape=(self.size, keys_shape[1]),
            initializer=_RandomUnitVectors(stddev=1.0),
            dtype="float64" if self.compute_dtype == "float64" else "float32",
            **settings,
        )
        self.enqueued = self.add_weight(
            name="enqueued", shape=(), initializer="zeros", dtype="int64", **settings
        )
        self.labels = None
        if labels_shape is not None:
            self.labels = self.add_weight(
                name="labels", shape=(self.size,), initializer="zeros", dtype="int64", **settings
            )
        self.built = True

    @property
    def filled(self) -> tf.Tensor:
        """Number of places that have been filled."""
        if not self.built:
            return tf.constant(0, tf.int64)
        return tf.minimum(tf.convert_to_tensor(self.enqueued), self.size)

    def call(self, keys, labels=None, training=None):
        held = tf.convert_to_tensor(self.keys)
        keys = tf.stop_gradient(tf.cast(keys, held.dtype))
        labels, held_labels = self._labels(keys, labels)
        if training:
            # Gather first: replicas must take in the same keys.
            keys = cross_replica.gather(unit_vectors.normalize(keys) if self.normalize else keys)
            with tf.control_dependencies(self._check_number(keys)):
                self._enqueue(keys, labels)
        return held if held_labels is None else (held, held_labels)

    def _labels(self, keys, labels):
        """The labels of all replicas' keys, and those held so far; None where there are none."""
        if (labels is None) != (self.labels is None):
            raise ValueError(
                "`labels` must come with every batch or with none, as the first call did or `labelled` "
                f"says. Received: labels={labels!r}"
            )
        if labels is None:
            return None, None
        labels = label_ids.check("labels", labels, keys.shape[0])
        if labels.dtype == tf.string:
            raise ValueError("`labels` of a queue must be integers. Received: dtype=string")
        labels = cross_replica.gather(tf.cast(labels, tf.int64))
        nobody = tf.minimum(tf.reduce_min(labels), 0) - 1
        is_filled = tf.range(self.size, dtype=tf.int64) < self.filled
        return labels, tf.where(is_filled, tf.convert_to_tensor(self.labels), nobody)

    def _enqueue(self, keys, labels):
        count = tf.shape(keys, out_type=tf.int64)[0]
        # Only if there are more than there is room for; the same place twice would be undefined.
        dropped = tf.maximum(count - self.size, 0)
        enqueued = tf.convert_to_tensor(self.enqueued)
        places = (enqueued + tf.range(dropped, count))[:, None] % self.size
        # A step that overflows half precision is skipped; its keys would make all later ones overflow.
        is_sound = tf.reduce_all(tf.math.is_finite(keys), axis=1)[dropped:]
        held = tf.convert_to_tensor(self.keys)
        rows = tf.where(is_sound[:, None], keys[dropped:], tf.gather_nd(held, places))
        self.keys.assign(tf.tensor_scatter_nd_update(held, places, rows))
        if self.labels is not None:
            held = tf.convert_to_tensor(self.labels)
            # Places that nothing has filled hold no label yet.
            was_filled = places[:, 0] < tf.minimum(enqueued, self.size)
            before = tf.where(was_filled, tf.gather_nd(held, places), tf.int64.min)
            rows = tf.where(is_sound, labels[dropped:], before)
            self.labels.assign(tf.tensor_scatter_nd_update(held, places, rows))
        self.enqueued.assign(enqueued + count)

    def _check_number(self, keys):
        message = (
            f"A queue of size {self.size} must hold at least the keys of one global batch: make `size` "
            "larger, or the batch smaller. Received: keys="
        )
        if keys.shape[0] is None:
            count = tf.shape(keys)[0]
            return [tf.debugging.Assert(count <= self.size, [message, count])]
        if keys.shape[0] > self.size:
            raise ValueError(f"{message}{keys.shape[0]}")
        return []

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "normalize": self.normalize,
            "dim": self.dim,
            "labelled": self.labelled,
        }


class _RandomUnitVectors(keras.initializers.RandomNormal):
    """Directions uniform on the sphere; one seed, however often a strategy asks."""

    def __call__(self, shape, dtype=None):
        return unit_vectors.normalize(super().__call__(shape, dtype))
