"""Sinkhorn–Knopp over the samples of all replicas: codes of which every column gets its share."""

import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica


def codes(scores, queue, epsilon: float, steps: int) -> tf.Tensor:
    """Codes `(batch, …, columns)`, each a distribution over the columns; without gradient.

    Rows and columns of ``exp(scores / ε)`` are scaled in turn, so that all columns get as much of the global
    batch, and every row sums to one.

    Args:
        scores: `(batch, …, columns)`. −∞ for a column that a sample cannot take.
        queue: further rows that take part, `(size, …, columns)`, the same on all replicas, or None.
        epsilon: ε.
        steps: number of rounds.

    Reference:
        Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.
    """
    # The algorithm's factors 1/K and 1/B cancel in its last step, which makes each code sum to one.
    own = tf.stop_gradient(scores) / epsilon
    more = None if queue is None else tf.stop_gradient(queue) / epsilon
    for _ in range(steps):
        over_batch = _log_sum_over_batch(own, more)
        own = tf.nn.log_softmax(own - over_batch)
        more = None if more is None else tf.nn.log_softmax(more - over_batch)
    return tf.stop_gradient(tf.exp(own))


def _log_sum_over_batch(own, queue):
    """Log-sum-exp over the samples of all replicas and over the queue, which counts once."""
    largest = cross_replica.largest(tf.reduce_max(own, axis=0))
    if queue is not None:
        largest = tf.maximum(largest, tf.reduce_max(queue, axis=0))
    sums = cross_replica.total(tf.reduce_sum(tf.exp(own - largest), axis=0))
    if queue is not None:
        sums += tf.reduce_sum(tf.exp(queue - largest), axis=0)
    return largest + tf.math.log(sums)
