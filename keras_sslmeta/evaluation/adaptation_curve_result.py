"""A measure after each adaptation step, with its intervals."""

import dataclasses
import math

import numpy as np

from keras_sslmeta.evaluation.few_shot_result import half_interval


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AdaptationCurve:
    """How well a meta-learner answers after 0, 1, … adaptation steps.

    Attributes:
        per_episode: the measure in each episode after each number of steps, `(episodes, steps + 1)`:
            column k belongs to k steps.
        metric_name: of the measure. Where it contains "accuracy", values are fractions from 0 to 1.
        episodes_key: a number that stands for the episodes; curves on the same episodes share it.

    Example:
    >>> errors = np.array([[4.0, 2.0, 1.0], [6.0, 3.0, 1.0]])
    >>> curve = AdaptationCurve(errors, "mean_squared_error")
    >>> curve.mean
    array([5. , 2.5, 1. ])
    >>> print(curve)
    steps  mean squared error
        0  5.00 ± 1.96
        1  2.50 ± 0.98
        2  1.00 ± 0.00
    """

    per_episode: np.ndarray
    metric_name: str = "metric"
    episodes_key: int = 0

    @property
    def steps(self) -> int:
        """The largest number of adaptation steps."""
        return self.per_episode.shape[1] - 1

    @property
    def mean(self) -> np.ndarray:
        """Mean over the episodes after each number of steps, `(steps + 1,)`."""
        return np.mean(self.per_episode, axis=0)

    @property
    def half_interval(self) -> np.ndarray:
        """Half the 95% intervals, 1.96·σ/√episodes, `(steps + 1,)`; NaN for a single episode."""
        return half_intervals(self.per_episode)

    def paired_difference(self, other: "AdaptationCurve") -> tuple[np.ndarray, np.ndarray]:
        """This curve minus another on the same episodes.

        The intervals are those of the differences episode by episode, which are narrower than the
        two curves' own: an episode that is hard is hard for both.

        Args:
            other: curve of the same metric and number of steps on the same episodes.

        Returns:
            `(difference, half_interval)`: means of this measure minus the other, and half their
            95% intervals, `(steps + 1,)` each.

        Raises:
            ValueError: if the other curve has another metric, other steps or other episodes.
        """
        if self.metric_name != other.metric_name or self.steps != other.steps:
            raise ValueError(
                "`other` must be a curve of the same metric and number of steps. "
                f"Received: {other!r} for {self!r}"
            )
        same = self.episodes_key == other.episodes_key
        if not same or len(self.per_episode) != len(other.per_episode):
            raise ValueError(
                "`other` must be a curve on the same episodes, in the same order. "
                f"Received: {other!r}, which has others than {self!r}"
            )
        differences = self.per_episode - other.per_episode
        return np.mean(differences, axis=0), half_intervals(differences)

    def __str__(self) -> str:
        """A table of 0, 1, 2, 5, 10, 20, 50 … steps and the last."""
        shown = [n * 10**p for p in range(len(str(self.steps))) for n in (1, 2, 5)]
        shown = [0, *(k for k in shown if k < self.steps), self.steps][: self.steps + 1]
        mean, half = self.mean, self.half_interval
        lines = [f"steps  {self.metric_name.replace('_', ' ')}"]
        return "\n".join(lines + [f"{k:5d}  {self._value(mean[k], half[k])}" for k in shown])

    def __repr__(self) -> str:
        mean = self.mean
        return (
            f"AdaptationCurve({self.metric_name} {mean[0]:.3g} before and {mean[-1]:.3g} after "
            f"{self.steps} steps, {len(self.per_episode)} episodes)"
        )

    def _value(self, mean: float, half: float) -> str:
        if "accuracy" in self.metric_name:
            return f"{100 * mean:.1f} ± {100 * half:.1f} %"
        if not 1e-4 <= abs(mean) < 1e6:  # Or NaN.
            return f"{mean:.3g} ± {half:.2g}"
        decimals = max(0, 2 - math.floor(math.log10(abs(mean))))
        return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def half_intervals(values: np.ndarray) -> np.ndarray:
    return np.array([half_interval(column) for column in values.T])
