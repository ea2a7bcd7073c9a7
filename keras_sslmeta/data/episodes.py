"""Few-shot episodes out of a labelled set, as a dataset."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.data.episode_indices import episode_indices
from keras_sslmeta.data.episode_parts import TURNS, as_episode, reader
from keras_sslmeta.data.labelled_arrays import labelled_arrays
from keras_sslmeta.data.task_stream import (
    BLOCK,
    checked_stream,
    finished,
    task_stream,
)


def episodes(
    data: tuple[Any, Any] | tf.data.Dataset,
    *,
    ways: int,
    shots: int,
    queries: int,
    episodes: int | None = None,
    seed: int | None = None,
    start: int = 0,
    rotations: bool = False,
) -> tf.data.Dataset:
    """Makes few-shot episodes, `({"support_x", "support_y", "query_x"}, query_y)`, to `.batch(tasks)`.

    Each episode takes `ways` classes at random, and of each `shots` samples to learn from (the
    support) and `queries` others to be tested on, all without replacement. It numbers its classes
    from 0 to `ways - 1`, at random too: what a number means changes from episode to episode.
    Samples stand in the order of these numbers.

    Train on endless episodes with `steps_per_epoch`: `fit` then goes on from epoch to epoch.
    Validate and test on a finite number, which are the same in every pass. A run that resumes
    after so many steps of so many tasks goes on with `start=steps * tasks` and the same seed.
    On a model that is not ours give `fit` its `shuffle=False`: of a dataset, Keras warns otherwise.

    Args:
        data: `(x, y)`: samples, an array `(n, …)` or a nest of such arrays, and their labels
            `(n,)`, integers or strings; or a finite `tf.data.Dataset` of such pairs, batched or not,
            which is read into memory here, once.
        ways: classes an episode.
        shots: support samples a class.
        queries: query samples a class.
        episodes: number of episodes. Default: no end.
        seed: episode i is a function of the arguments above and `(seed, i)`, whatever `start` and
            `episodes`. Default: a seed from Python's generator, which
            `keras.utils.set_random_seed` sets.
        start: the first episode. Defaults to 0.
        rotations: whether each class, turned by 0, 90, 180 and 270 degrees, makes four classes,
            as is usual for Omniglot. Samples must be square images, `(n, side, side)` or
            `(n, side, side, channels)`. All samples that an episode has of a class are turned
            alike; one class turned in two ways is two classes, which may meet in an episode.

    Returns:
        A prefetched, unbatched `tf.data.Dataset` of known shapes and cardinality: `support_x`
        `(ways * shots, …)`, `support_y` `(ways * shots,)`, `query_x` `(ways * queries, …)` and
        `query_y` `(ways * queries,)`. Labels are int64. Samples keep their dtype, but for uint8:
        it becomes float32 of the same values.

    Raises:
        ValueError: if a number is out of range, there are fewer classes than `ways`, a class has
            fewer than `shots + queries` samples, or `data` isn't as described.

    Example:
    >>> x, y = np.zeros((60, 28, 28, 1), "uint8"), np.repeat(np.arange(10), 6)
    >>> dataset = episodes((x, y), ways=5, shots=1, queries=3, episodes=64, seed=0)
    >>> for episode, query_y in dataset.batch(32).take(1):
    ...     print(episode["support_x"].shape, query_y.shape)
    (32, 5, 28, 28, 1) (32, 15)

    Reference:
        - Vinyals et al. 2016, Matching Networks for One Shot Learning, section 2.2
        - Santoro et al. 2016, Meta-Learning with Memory-Augmented Neural Networks (rotations)
    """
    x, labels = labelled_arrays(data, kinds="biuUS")
    if not isinstance(rotations, (bool, np.bool_)):
        raise ValueError(f"`rotations` must be True or False. Received: rotations={rotations!r}")
    if rotations:
        _check_square(x)
    # Here, so that an error names the classes by their labels.
    episode_indices(labels, ways=1, shots=shots, queries=queries, episodes=1)
    ids = np.unique(labels, return_inverse=True)[1]
    if rotations:
        # Row `turn * n + i` is sample i so turned.
        ids = np.concatenate([ids * TURNS + turn for turn in range(TURNS)])
    sizes = {"ways": ways, "shots": shots, "queries": queries}
    episode_indices(ids, **sizes, episodes=1)
    number, seed, start = checked_stream(episodes, seed, start)

    def draw(seed):
        drawn = episode_indices(ids, **sizes, episodes=BLOCK, seed=seed)
        return [np.concatenate(drawn, axis=-1)]

    task = [tf.TensorSpec((ways, shots + queries), tf.int64)]
    indices = task_stream(draw, task, seed=seed, episodes=number, start=start)
    read = reader(x, turned=bool(rotations))

    made = indices.map(
        lambda index: as_episode(read(index), ways, shots, queries),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return finished(made, number)


def _check_square(x) -> None:
    for array in keras.tree.flatten(x):
        if array.ndim not in (3, 4) or array.shape[1] != array.shape[2]:
            raise ValueError(
                "`data` must be square images, (n, side, side) or (n, side, side, channels), where "
                f"`rotations` is True. Received: samples of shape {array.shape}"
            )
