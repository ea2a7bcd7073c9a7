"""Few-shot classification by frozen features and a head, or by a meta-learner."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.data.episode_indices import episode_indices
from keras_sslmeta.data.labelled_arrays import labelled_arrays
from keras_sslmeta.evaluation.episode_source import (
    TASKS,
    DrawnEpisodes,
    GivenEpisodes,
    are_given,
)
from keras_sslmeta.evaluation.features import encode, unit_length
from keras_sslmeta.evaluation.few_shot_result import FewShotResult
from keras_sslmeta.evaluation.heads import Prototype
from keras_sslmeta.mechanisms import arguments, sample_nest
from keras_sslmeta.meta.episodic import EpisodicModel

_BLOCK = 2**23  # Numbers gathered at a time: 64 MB of float64.
_DEFAULTS = {"ways": 5, "shots": 1, "queries": 15, "episodes": 600, "seed": 0}


def few_shot(
    encoder: Any,
    data: tuple[Any, Any] | tf.data.Dataset,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    batch_size: int = 256,
    normalize: bool = True,
    head: Callable | None = None,
    verbose: int | str = "auto",
) -> FewShotResult:
    """Measures how well classes are told apart from a few samples of each.

    Each episode draws `ways` classes, `shots` samples of each to learn from and `queries` others to
    classify. Every sample is encoded once, and a head is fitted to each episode's features: by
    default a query goes to the class whose prototype, the mean of its support features, is nearest
    in Euclidean distance. A meta-learner gets the episodes themselves, and answers them by its
    `predict`.

    The episodes depend on the labels and the seed alone, so encoders, heads and meta-learners
    measured with the same seed are compared on the same episodes: see
    `FewShotResult.paired_difference`, and `few_shot_table` for many at once.

    Args:
        encoder: a `keras.Model`, whose `predict` gives the features (that of our self-supervised
            models gives the encoder's output); another callable from an array of samples to
            features; None for the samples themselves; or a meta-learner, such as `MAML`.
        data: `(x, y)`: samples `(n, …)`, or a dictionary or tuple of such arrays for networks of
            several inputs, and a label of each, `(n,)`, integers or strings.
            Take classes or samples that training never saw. Or episodes, to take as they are: a
            finite `tf.data.Dataset`, such as `data.episodes(…, episodes=600)`, batched or not, or
            one pair of arrays `({"support_x", "support_y", "query_x"}, query_y)`, each with an axis
            of tasks in front. Leave the next five arguments alone then.
        ways: classes an episode. Defaults to 5.
        shots: support samples a class. Defaults to 1.
        queries: query samples a class. Defaults to 15, as is usual.
        episodes: number of episodes. Defaults to 600, as in MAML and most papers since.
        seed: of the draw. Defaults to 0.
        batch_size: samples encoded at a time. Defaults to 256. A meta-learner gets 32 episodes at
            a time, whatever it is.
        normalize: whether features are scaled to unit length first, for any head. Defaults to True,
            which is better for encoders that were not trained for Euclidean prototypes
            (SimpleShot's L2N): there the length of a feature tells more about the image than about
            its class. Take False for prototypical networks, which are trained on the raw distance.
            A meta-learner does as it was trained.
        head: what is fitted to the support features of an episode: `heads.Prototype()`,
            `heads.Ridge()`, `heads.Logistic()`, `heads.Adapted()` of `evaluation.heads`, or a
            function `(support_features, support_labels, query_features) → scores` of your own.
            Default: `heads.Prototype()`. A meta-learner is a head itself, and takes none.
        verbose: 0 for silence, 1 for a progress bar, 2 for a line at the end. Defaults to "auto",
            which is 1 for meta-learners, given episodes and given heads, and 0 for the prototypes
            of drawn episodes, which take no time.

    Returns:
        A `FewShotResult`: accuracy and 95% interval over the episodes. A query counts as wrong if
        a score of it is NaN, or its highest score is not finite, as where its feature is not.

    Raises:
        ValueError: if a number is below 1, there are fewer classes than `ways`, a class has fewer
            than `shots + queries` samples, `data`'s lengths differ, given episodes are not as
            described, or scores are not `(tasks, queries, ways)`.

    Example:
    >>> x = np.repeat(np.eye(5), 20, axis=0)
    >>> print(few_shot(None, (x, np.argmax(x, axis=1)), episodes=10))
    100.0 ± 0.0 %

    Reference:
        - Snell, Swersky and Zemel 2017, Prototypical Networks for Few-shot Learning
        - Wang et al. 2019, SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
          Learning (normalisation)
    """
    is_meta = isinstance(encoder, EpisodicModel)
    is_short = head is None and not is_meta and not are_given(data)
    level = arguments.verbosity(verbose, is_short)
    _check_head(head, is_meta)
    head = Prototype() if head is None else head
    sizes = {"ways": ways, "shots": shots, "queries": queries, "episodes": episodes, "seed": seed}

    def features_of(x: Any) -> np.ndarray:
        features = encode(encoder, x, batch_size)
        return unit_length(features) if normalize else features

    source: DrawnEpisodes | GivenEpisodes
    if are_given(data):
        _check_left_alone(sizes)
        source = GivenEpisodes(data)
    else:
        source = _drawn(data, sizes, None if is_meta else features_of)

    def answer(inputs: dict) -> np.ndarray:
        if is_meta:
            return _predicted(encoder, inputs)
        if isinstance(source, GivenEpisodes):
            inputs = _encoded(inputs, features_of)
        return head(inputs["support_x"], inputs["support_y"], inputs["query_x"])

    per_episode = _measured(source, answer, level)
    return FewShotResult(per_episode, source.key)


def _drawn(data: Any, sizes: dict, features_of: Callable | None) -> DrawnEpisodes:
    """Episodes out of samples and labels, as features if there is a function from one to another."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            "`data` must be a pair, (x, y), or a tf.data.Dataset of episodes. "
            f"Received: {type(data).__name__}"
        )
    x, labels = labelled_arrays(data)
    # Drawn first: it checks the arguments, and encoding may take long.
    support, query = episode_indices(labels, **sizes)
    if features_of is None:
        return DrawnEpisodes(x, support, query, TASKS)
    features = features_of(x)
    numbers = sizes["ways"] * (sizes["shots"] + sizes["queries"]) * features.shape[1]
    return DrawnEpisodes(features, support, query, min(TASKS, max(1, _BLOCK // numbers)))


def _encoded(inputs: dict, features_of: Callable) -> dict:
    """Given episodes with features for samples."""
    support_x, query_x = inputs["support_x"], inputs["query_x"]
    nests = [keras.tree.map_structure(lambda x: None, x) for x in (support_x, query_x)]
    if nests[0] != nests[1]:
        raise ValueError(
            "`data` must hold `support_x` and `query_x` as one array each, or as one kind of nest. "
            f"Received: {type(support_x).__name__} and {type(query_x).__name__}"
        )
    tasks, count = sample_nest.shapes(support_x)[0][:2]

    def in_a_row(*parts):
        return np.concatenate([x.reshape(-1, *x.shape[2:]) for x in parts])

    features = features_of(keras.tree.map_structure(in_a_row, support_x, query_x))
    support, query = np.split(features, [tasks * count])
    return {
        **inputs,
        "support_x": support.reshape(tasks, count, -1),
        "query_x": query.reshape(tasks, -1, features.shape[1]),
    }


def _predicted(model: EpisodicModel, inputs: dict) -> np.ndarray:
    scores = model.predict(sample_nest.strings_as_tensors(inputs), batch_size=TASKS, verbose=0)
    if isinstance(scores, (dict, list, tuple)):
        raise ValueError(
            "`encoder` must answer by one array of scores, (tasks, queries, ways). "
            f"Received: {type(scores).__name__}"
        )
    return scores


def _measured(source: DrawnEpisodes | GivenEpisodes, answer: Callable, level: int) -> np.ndarray:
    """Accuracy in each episode."""
    bar = keras.utils.Progbar(
        source.batches, verbose=level, unit_name="batch", stateful_metrics=("accuracy",)
    )
    parts: list[np.ndarray] = []
    for number, (inputs, query_y) in enumerate(source, 1):
        scores = np.asarray(keras.ops.convert_to_numpy(answer(inputs)))
        _check_scores(scores, query_y, int(inputs["support_y"].max()) + 1)
        parts.append(_accuracies(scores.astype("float64"), query_y))
        if level:
            bar.update(number, values=[("accuracy", np.mean(np.concatenate(parts)))])
    if not parts:
        raise ValueError("`data` must hold an episode at least. Received: none")
    if level and source.batches is None:
        bar.target = len(parts)
        bar.update(len(parts), finalize=True)
    return np.concatenate(parts)


def _accuracies(scores: np.ndarray, query_y: np.ndarray) -> np.ndarray:
    """Fraction of the queries whose highest score is their class's, in each episode."""
    found = np.isfinite(scores.max(axis=-1))  # The maximum with a NaN is NaN.
    return ((scores.argmax(axis=-1) == query_y) & found).mean(axis=1)


def _check_head(head: Any, is_meta: bool) -> None:
    if is_meta and head is not None:
        raise ValueError(
            "`head` must be None for a meta-learner, which adapts by itself; to put a head on its "
            f"network's features, give the network as `encoder`. Received: head={head!r}"
        )
    if head is not None and (isinstance(head, type) or not callable(head)):
        raise ValueError(
            "`head` must be a function (support_features, support_labels, query_features) → scores, "
            f"such as heads.Ridge(). Received: head={head!r}"
        )


def _check_left_alone(sizes: dict) -> None:
    changed = {name: value for name, value in sizes.items() if value != _DEFAULTS[name]}
    if changed:
        raise ValueError(
            "`ways`, `shots`, `queries`, `episodes` and `seed` must be left alone where `data` holds "
            "episodes, which settle them. "
            f"Received: {', '.join(f'{name}={value!r}' for name, value in changed.items())}"
        )


def _check_scores(scores: np.ndarray, query_y: np.ndarray, ways: int) -> None:
    if scores.shape[:2] != query_y.shape or scores.ndim != 3 or scores.shape[2] < ways:
        raise ValueError(
            "Scores must be (tasks, queries, ways), one for each class, here "
            f"{(*query_y.shape, ways)}. Received: shape={scores.shape}"
        )
    if scores.dtype.kind == "c" or scores.dtype == object:
        raise ValueError(f"Scores must be real numbers. Received: dtype={scores.dtype}")
