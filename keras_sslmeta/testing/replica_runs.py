"""One function on one device or on replicas, each on exactly the share of the batch that it is given."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, cross_replica


def devices() -> list[str]:
    """Names of the logical devices that replicas can run on: GPUs where there are two, else CPUs."""
    gpus = tf.config.list_logical_devices("GPU")
    return [x.name for x in (gpus if len(gpus) > 1 else tf.config.list_logical_devices("CPU"))]


def replica_counts(replicas: "int | Sequence[int] | None") -> tuple[int, ...]:
    """The numbers of replicas to test: those asked for, else 2 and as many as there are devices.

    Raises:
        RuntimeError: if there are too few logical devices.
        ValueError: if a number is not an integer from 2.
    """
    if tf.distribute.has_strategy():
        raise RuntimeError(
            "`assert_batch_invariant` makes replicas of its own: call it outside of any "
            "`strategy.scope()`."
        )
    found = len(devices())
    if replicas is None:
        counts: tuple = tuple(sorted({2, max(2, found)}))
    else:
        counts = tuple(replicas) if isinstance(replicas, (list, tuple)) else (replicas,)
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 2:
            raise ValueError(
                "`replicas` must be None, an integer from 2, or several. "
                f"Received: replicas={replicas!r}"
            )
        if count > found:
            raise RuntimeError(
                f"{count} replicas need {count} logical devices, and TensorFlow has {found}. Before it "
                f"makes its first tensor, at the top of `conftest.py` for instance, call "
                f"`keras_sslmeta.testing.configure_replicas({count})`."
            )
    return tuple(int(count) for count in counts)


@functools.cache
def strategy(count: int) -> tf.distribute.Strategy:
    """Replicas on the first `count` devices; one object for all calls in this process."""
    # Plain copies: collectives of several strategies in one process would share their keys.
    return tf.distribute.MirroredStrategy(
        devices()[:count], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


class Plan:
    """How batches are shared out.

    Args:
        counts: numbers of replicas.
        uneven: whether shares are uneven too.
        empty: whether these include an empty one.
    """

    def __init__(self, counts: Sequence[int], uneven: bool, empty: bool):
        self.counts = tuple(counts)
        self.uneven = uneven
        self.empty = empty

    def batch_size(self, asked: "int | None", given: "int | None", most: int = 12) -> int:
        """The number of samples: that asked for, or as many as are given, or the default."""
        least = 2 * max(self.counts)
        if asked is not None:
            asked = arguments.count("batch_size", asked, least=least)
            if given is not None and asked > given:
                raise ValueError(
                    f"`batch_size` must be at most the number of samples given, {given}. "
                    f"Received: batch_size={asked}"
                )
            return asked
        usual = max(most, 3 * max(self.counts))
        size = usual if given is None else min(usual, given)
        if size < least:
            raise ValueError(
                f"{max(self.counts)} replicas need at least {least} samples, two each. Received: {size}"
            )
        return size

    def cases(self, batch: int) -> list[tuple[int, ...]]:
        """The shares to test: even ones of any number of replicas before uneven ones."""
        cases = [self.cases_of(batch, count) for count in self.counts]
        return [of_count[0] for of_count in cases] + [x for of_count in cases for x in of_count[1:]]

    def cases_of(self, batch: int, replicas: int) -> list[tuple[int, ...]]:
        """Even shares, then last batches as Keras shares them out."""
        full = batch // replicas
        most = (full,) * (replicas - 1)
        shares = [(full,) * replicas]
        if self.uneven:
            # The short one is not always the last: places counted as if it were would go unnoticed.
            shares += [(*most, full - 1), (1, *most)]
            if replicas > 2:
                shares[-1] = (1, *most[1:], 0 if self.empty else 1)
            if self.empty:
                shares.append((*most, 0))
        return list(dict.fromkeys(shares))  # They coincide where shares are small.


def is_shared_out(x: np.ndarray, samples: int) -> bool:
    """Whether an array has a row for each sample; others are given whole to every replica."""
    return x.ndim > 0 and len(x) == samples


def _are_memories(batch) -> list[bool]:
    """Whether leaves belong to a memory, by their name in a dict: it may have as many rows as the batch."""
    paths = keras.tree.flatten_with_path(batch)
    return [any(str(name).startswith("memory") for name in path) for path, _ in paths]


class OnShares:
    """A function on the shares of a batch, traced once for all sizes.

    Args:
        function: from a batch to a structure of tensors.
        example: a batch, a structure of arrays.
        samples: its number of samples.
        replicas: how many replicas run it together; 1 runs it without a strategy.
    """

    def __init__(self, function: Callable, example: Any, samples: int, replicas: int = 1):
        self.replicas = replicas
        self._function = function
        self._structure = example
        leaves = keras.tree.flatten(example)
        self._shared = [
            is_shared_out(x, samples) and not is_memory
            for x, is_memory in zip(leaves, _are_memories(example), strict=True)
        ]
        specs = [
            tf.TensorSpec((None, *x.shape[1:]) if shared else x.shape, tf.as_dtype(x.dtype))
            for x, shared in zip(leaves, self._shared, strict=True)
        ]
        counts = tf.TensorSpec((replicas,), tf.int32)
        # Traced here: as calls, the traces of many losses would make TensorFlow warn of retracing.
        self._run = tf.function(self._on_all, autograph=False).get_concrete_function(
            specs, counts, counts
        )

    def __call__(self, batch: Any, shares: Sequence[int], start: int = 0) -> list[Any]:
        """The results of each share; the shares begin at row `start` of the batch."""
        starts = start + np.cumsum([0, *shares[:-1]])
        leaves = [tf.convert_to_tensor(x) for x in keras.tree.flatten(batch)]
        with tf.device(devices()[0]):
            results = self._run(
                leaves, tf.constant(starts, tf.int32), tf.constant(shares, tf.int32)
            )
        if self.replicas == 1:
            return [results]
        local = strategy(self.replicas).experimental_local_results
        return [
            keras.tree.map_structure(lambda x, rank=rank: local(x)[rank], results)
            for rank in range(self.replicas)
        ]

    def _on_all(self, leaves, starts, sizes):
        if self.replicas == 1:
            return self._on_one(leaves, starts, sizes)
        return strategy(self.replicas).run(self._on_one, (leaves, starts, sizes))

    def _on_one(self, leaves, starts, sizes):
        rank = cross_replica.replica_id()
        # Of unknown length, as in `fit`.
        rows = [
            x[starts[rank] : starts[rank] + sizes[rank]] if shared else x
            for x, shared in zip(leaves, self._shared, strict=True)
        ]
        return self._function(keras.tree.pack_sequence_as(self._structure, rows))
