"""`TripletLoss`: what the losses on triplets share, their distances and their margin."""

import keras
import tensorflow as tf

from keras_sslmeta.losses import labelled_pairs_loss
from keras_sslmeta.mechanisms import arguments, pairwise_distances


class TripletLoss(labelled_pairs_loss.LabelledPairsLoss):
    """Parent of losses on triplets of an anchor, a positive and a negative.

    A subclass writes `terms(compared, positive, negative)` on the distances.

    Args:
        margin: a number from 0.
        distance_metric: `"L2"`, `"squared-L2"`, `"angular"`, or a function from all embeddings of the
            global batch `(N, dim)` to their distances `(N, N)`.
        normalize: whether embeddings are divided by their L2 norm first.
        gather: whether embeddings are compared with those of all replicas.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the loss's result and inputs.
    """

    def __init__(self, margin, distance_metric, normalize, gather, reduction, name, dtype=None):
        super().__init__(normalize, gather, reduction, name, dtype)
        self.margin = arguments.number_from_zero("margin", margin)
        self.distance_metric = pairwise_distances.check("distance_metric", distance_metric)

    def compare(self, rows, keys, is_self):
        metric = self.distance_metric
        assert isinstance(metric, str)  # Functions are called on all embeddings at once.
        return pairwise_distances.distances(metric, rows, keys, is_self)

    def sums_and_counts(self, rows, keys, own, ids, key_ids):
        if not callable(self.distance_metric):
            return super().sums_and_counts(rows, keys, own, ids, key_ids)
        matrix = tf.cast(self.distance_metric(keys), keys.dtype)
        size = keys.shape[0]
        if not matrix.shape.is_compatible_with([size, size]):
            raise ValueError(
                "`distance_metric` must map embeddings (n, dim) to their distances (n, n). "
                f"Received: {tuple(matrix.shape)} for embeddings {tuple(keys.shape)}"
            )
        _, positive, negative = labelled_pairs_loss.pairs(own, ids, key_ids)
        return self.terms(tf.gather(matrix, own), positive, negative)

    def get_config(self):
        metric = self.distance_metric
        return {
            **super().get_config(),
            "margin": self.margin,
            "distance_metric": keras.saving.serialize_keras_object(metric)
            if callable(metric)
            else metric,
        }

    @classmethod
    def from_config(cls, config):
        metric = config["distance_metric"]
        if isinstance(metric, dict):
            metric = keras.saving.deserialize_keras_object(metric)
        return cls(**{**config, "distance_metric": metric})


def extremes(compared, chosen, largest):
    """Each row's largest, or smallest, among the chosen, `(n, 1)`; the row's other extreme where there
    is none to choose from, which is what TensorFlow Addons takes."""
    infinity = tf.constant(float("inf"), compared.dtype)
    smallest_of_row = tf.reduce_min(compared, axis=1, keepdims=True)
    largest_of_row = tf.reduce_max(compared, axis=1, keepdims=True)
    if largest:
        found = tf.reduce_max(tf.where(chosen, compared, -infinity), axis=1, keepdims=True)
        other = smallest_of_row
    else:
        found = tf.reduce_min(tf.where(chosen, compared, infinity), axis=1, keepdims=True)
        other = largest_of_row
    return tf.where(tf.reduce_any(chosen, axis=1, keepdims=True), found, other)


def sum_over_positives(function, compared, positive, count):
    """The sum of ``function(compared, distance, exists)`` over each row's positives, `(n, count)`.

    It is taken one positive of each row at a time, forwards and backwards, so memory is that of a single
    one. A step costs the same whether all rows have that many positives or one.

    Args:
        function: maps `compared` `(n, m)`, the distance of one positive of each row and whether there is
            one, both `(n, 1)`, to `(n, count)`. It is differentiated in both.
        compared: `(n, m)`.
        positive: `(n, m)`, the positives of each row.
        count: of numbers that the function gives for a row.
    """
    counts = tf.math.count_nonzero(positive, axis=1, keepdims=True, dtype=tf.int32)
    # The positives' columns first.
    order = tf.argsort(tf.cast(positive, tf.int32), axis=1, direction="DESCENDING")

    def one(compared, k):
        column = tf.gather(order, [k], axis=1)
        return function(compared, tf.gather(compared, column, batch_dims=1), k < counts)

    def walk(step, start):
        most = tf.reduce_max(counts)
        return tf.while_loop(
            lambda k, _: k < most,
            lambda k, total: (k + 1, total + step(k)),
            [0, start],
            parallel_iterations=1,  # More at once would only take memory.
        )[1]

    @tf.custom_gradient
    def sums(compared):
        def gradient(upstream):
            def slopes(k):
                with tf.GradientTape() as tape:
                    tape.watch(compared)
                    value = one(compared, k)
                return tf.convert_to_tensor(tape.gradient(value, compared, upstream))

            return walk(slopes, tf.zeros_like(compared))

        start = tf.zeros([tf.shape(compared)[0], count], compared.dtype)
        fixed = tf.stop_gradient(compared)
        return walk(lambda k: one(fixed, k), start), gradient

    # TensorFlow loses track of the input of a `tf.function` here unless it is a tensor of its own.
    return sums(tf.identity(compared))
