"""Accuracy of a linear probe with its interval."""

import dataclasses

import numpy as np

from keras_sslmeta.evaluation.few_shot_result import half_interval
from keras_sslmeta.mechanisms import arguments


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LinearProbeResult:
    """How a linear classifier ranks the true class of each test sample.

    Attributes:
        ranks: how many classes score above the true one, `(m,)`: 0 where the prediction is right,
            the number of classes where the true one was never seen or the features are not finite.
        labels: the test labels, `(m,)`.
        classes: number of classes that the classifier knows.
        C: inverse of the penalty; None where the classifier was given.
        train_samples: number of samples that the classifier was fitted to.

    Example:
    >>> result = LinearProbeResult(np.array([0, 0, 1, 0]), np.array(["a", "a", "b", "b"]), 3)
    >>> print(result)
    75.0 ± 49.0 %
    >>> result.macro_accuracy, result.top_k_accuracy(2)
    (0.75, 1.0)
    """

    ranks: np.ndarray
    labels: np.ndarray
    classes: int
    C: float | None = None
    train_samples: int = 0

    @property
    def accuracy(self) -> float:
        """The fraction of test samples whose class scores highest, from 0 to 1."""
        return float(np.mean(self.ranks == 0))

    @property
    def half_interval(self) -> float:
        """Half the 95% interval over test samples, 1.96·σ/√m; NaN for a single sample."""
        return half_interval(self.ranks == 0)

    @property
    def macro_accuracy(self) -> float:
        """Mean over the test set's classes of the accuracy in each."""
        _, ids = np.unique(self.labels, return_inverse=True)
        return float(np.mean(np.bincount(ids, self.ranks == 0) / np.bincount(ids)))

    def top_k_accuracy(self, k: int = 5) -> float:
        """The fraction of test samples whose class is among the k that score highest.

        Args:
            k: defaults to 5, ImageNet's; below the number of classes, or it says nothing.

        Raises:
            ValueError: if `k` is not a positive integer below the number of classes.
        """
        arguments.count("k", k)
        if k >= self.classes:
            raise ValueError(
                f"`k` must be below the number of classes, {self.classes}. Received: k={k}"
            )
        return float(np.mean(self.ranks < k))

    def paired_difference(self, other: "LinearProbeResult") -> tuple[float, float]:
        """How much better this result is than another on the same test samples.

        Args:
            other: result on the same test samples, in the same order.

        Returns:
            `(difference, half_interval)`: mean of this accuracy minus the other, and half the 95%
            interval of the differences sample by sample, both as fractions.

        Raises:
            ValueError: if the test labels differ.
        """
        if not np.array_equal(self.labels, other.labels):
            raise ValueError(
                "`other` must be a result on the same test samples, in the same order. "
                f"Received: {other!r}, whose test labels are others than those of {self!r}"
            )
        differences = (self.ranks == 0).astype(float) - (other.ranks == 0)
        return float(np.mean(differences)), half_interval(differences)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.half_interval:.1f} %"

    def __repr__(self) -> str:
        strength = "" if self.C is None else f", C={self.C:g}"
        return (
            f"LinearProbeResult({self}, {self.train_samples} training and {len(self.ranks)} test "
            f"samples{strength})"
        )
