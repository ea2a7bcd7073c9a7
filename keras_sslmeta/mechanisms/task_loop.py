"""One task after another: sums over tasks, and what each gives, at the memory of a few tasks."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

# Tasks that may run at once: two hide each other's latency, and more would cost their memory.
PARALLEL = 2


def each_task(
    task: Callable[[tf.Tensor], "tuple[Sequence[tf.Tensor], Any]"],
    count: "int | tf.Tensor",
    sums: Sequence[tf.Tensor],
    outputs: Any,
) -> "tuple[list[tf.Tensor], Any]":
    """Runs ``task(t)`` for t = 0 … count − 1.

    Args:
        task: from an int32 scalar to `(addends, outputs)`.
        count: number of tasks.
        sums: tensors of the addends' shapes and dtypes, to which those of every task are added.
        outputs: nest of `tf.TensorSpec`, one task's outputs.

    Returns:
        `(sums, outputs)`, the latter with an axis of tasks in front.
    """
    specs = keras.tree.flatten(outputs)
    arrays = [tf.TensorArray(spec.dtype, count, element_shape=spec.shape) for spec in specs]

    def body(t, sums, arrays):
        addends, results = task(t)
        sums = [x + y for x, y in zip(sums, addends, strict=True)]
        results = keras.tree.flatten(results)
        return t + 1, sums, [a.write(t, x) for a, x in zip(arrays, results, strict=True)]

    # The number of tasks, where it is known, lets XLA differentiate the loop.
    _, sums, arrays = tf.while_loop(
        lambda t, *_: t < count,
        body,
        (0, list(sums), arrays),
        parallel_iterations=PARALLEL,
        maximum_iterations=count,
    )
    return list(sums), keras.tree.pack_sequence_as(outputs, [a.stack() for a in arrays])


def all_tasks(
    task: Callable[[tf.Tensor], "tuple[Sequence[tf.Tensor], Any]"],
    count: "int | tf.Tensor",
    sums: Sequence[tf.Tensor],
    outputs: Any,
) -> "tuple[list[tf.Tensor], Any]":
    """As `each_task`, all tasks at once by `tf.vectorized_map`: for accelerators, at the memory of all."""

    def run():
        addends, results = tf.vectorized_map(
            lambda t: _as_lists(task(t)), tf.range(count), fallback_to_while_loop=True
        )
        added = [x + tf.reduce_sum(y, axis=0) for x, y in zip(sums, addends, strict=True)]
        return [*added, *results]

    def nothing():
        """A replica may have no task; no number of tasks is mapped over then."""
        shapes = [[n or 0 for n in spec.shape] for spec in specs]
        return [
            *map(tf.identity, sums),
            *(tf.zeros([0, *s], x.dtype) for s, x in zip(shapes, specs, strict=True)),
        ]

    specs = keras.tree.flatten(outputs)
    flat = run() if isinstance(count, int) else tf.cond(count > 0, run, nothing)
    return flat[: len(sums)], keras.tree.pack_sequence_as(outputs, flat[len(sums) :])


def _as_lists(given):
    addends, results = given
    return list(addends), keras.tree.flatten(results)
