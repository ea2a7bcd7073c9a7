"""State that is not trained, after a batch of tasks: it follows what they saw, alike on every replica."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica
from keras_sslmeta.mechanisms.adaptation import Results
from keras_sslmeta.mechanisms.normalization_policy import NormalizationPolicy
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork


def follow(
    network: StatelessNetwork,
    policy: NormalizationPolicy,
    step_statistics: Sequence[Any],
    results: Results,
    tasks: tf.Tensor,
    iterations: tf.Tensor,
) -> None:
    """Moves statistics, random states and layers' own averages by the mean over the tasks.

    Args:
        network: the network.
        policy: of batch normalisation.
        step_statistics: variables of the statistics of each step, where the policy has some.
        results: sums over the tasks here.
        tasks: number of tasks here.
        iterations: number of steps of meta-training so far.
    """
    count = cross_replica.total(tasks)
    if policy.moving:
        news = [_mean(x, count) for x in results.statistics]
        _move_statistics(network, step_statistics, news, iterations)
    random = network.random_states()
    for variable, total, is_random in zip(network.state, results.state, random, strict=True):
        if is_random:
            variable.assign(variable.value + tf.constant([0, 1], variable.value.dtype))
            continue
        if variable.value.dtype == tf.bool:
            continue
        change = _mean(total, count)
        if not variable.value.dtype.is_floating:
            change = tf.round(change)
        variable.assign(variable.value + tf.cast(change, variable.value.dtype))


def mean_over_tasks(totals: Sequence[tf.Tensor], tasks: tf.Tensor) -> list[tf.Tensor]:
    """Means over the tasks of all replicas, of sums over those here."""
    count = cross_replica.total(tasks)
    return [_mean(total, count) for total in totals]


def _mean(total, count):
    return cross_replica.total(total) / tf.cast(count, total.dtype)


def _move_statistics(network, step_statistics, news, iterations):
    for i, (variable, momentum, new) in enumerate(
        zip(network.statistics, network.momenta, news, strict=True)
    ):
        if network.are_frozen[i]:
            continue
        if step_statistics:
            # Meta-training is normalised by these: they must not lag behind at the start.
            done = tf.cast(iterations, new.dtype)
            kept = tf.minimum(tf.cast(momentum, new.dtype), (1 + done) / (10 + done))
            steps = step_statistics[i]
            steps.assign(steps * kept + new * (1 - kept))
            new = new[0]
        variable.assign(variable * momentum + new * (1 - momentum))
