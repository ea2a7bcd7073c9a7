"""The draw of few-shot episodes, as indices into a labelled set."""

from collections.abc import Sequence

import numpy as np

from keras_sslmeta.mechanisms import arguments


def episode_indices(
    labels: np.ndarray,
    *,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    seed: int | Sequence[int] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws few-shot episodes: which samples support, and which are queried.

    Every episode takes `ways` of the classes at random, and of each class `shots + queries` of
    its samples, all without replacement: no sample is in an episode twice. The draw depends on
    the labels and the seed alone, so the same episodes can be put to several encoders.

    Args:
        labels: one label a sample, `(n,)`, integers or strings.
        ways: classes an episode.
        shots: support samples a class.
        queries: query samples a class.
        episodes: number of episodes.
        seed: integer, or a sequence of integers such as `(seed, epoch)`. Defaults to 0.

    Returns:
        `(support, query)`: int64 indices `(episodes, ways, shots)` and
        `(episodes, ways, queries)`. Entry `[:, w]` holds samples of one class, the `w`-th of its
        episode.

    Raises:
        ValueError: if a number is below 1, there are fewer classes than `ways`, or a class has
            fewer than `shots + queries` samples.

    Example:
    >>> labels = np.repeat([0, 1, 2], 4)
    >>> support, query = episode_indices(labels, ways=2, shots=1, queries=3, episodes=10)
    >>> support.shape, query.shape
    ((10, 2, 1), (10, 2, 3))
    >>> bool((labels[support] == labels[query]).all())
    True

    Reference:
        - Vinyals et al. 2016, Matching Networks for One Shot Learning, section 2.2
    """
    for name, value in (
        ("ways", ways),
        ("shots", shots),
        ("queries", queries),
        ("episodes", episodes),
    ):
        arguments.count(name, value)
    classes, label_ids, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    _check_classes(classes, sizes, ways, shots + queries)
    generator = np.random.default_rng(seed)
    drawn = draw_distinct(generator, np.full(episodes, len(classes)), ways)  # (episodes, ways)
    ranks = draw_distinct(
        generator, sizes[drawn], shots + queries
    )  # (episodes, ways, shots + queries)
    # Samples sorted by class: the r-th sample of a class stands r after the class's first.
    by_class = np.argsort(label_ids, kind="stable")
    first = np.cumsum(sizes) - sizes
    samples = by_class[first[drawn][..., np.newaxis] + ranks]
    return samples[..., :shots], samples[..., shots:]


def draw_distinct(generator: np.random.Generator, sizes: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` different numbers below each size, in random order: `(*sizes.shape, count)`.

    The i-th number is drawn among the `size - i` that are left, counted upwards. Stepping over
    the earlier ones in ascending order gives the number itself.
    """
    drawn = np.empty((*sizes.shape, count), "int64")
    for i in range(count):
        number = generator.integers(0, sizes - i)
        for earlier in np.moveaxis(np.sort(drawn[..., :i], axis=-1), -1, 0):
            number += number >= earlier
        drawn[..., i] = number
    return drawn


def _check_classes(classes: np.ndarray, sizes: np.ndarray, ways: int, samples: int) -> None:
    if len(classes) < ways:
        raise ValueError(
            f"`ways` must be at most the number of classes, {len(classes)}. Received: ways={ways}"
        )
    small = np.flatnonzero(sizes < samples)
    if small.size:
        named = ", ".join(f"{classes[i]} ({sizes[i]})" for i in small[:10])
        raise ValueError(
            f"`shots` + `queries` must be at most the number of samples of every class. Received: "
            f"{samples}, and too few samples in {small.size} classes: {named}"
            + (", …" if small.size > 10 else "")
        )
