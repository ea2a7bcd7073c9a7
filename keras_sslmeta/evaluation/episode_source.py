"""Where evaluation takes its few-shot episodes from: drawn from labelled samples, or given."""

import operator
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import sample_nest
from keras_sslmeta.meta.episodic import check_episode

TASKS = 32  # Episodes at a time.


class DrawnEpisodes:
    """Batches of episodes out of one array of samples, or of features in their place.

    Iterating gives `({"support_x", "support_y", "query_x"}, query_y)` as
    `keras_sslmeta.data.episodes(…).batch(tasks)` does, images of 8 bits as float32.

    Args:
        samples: `(n, …)`, or a nest of such arrays.
        support: indices `(episodes, ways, shots)`, as `episode_indices` gives them.
        query: indices `(episodes, ways, queries)`.
        tasks: episodes a batch.
    """

    def __init__(self, samples: Any, support: np.ndarray, query: np.ndarray, tasks: int):
        self._samples, self._support, self._query, self._tasks = samples, support, query, tasks

    @property
    def batches(self) -> int | None:
        """How many batches there are, where that is known."""
        return -(-len(self._support) // self._tasks)

    @property
    def key(self) -> int:
        """A number that stands for the episodes."""
        return zlib.crc32(self._support.tobytes() + self._query.tobytes())

    def __iter__(self) -> Iterator[tuple[dict, np.ndarray]]:
        for start in range(0, len(self._support), self._tasks):
            support_x, support_y = self._part(self._support[start : start + self._tasks])
            query_x, query_y = self._part(self._query[start : start + self._tasks])
            yield {"support_x": support_x, "support_y": support_y, "query_x": query_x}, query_y

    def _part(self, indices: np.ndarray) -> tuple[Any, np.ndarray]:
        tasks, ways, count = indices.shape
        samples = sample_nest.take(self._samples, indices.reshape(tasks, ways * count))
        return keras.tree.map_structure(_widened, samples), np.tile(
            np.repeat(np.arange(ways), count), (tasks, 1)
        )


def _widened(x: np.ndarray) -> np.ndarray:
    return x.astype("float32") if x.dtype == np.uint8 else x


class GivenEpisodes:
    """Batches of classification episodes that are given, checked one by one, for one pass.

    Args:
        data: a finite `tf.data.Dataset` of episodes, batched or not, or one pair of arrays
            `({…}, query_y)` with an axis of tasks in front.

    Raises:
        ValueError: if it is neither; while iterating, if a batch holds no classification episodes.
    """

    def __init__(self, data: Any):
        if isinstance(data, tf.data.Dataset):
            data = _batched(data)
        self._data, self.batches = batches_of_tasks("data", data)
        self._key = EpisodesKey()

    @property
    def key(self) -> int:
        """A number that stands for the episodes seen so far."""
        return self._key.value

    def __iter__(self) -> Iterator[tuple[dict, np.ndarray]]:
        for batch in self._data:
            inputs, query_y = _checked(batch)
            self._key.add(inputs, query_y)
            yield inputs, query_y


class EpisodesKey:
    """A checksum of episodes that does not depend on how they are batched."""

    def __init__(self):
        self._sums: dict[str, int] = {}

    def add(self, inputs: dict, query_y: Any) -> None:
        """Adds a batch of episodes, arrays or tensors."""
        for name, part in {**inputs, "query_y": query_y}.items():
            for i, array in enumerate(keras.tree.flatten(part)):
                data = keras.ops.convert_to_numpy(array).tobytes()
                self._sums[f"{name}{i}"] = zlib.crc32(data, self._sums.get(f"{name}{i}", 0))

    @property
    def value(self) -> int:
        """The checksum of what was added."""
        return zlib.crc32(repr(sorted(self._sums.items())).encode())


def are_given(data: Any) -> bool:
    """Whether data are episodes, not samples and their labels."""
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    parts = {"support_x", "support_y", "query_x"}  # One of them may be misspelt.
    is_episode = is_pair and isinstance(data[0], dict) and bool(parts & set(data[0]))
    return isinstance(data, tf.data.Dataset) or is_episode


def batches_of_tasks(name: str, episodes: Any) -> tuple[Iterable, int | None]:
    """Batches of episodes, and how many there are where that is known.

    Args:
        name: of the argument, for errors.
        episodes: a dataset of batches, taken as it is, or a pair of arrays, cut into batches.

    Raises:
        ValueError: if it is neither, has no end, or the arrays differ in their number of tasks.
    """
    if isinstance(episodes, tf.data.Dataset):
        cardinality = int(episodes.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"`{name}` must come to an end: say how many, as in `data.episodes(…, "
                "episodes=600)`, or call `take(batches)`. Received: an endless dataset"
            )
        return episodes, None if cardinality == tf.data.UNKNOWN_CARDINALITY else cardinality
    if not isinstance(episodes, (tuple, list)) or len(episodes) != 2:
        raise ValueError(
            f"`{name}` must be a tf.data.Dataset of batches of episodes, or a pair of arrays "
            f"({{…}}, query_y). Received: {type(episodes).__name__}"
        )
    arrays = keras.tree.flatten(tuple(episodes))
    if not all(len(getattr(array, "shape", ())) for array in arrays):
        raise ValueError(
            f"`{name}` must hold arrays with an axis of tasks in front. "
            f"Received: {', '.join(sorted({type(array).__name__ for array in arrays}))}"
        )
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(
            f"All parts of `{name}` must have the same number of tasks. "
            f"Received: {', '.join(map(str, sorted(lengths)))}"
        )
    slices = [slice(i, i + TASKS) for i in range(0, lengths.pop(), TASKS)]
    parts = (
        keras.tree.map_structure(operator.itemgetter(part), tuple(episodes)) for part in slices
    )
    return parts, len(slices)


def _batched(data: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset of episodes as one of batches of them."""
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not isinstance(spec[0], dict):
        raise ValueError(
            "`data` must be episodes, ({'support_x': …, 'support_y': …, 'query_x': …}, query_y), "
            "where it is a tf.data.Dataset; give samples and labels as a pair of arrays, (x, y). "
            f"Received: a dataset of {spec}"
        )
    is_single = isinstance(spec[1], tf.TensorSpec) and spec[1].shape.rank == 1
    return data.batch(TASKS) if is_single else data


def _checked(batch: Any) -> tuple[dict, np.ndarray]:
    """A batch as NumPy arrays; labels as int64 of shape `(tasks, samples)`, from 0 to ways - 1."""
    inputs, query_y = batch
    episode = check_episode(inputs)
    inputs = {
        key: keras.tree.map_structure(keras.ops.convert_to_numpy, part)
        for key, part in episode.items()
    }
    support_y = _labels("support_y", inputs["support_y"], inputs["support_x"])
    query_y = _labels("query_y", query_y, inputs["query_x"])
    ways = int(support_y.max()) + 1
    present = (support_y[..., np.newaxis] == np.arange(ways)).any(axis=1)  # (tasks, ways)
    if support_y.min() < 0 or query_y.min() < 0 or query_y.max() >= ways or not present.all():
        raise ValueError(
            "The episodes in `data` must number their classes from 0 to ways - 1, with support for "
            "each and as many in all episodes of a batch. Received: support_y of "
            f"{np.unique(support_y)}, {sorted(set(present.sum(1).tolist()))} classes an episode, "
            f"and query_y of {np.unique(query_y)}"
        )
    return {**inputs, "support_y": support_y}, query_y


def _labels(name: str, labels: Any, samples: Any) -> np.ndarray:
    """Integers `(tasks, samples)` as int64; a trailing axis of one is dropped."""
    wanted = keras.tree.flatten(samples)[0].shape[:2]
    if isinstance(labels, (dict, list, tuple)):
        raise ValueError(f"`{name}` must be one array. Received: {type(labels).__name__}")
    labels = keras.ops.convert_to_numpy(labels)
    if labels.shape == (*wanted, 1):
        labels = labels[..., 0]
    if labels.shape != wanted or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(
            f"`{name}` must be one integer a sample, (tasks, samples), here {tuple(wanted)} (of "
            f"one-hot labels, the argmax). Received: shape={labels.shape}, dtype={labels.dtype}"
        )
    return labels.astype("int64")
