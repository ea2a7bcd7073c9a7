"""Regression on sinusoids, the first problem of MAML."""

import math
import numbers
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sslmeta.data.task_stream import (
    BLOCK,
    checked_stream,
    finished,
    task_stream,
)
from keras_sslmeta.mechanisms import arguments


def sinusoids(
    *,
    shots: int = 10,
    queries: int = 10,
    episodes: int | None = None,
    seed: int | None = None,
    start: int = 0,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, math.pi),
    x_range: tuple[float, float] = (-5.0, 5.0),
    noise: float = 0.0,
    query_grid: bool = False,
) -> tf.data.Dataset:
    """Makes regression episodes, `({"support_x", "support_y", "query_x"}, query_y)`, to `.batch(tasks)`.

    Each episode is a few points of one curve:

        y = A sin(x − φ)

    with A and φ uniform over their ranges, a draw an episode, and x uniform, a draw a point. Curve
    and support of episode i are the same for any `queries` and `query_grid`, the curve for any
    `shots` too.

    Args:
        shots: support points. Defaults to 10, as MAML trains; its tests have 5 and 10.
        queries: query points. Defaults to 10.
        episodes: number of episodes; every pass over the dataset gives the same. Default: no end,
            for training with `steps_per_epoch`.
        seed: episode i is a function of `(seed, i)` and the arguments but `start` and `episodes`.
            Test with another seed than training's. Default: a seed from Python's generator, which
            `keras.utils.set_random_seed` sets.
        start: the first episode, `steps * tasks` for a run that resumes. Defaults to 0.
        amplitude: lowest and highest A. Defaults to (0.1, 5), the paper's.
        phase: lowest and highest φ in radians. Defaults to (0, π), the paper's.
        x_range: lowest and highest x. Defaults to (−5, 5), the paper's.
        noise: standard deviation of normal noise on y. Defaults to 0.
        query_grid: whether the queries stand at equal distances from the lowest x to the highest,
            free of noise: for pictures, and to measure over the whole range. Defaults to False.

    Returns:
        A prefetched, unbatched `tf.data.Dataset` of known cardinality, all float32: `support_x`
        and `support_y` `(shots, 1)`, `query_x` and `query_y` `(queries, 1)`.

    Raises:
        ValueError: if a number is out of range, or a range is no pair of numbers, lowest first.

    Example:
    >>> for episode, query_y in sinusoids(shots=5, seed=0).batch(25).take(1):
    ...     print(episode["support_x"].shape, episode["query_x"].shape, query_y.shape)
    (25, 5, 1) (25, 10, 1) (25, 10, 1)

    Reference:
        - Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep
          Networks, section 5.1; the sign of φ as in the authors' code
    """
    shots, queries = arguments.count("shots", shots), arguments.count("queries", queries)
    amplitudes = _checked_range("amplitude", amplitude)
    phases = _checked_range("phase", phase)
    xs = _checked_range("x_range", x_range)
    if not _is_number(noise) or noise < 0:
        raise ValueError(f"`noise` must be a number from 0. Received: noise={noise!r}")
    if not isinstance(query_grid, (bool, np.bool_)):
        raise ValueError(f"`query_grid` must be True or False. Received: query_grid={query_grid!r}")
    number, seed, start = checked_stream(episodes, seed, start)

    def draw(seed):
        generator = np.random.default_rng(seed)
        a = generator.uniform(*amplitudes, (BLOCK, 1, 1))
        phi = generator.uniform(*phases, (BLOCK, 1, 1))

        def points(x, noise):
            x = x.astype("float32")  # Before the sine, so that y belongs to this very x.
            y = a * np.sin(x.astype("float64") - phi) + noise * generator.normal(size=x.shape)
            return x, y.astype("float32")

        support = points(generator.uniform(*xs, (BLOCK, shots, 1)), noise)
        if query_grid:
            grid = np.linspace(*xs, queries)[:, np.newaxis]
            query = points(np.broadcast_to(grid, (BLOCK, queries, 1)), 0.0)
        else:
            query = points(generator.uniform(*xs, (BLOCK, queries, 1)), noise)
        return *support, *query

    sizes = (shots, shots, queries, queries)
    tasks = task_stream(
        draw,
        [tf.TensorSpec((size, 1), tf.float32) for size in sizes],
        seed=seed,
        episodes=number,
        start=start,
    )
    return finished(
        tasks.map(
            lambda support_x, support_y, query_x, query_y: (
                {"support_x": support_x, "support_y": support_y, "query_x": query_x},
                query_y,
            )
        ),
        number,
    )


def _checked_range(name: str, ends: Any) -> tuple[float, float]:
    listed = ends.tolist() if isinstance(ends, np.ndarray) else ends
    is_pair = isinstance(listed, (tuple, list)) and len(listed) == 2
    if not is_pair or not all(map(_is_number, listed)) or listed[0] > listed[1]:
        raise ValueError(
            f"`{name}` must be a pair of finite numbers, lowest first. Received: {name}={ends!r}"
        )
    return float(listed[0]), float(listed[1])


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value)
