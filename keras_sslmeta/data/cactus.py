"""CACTUs: episodes out of unlabelled samples, whose classes are clusters of their features."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.data.episode_indices import draw_distinct
from keras_sslmeta.data.episode_parts import as_episode, reader, sample_arrays
from keras_sslmeta.data.task_stream import BLOCK, checked_stream, finished, task_stream
from keras_sslmeta.evaluation.features import as_features, encode
from keras_sslmeta.mechanisms import arguments


def cactus(
    x: Any,
    features: Any = None,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    clusters: int = 500,
    partitions: int = 50,
    labels: Any = None,
    episodes: int | None = None,
    seed: int | None = None,
    start: int = 0,
    verbose: int | str = "auto",
) -> tf.data.Dataset:
    """Makes episodes without labels, `({"support_x", "support_y", "query_x"}, query_y)`, to `.batch(tasks)`.

    Features learnt without labels are clustered several times over, each time under another
    metric: a partition each (see `cluster_labels`). Each episode takes a partition at random, of it
    `ways` clusters, and of each `shots` samples for the support and `queries` others, all without
    replacement, as `data.episodes` does of classes. Clusters of fewer samples are left out. Any
    meta-learner trains on them, and is then tested on labelled episodes.

    Args:
        x: samples, an array `(n, …)` or a nest of such arrays. No labels.
        features: an array `(n, dim)`; or the encoder that makes them of `x`, a `keras.Model` or
            another callable, such as a `SimCLR` that was trained on `x`.
        ways: clusters an episode. Defaults to 5, as the authors train on mini-ImageNet; on
            Omniglot they train with 20.
        shots: support samples a cluster. Defaults to 1, the authors'.
        queries: query samples a cluster. Defaults to 5, the authors'.
        clusters: clusters a partition. Defaults to 500, the paper's; take several times the number
            of classes that you guess there are, and n / clusters well above `shots + queries`.
        partitions: number of partitions. Defaults to 50, the paper's for mini-ImageNet (for
            Omniglot it is 100). Each takes a k-means: 2 seconds of two cores for 10,000 samples
            of 128 features.
        labels: in place of `features`, the partitions `(partitions, n)` or `(n,)`, as
            `cluster_labels` gives them: kept from earlier, they cost nothing. `clusters` and
            `partitions` are then theirs.
        episodes: number of episodes. Default: no end.
        seed: episode i is a function of the arguments above and `(seed, i)`, whatever `start` and
            `episodes`; the partitions are a function of the seed too. Default: a seed from Python's
            generator, which `keras.utils.set_random_seed` sets.
        start: the first episode. Defaults to 0.
        verbose: 0 for silence, 1 for a progress bar over the partitions, 2 for a line at the end.
            Defaults to "auto", which is 1.

    Returns:
        A prefetched, unbatched `tf.data.Dataset` of known shapes and cardinality: `support_x`
        `(ways * shots, …)`, `support_y` `(ways * shots,)`, `query_x` `(ways * queries, …)` and
        `query_y` `(ways * queries,)`. Labels are int64. Samples keep their dtype, but for uint8:
        it becomes float32 of the same values.

    Raises:
        ValueError: if a number is out of range, a partition has fewer than `ways` clusters of
            `shots + queries` samples, or `features` and `labels` aren't as described.

    Example:
    >>> generator = np.random.default_rng(0)
    >>> centers = np.repeat(np.eye(10), 20, axis=0)
    >>> features = centers + 0.1 * generator.normal(size=centers.shape)
    >>> images = np.zeros((200, 28, 28, 1), "uint8")
    >>> sizes = {"ways": 5, "shots": 1, "queries": 3}
    >>> dataset = cactus(images, features, **sizes, clusters=10, partitions=2, seed=0, verbose=0)
    >>> for episode, query_y in dataset.batch(32).take(1):
    ...     print(episode["support_x"].shape, query_y.shape)
    (32, 5, 28, 28, 1) (32, 15)

    Reference:
        - Hsu, Levine and Finn 2019, Unsupervised Learning via Meta-Learning, section 2 (k-means);
          scaling, skipped clusters and defaults as in the authors' code
    """
    x, count = sample_arrays(x)
    ways, shots = arguments.count("ways", ways), arguments.count("shots", shots)
    queries = arguments.count("queries", queries)
    number, seed, start = checked_stream(episodes, seed, start)
    if (features is None) == (labels is None):
        raise ValueError(
            "`features` or `labels` must be given, and not both. Received: "
            f"{'neither' if labels is None else 'both'}"
        )
    if labels is None:
        _check_clustering(clusters, partitions, verbose)
        _check_clusters_hold(int(clusters), ways)
        features = encode(features, x) if callable(features) else as_features(features, "features")
        _check_length("features", features.shape, len(features), count)
        labels = cluster_labels(
            features, clusters=clusters, partitions=partitions, seed=seed, verbose=verbose
        )
    partition_labels = _checked_labels(labels, count)
    draw = _draw_function(partition_labels, ways, shots + queries)
    read = reader(x)
    task = [tf.TensorSpec((ways, shots + queries), tf.int64)]
    indices = task_stream(draw, task, seed=seed, episodes=number, start=start)
    made = indices.map(
        lambda index: as_episode(read(index), ways, shots, queries),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return finished(made, number)


def cluster_labels(
    features: Any,
    clusters: int = 500,
    partitions: int = 1,
    *,
    seed: int = 0,
    verbose: int | str = "auto",
) -> np.ndarray:
    """Clusters features by k-means, once for each of several metrics.

    The first partition is of the features themselves. Before each further one, every dimension is
    scaled by its own random number, uniform in [0, 1): another metric, and so other clusters. The
    p-th partition is a function of the features, `clusters` and `(seed, p)`, on one machine.

    They are pseudo-labels: keep them for `data.cactus(x, labels=…)`, or take one partition for
    `data.episodes((x, labels[0]), …)`, which wants every cluster large enough, or for a classifier.

    Args:
        features: `(n, dim)`; further axes are flattened.
        clusters: number of clusters, k. Defaults to 500, the paper's.
        partitions: number of partitions. Defaults to 1.
        seed: integer. Defaults to 0.
        verbose: 0 for silence, 1 for a progress bar over the partitions, 2 for a line at the end.
            Defaults to "auto", which is 1.

    Returns:
        int64 labels `(partitions, n)` from 0 to `clusters - 1`.

    Raises:
        ValueError: if a number is out of range, there are fewer samples than clusters, or a
            feature isn't finite.

    Example:
    >>> features = np.repeat(np.eye(3), 4, axis=0)
    >>> labels = cluster_labels(features, clusters=3, partitions=2, verbose=0)
    >>> labels.shape, len(set(labels[0].tolist()))
    ((2, 12), 3)

    Reference:
        - Hsu, Levine and Finn 2019, Unsupervised Learning via Meta-Learning, section 2; k-means++
          from one start, and the scaling, as in the authors' code
    """
    _check_clustering(clusters, partitions, verbose)
    features, seed = as_features(features, "features"), arguments.seed(seed)
    if clusters > len(features):
        raise ValueError(
            f"`clusters` must be at most the number of samples, {len(features)}. "
            f"Received: clusters={clusters}"
        )
    if not np.isfinite(features).all():
        raise ValueError(
            "`features` must be finite. "
            f"Received: {np.count_nonzero(~np.isfinite(features))} numbers that aren't"
        )
    bar = keras.utils.Progbar(
        partitions, verbose=arguments.verbosity(verbose), unit_name="partition"
    )
    labels = np.empty((partitions, len(features)), "int64")
    for partition in range(partitions):
        labels[partition] = _partition(features, int(clusters), seed, partition)
        bar.update(partition + 1)
    return labels


def _partition(features: np.ndarray, clusters: int, seed: int, partition: int) -> np.ndarray:
    # Not MiniBatchKMeans: in half of the time, of 500 clusters of 10,000 samples, it makes a quarter
    # as many of six samples or more, of which episodes are made.
    from sklearn.cluster import KMeans

    generator = np.random.default_rng((seed, partition))
    if partition:
        features = features * generator.random(features.shape[1], dtype="float32")
    state = int(generator.integers(2**31 - 1))
    return KMeans(clusters, n_init=1, random_state=state).fit(features).labels_


def _draw_function(labels: np.ndarray, ways: int, samples: int):
    """The draw of blocks of episodes, `(BLOCK, ways, samples)`, from labels `(partitions, n)`."""
    partitions, count = labels.shape
    # A cluster of any partition is a class of its own among `partitions * n` members.
    names, ids = np.unique(labels, return_inverse=True)
    of_members = ids.reshape(labels.shape) + len(names) * np.arange(partitions)[:, np.newaxis]
    classes, sizes = np.unique(of_members, return_counts=True)
    members = np.argsort(of_members, axis=None, kind="stable") % count
    first = np.cumsum(sizes) - sizes
    kept = np.flatnonzero(sizes >= samples)
    kept_in = np.bincount(classes[kept] // len(names), minlength=partitions)
    _check_kept(kept_in, ways, samples)
    first_kept = np.cumsum(kept_in) - kept_in

    def draw(seed):
        generator = np.random.default_rng(seed)
        partition = generator.integers(partitions, size=BLOCK)
        ranks = draw_distinct(generator, kept_in[partition], ways)  # (BLOCK, ways)
        drawn = kept[first_kept[partition][:, np.newaxis] + ranks]
        ranks = draw_distinct(generator, sizes[drawn], samples)  # (BLOCK, ways, samples)
        return [members[first[drawn][..., np.newaxis] + ranks]]

    return draw


def _checked_labels(labels: Any, count: int) -> np.ndarray:
    labels = np.asarray(labels)
    labels = labels[np.newaxis] if labels.ndim == 1 else labels
    if labels.ndim != 2 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be integers (partitions, n) or (n,), as `cluster_labels` gives them. "
            f"Received: shape={labels.shape}, dtype={labels.dtype}"
        )
    _check_length("labels", labels.shape, labels.shape[1], count)
    return labels.astype("int64", copy=False)


def _check_clustering(clusters: Any, partitions: Any, verbose: Any) -> None:
    arguments.count("clusters", clusters)
    arguments.count("partitions", partitions)
    arguments.verbosity(verbose)


def _check_clusters_hold(clusters: int, ways: int) -> None:
    if clusters < ways:
        raise ValueError(
            f"`clusters` must be at least `ways`, {ways}. Received: clusters={clusters}"
        )


def _check_length(name: str, shape: tuple[int, ...], length: int, count: int) -> None:
    if length != count:
        raise ValueError(
            f"`{name}` must have an entry for each of the {count} samples of `x`. "
            f"Received: shape={shape}"
        )


def _check_kept(kept_in: np.ndarray, ways: int, samples: int) -> None:
    few = np.flatnonzero(kept_in < ways)
    if few.size:
        raise ValueError(
            f"Every partition must have `ways` clusters, {ways}, of `shots` + `queries` samples, "
            f"{samples}, or more: ask for fewer ways, shots or queries, or for fewer clusters, "
            f"which are larger. Received: {few.size} of {len(kept_in)} partitions with fewer, such "
            f"as partition {few[0]} with {kept_in[few[0]]}"
        )
