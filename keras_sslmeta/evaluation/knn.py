"""Weighted nearest neighbours on frozen features."""

from typing import Any

import numpy as np

from keras_sslmeta.evaluation.features import as_features, as_labels, unit_length
from keras_sslmeta.mechanisms import arguments


def knn_predict(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    k: int = 20,
    temperature: float = 0.1,
    block_size: int = 256,
) -> np.ndarray:
    """Predicts labels by a weighted vote of the k nearest neighbours in cosine similarity.

    ```
    votes(c) = Σ over the k nearest i with label c of exp(s_i / temperature)
    ```

    where `s_i` is the cosine between the test sample and training sample i. Of classes with equal
    votes, the first in sorted order wins; which of several equally near samples counts as the
    k-th nearest is arbitrary. Test samples are compared in blocks, so memory grows by
    `block_size` × n, never by m × n.

    Features of zeros have cosine 0 with everything. Training features with a NaN or an infinity
    are nobody's neighbours. A test feature with one has no neighbours either, and gets the first
    class; `knn_accuracy` counts it as wrong.

    Args:
        train_features: `(n, dim)`; more axes are flattened. Compared in float32.
        train_labels: one label a training sample, `(n,)`, integers or strings.
        test_features: `(m, dim)`.
        k: number of neighbours. Defaults to 20, DINO's best; Wu et al. and lightly's benchmarks
            take 200.
        temperature: of the weights. Defaults to 0.1, as in lightly's benchmarks; Wu et al. have
            0.07.
        block_size: test samples compared at a time. Defaults to 256: 51 MB of similarities
            against 50,000 training samples, and three times that while neighbours are picked.

    Returns:
        Predicted labels `(m,)`, of `train_labels`' type.

    Raises:
        ValueError: if `k` exceeds n, an argument is out of range, or shapes don't fit.

    Example:
    >>> knn_predict([[1.0, 0.0], [0.0, 1.0]], ["east", "north"], [[3.0, 1.0]], k=1)
    array(['east'], dtype='<U5')

    Reference:
        - Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance
          Discrimination, section 3.4
        - Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers (k = 20)
    """
    classes, winners = _winners(
        train_features, train_labels, test_features, k, temperature, block_size
    )
    return classes[np.maximum(winners, 0)]


def knn_accuracy(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    k: int = 20,
    temperature: float = 0.1,
    block_size: int = 256,
) -> float:
    """Accuracy of `knn_predict`, a fraction from 0 to 1.

    Args:
        train_features: `(n, dim)`, as in `knn_predict`.
        train_labels: `(n,)`, integers or strings.
        test_features: `(m, dim)`.
        test_labels: `(m,)`. A label that no training sample has counts as wrong, and so does a
            test feature that is not finite.
        k: number of neighbours. Defaults to 20, DINO's best.
        temperature: of the weights. Defaults to 0.1, as in lightly's benchmarks.
        block_size: test samples compared at a time. Defaults to 256.

    Returns:
        The fraction of test samples whose label is predicted rightly.

    Raises:
        ValueError: as `knn_predict`, and if the test labels don't fit.

    Example:
    >>> knn_accuracy([[1.0, 0.0], [0.0, 1.0]], [7, 8], [[3.0, 1.0], [1.0, 2.0]], [7, 7], k=1)
    0.5

    Reference:
        - Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance
          Discrimination, section 3.4
    """
    test_labels = as_labels(test_labels, "test_labels", len(test_features))
    classes, winners = _winners(
        train_features, train_labels, test_features, k, temperature, block_size
    )
    if (classes.dtype.kind in "US") != (test_labels.dtype.kind in "US"):
        raise ValueError(
            "`train_labels` and `test_labels` must be of one type. "
            f"Received: {classes.dtype} and {test_labels.dtype}"
        )
    return float(np.mean((classes[winners] == test_labels) & (winners >= 0)))


def _winners(
    train_features, train_labels, test_features, k, temperature, block_size
) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and the index of each test sample's among them: -1 where it has no neighbours."""
    train = as_features(train_features, "train_features")
    test = as_features(test_features, "test_features")
    labels = as_labels(train_labels, "train_labels", len(train))
    check_neighbours(k, len(train), temperature)
    arguments.count("block_size", block_size)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            "`test_features` must have as many columns as `train_features`. "
            f"Received: {test.shape[1]} and {train.shape[1]}"
        )
    classes, class_ids = np.unique(labels, return_inverse=True)
    finite = np.isfinite(train).all(axis=1)
    winners = np.full(len(test), -1)
    if not finite.any():
        return classes, winners
    train, class_ids, k = unit_length(train[finite]), class_ids[finite], min(k, finite.sum())
    for start in range(0, len(test), block_size):
        block = test[start : start + block_size]
        usable = np.flatnonzero(np.isfinite(block).all(axis=1))
        similarity = unit_length(block[usable]) @ train.T  # (block, n)
        votes = _votes(similarity, class_ids, len(classes), k, temperature)
        winners[start + usable] = np.argmax(votes, axis=1)
    return classes, winners


def _votes(similarity, class_ids, classes: int, k: int, temperature: float) -> np.ndarray:
    """Summed weights of each class among the k nearest, `(block, classes)`."""
    nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
    s = np.take_along_axis(similarity, nearest, axis=1).astype("float64")
    # The nearest weighs 1: a factor a row changes no vote, and exp(1 / T) may overflow.
    weights = np.exp((s - s.max(axis=1, keepdims=True, initial=-1)) / temperature)
    rows = np.arange(len(s))[:, np.newaxis] * classes
    flat = np.bincount((rows + class_ids[nearest]).ravel(), weights.ravel(), len(s) * classes)
    return flat.reshape(len(s), classes)


def check_neighbours(k: int, samples: int, temperature: float) -> None:
    """Refuses a `k` or a `temperature` that means nothing among so many training samples."""
    arguments.count("k", k)
    if k > samples:
        raise ValueError(
            f"`k` must be at most the number of training samples, {samples}. Received: k={k}"
        )
    arguments.positive_number("temperature", temperature)
