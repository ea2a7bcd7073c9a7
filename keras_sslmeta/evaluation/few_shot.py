"""Few-shot classification by the nearest prototype, on frozen features."""

import zlib
from typing import Any

import numpy as np

from keras_sslmeta.data.episode_indices import episode_indices
from keras_sslmeta.evaluation.features import as_labels, encode, unit_length
from keras_sslmeta.evaluation.few_shot_result import FewShotResult

_BLOCK = 2**23  # Numbers gathered at a time: 64 MB of float64.


def few_shot(
    encoder: Any,
    data: tuple[Any, Any],
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    batch_size: int = 256,
    normalize: bool = True,
) -> FewShotResult:
    """Measures how well classes are told apart from a few samples of each.

    Every sample is encoded once. Each episode draws `ways` classes, and a query goes to the class
    whose prototype, the mean of its `shots` support features, is nearest in Euclidean distance.
    The episodes depend on the labels and the seed alone, so encoders measured with the same seed
    are compared on the same episodes: see `FewShotResult.paired_difference`.

    Args:
        encoder: a `keras.Model`, whose `predict` gives the features (that of our self-supervised
            models gives the encoder's output); another callable from an array of samples to
            features; or None for the samples themselves.
        data: `(x, y)`: samples `(n, …)` and a label of each, `(n,)`, integers or strings.
            Take classes or samples that training never saw.
        ways: classes an episode. Defaults to 5.
        shots: support samples a class. Defaults to 1.
        queries: query samples a class. Defaults to 15, as is usual.
        episodes: number of episodes. Defaults to 600, as in MAML and most papers since.
        seed: of the draw. Defaults to 0.
        batch_size: samples encoded at a time. Defaults to 256.
        normalize: whether features are scaled to unit length first. Defaults to True, which is
            better for encoders that were not trained for Euclidean prototypes (SimpleShot's L2N):
            there the length of a feature tells more about the image than about its class. Take
            False for prototypical networks, which are trained on the raw distance.

    Returns:
        A `FewShotResult`: accuracy and 95% interval over the episodes. A query whose feature is
        not finite counts as wrong.

    Raises:
        ValueError: if a number is below 1, there are fewer classes than `ways`, a class has fewer
            than `shots + queries` samples, or `data`'s lengths differ.

    Example:
    >>> x = np.repeat(np.eye(5), 20, axis=0)
    >>> print(few_shot(None, (x, np.argmax(x, axis=1)), episodes=10))
    100.0 ± 0.0 %

    Reference:
        - Snell, Swersky and Zemel 2017, Prototypical Networks for Few-shot Learning
        - Wang et al. 2019, SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
          Learning (normalisation)
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(f"`data` must be a pair, (x, y). Received: {type(data).__name__}")
    x = np.asarray(data[0])
    labels = as_labels(data[1], "data[1]", len(x))
    # Drawn first: it checks the arguments, and encoding may take long.
    support, query = episode_indices(
        labels, ways=ways, shots=shots, queries=queries, episodes=episodes, seed=seed
    )
    features = encode(encoder, x, batch_size)
    if normalize:
        features = unit_length(features)
    block = max(1, _BLOCK // (ways * (shots + queries) * features.shape[1]))
    per_episode = np.concatenate(
        [
            _accuracies(features, support[i : i + block], query[i : i + block])
            for i in range(0, episodes, block)
        ]
    )
    return FewShotResult(per_episode, zlib.crc32(support.tobytes() + query.tobytes()))


def _accuracies(features: np.ndarray, support: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Accuracy of the nearest prototype in each of some episodes."""
    episodes, ways, queries = query.shape
    # Float64, since |p|² - 2 q·p cancels where all features share a large mean.
    prototypes = features[support].mean(axis=2, dtype="float64")  # (episodes, ways, dim)
    points = features[query].astype("float64").reshape(episodes, ways * queries, -1)
    # |q - p|² without |q|², the same for every prototype.
    distances = (prototypes**2).sum(-1)[:, np.newaxis] - 2 * points @ np.swapaxes(prototypes, 1, 2)
    distances = np.where(np.isnan(distances), np.inf, distances)
    nearest = np.argmin(distances, axis=-1)
    found = np.isfinite(distances.min(axis=-1))
    truth = np.repeat(np.arange(ways), queries)
    return ((nearest == truth) & found).mean(axis=1)
