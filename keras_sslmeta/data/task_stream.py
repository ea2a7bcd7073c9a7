"""Streams of tasks, of which the i-th is a function of `(seed, i)` alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.mechanisms.prompt_epochs import untuned

BLOCK = 256  # Tasks drawn at a time.
_END = 2**63 - 1


def task_stream(
    draw: Callable[[tuple[int, int]], Sequence[np.ndarray]],
    task: Sequence[tf.TensorSpec],
    *,
    seed: int,
    episodes: int | None,
    start: int,
) -> tf.data.Dataset:
    """Streams what `draw` gives in blocks, task by task.

    Args:
        draw: a function of `(seed, block)` that gives a list of arrays `(BLOCK, …)`: tasks
            `block * BLOCK` and those that follow.
        task: one task's part of each array.
        seed: non-negative integer.
        episodes: number of tasks, or None for no end.
        start: the first task.

    Returns:
        An unbatched dataset of tuples of tensors. Every pass gives the same.
    """
    first, skipped = divmod(start, BLOCK)
    end = _END if episodes is None else -(-(start + episodes) // BLOCK)

    def block_of(number):
        # Not stateful: the same number gives the same block, whoever asks.
        arrays = tf.numpy_function(
            lambda number: draw((seed, int(number))),
            [number],
            [spec.dtype for spec in task],
            stateful=False,
        )
        return tuple(
            tf.ensure_shape(array, (BLOCK, *spec.shape))
            for array, spec in zip(arrays, task, strict=True)
        )

    blocks = tf.data.Dataset.range(first, end).map(block_of).prefetch(1)
    tasks = blocks.unbatch().skip(skipped)
    return tasks if episodes is None else tasks.take(episodes)


def finished(dataset: tf.data.Dataset, episodes: int | None) -> tf.data.Dataset:
    """`dataset` with its cardinality, prefetched, and to be shared out by episodes."""
    options = untuned()
    # There are no files to share out among workers: each takes its part of every batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    cardinality = tf.data.INFINITE_CARDINALITY if episodes is None else episodes
    return (
        dataset.apply(tf.data.experimental.assert_cardinality(cardinality))
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )


def checked_stream(episodes: Any, seed: Any, start: Any) -> tuple[int | None, int, int]:
    """The arguments that every stream has, as Python integers."""
    if episodes is not None:
        episodes = arguments.count("episodes", episodes)
    return episodes, arguments.seed(seed), arguments.count("start", start, least=0)
