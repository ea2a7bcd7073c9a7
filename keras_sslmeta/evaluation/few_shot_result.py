"""Few-shot accuracy with its interval."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FewShotResult:
    """Accuracies of few-shot episodes.

    Attributes:
        per_episode: accuracy in each episode, `(episodes,)`, fractions from 0 to 1.
        episodes_key: a number that stands for the episodes drawn; results on the same episodes
            share it.

    Example:
    >>> result = FewShotResult(np.array([0.5, 0.75, 1.0, 0.75]))
    >>> print(result)
    75.0 ± 20.0 %
    >>> result.accuracy
    0.75
    """

    per_episode: np.ndarray
    episodes_key: int = 0

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the episodes, a fraction from 0 to 1."""
        return float(np.mean(self.per_episode))

    @property
    def half_interval(self) -> float:
        """Half the 95% interval, 1.96·σ/√episodes; NaN for a single episode."""
        return half_interval(self.per_episode)

    def paired_difference(self, other: "FewShotResult") -> tuple[float, float]:
        """How much better this result is than another on the same episodes.

        The interval is that of the differences episode by episode, which is narrower than the
        two results' own: an episode that is hard is hard for both.

        Args:
            other: result on the same episodes.

        Returns:
            `(difference, half_interval)`: mean of this accuracy minus the other, and half its
            95% interval, both as fractions.

        Raises:
            ValueError: if the other result comes from other episodes.
        """
        same = self.episodes_key == other.episodes_key
        if not same or len(self.per_episode) != len(other.per_episode):
            raise ValueError(
                "`other` must be a result on the same episodes: same labels, ways, shots, queries, "
                f"episodes and seed. Received: {other!r}, which has others than {self!r}"
            )
        differences = self.per_episode - other.per_episode
        return float(np.mean(differences)), half_interval(differences)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.half_interval:.1f} %"

    def __repr__(self) -> str:
        return f"FewShotResult({self}, {len(self.per_episode)} episodes)"


def half_interval(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))
