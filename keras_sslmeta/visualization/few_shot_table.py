"""Few-shot accuracies side by side, with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sslmeta.evaluation.few_shot_result import FewShotResult
from keras_sslmeta.evaluation.few_shot_table import by_shots, column_name
from keras_sslmeta.visualization.palette import COLORS, FAINT, INK

_COLORS = (COLORS[0], COLORS[1], COLORS[4], COLORS[3], COLORS[2], COLORS[9], COLORS[5])
_GROUP = 0.8  # Of the distance between names.


def plot_few_shot(
    results: Mapping[str, FewShotResult] | Mapping[str, Mapping[Any, FewShotResult]],
    ax: Any = None,
) -> Any:
    """Draws a bar for each result's accuracy, with its 95% interval.

    Bars lie, so that names of any length can be read, the first on top. Intervals of two results
    that overlap may hide a difference on the same episodes: `evaluation.few_shot_table` tells.

    Args:
        results: `{name: result}`, or `{name: {shots: result}}` for a group of bars a name.
        ax: matplotlib axes to draw on. Default: those of a new `Figure`.

    Returns:
        The axes. `ax.figure.savefig("few_shot.png")` saves the picture.

    Raises:
        ValueError: if there is no result, or something else than results.

    Example:
    >>> random = np.random.default_rng(0)
    >>> result = FewShotResult(random.binomial(75, 0.8, 600) / 75)
    >>> ax = plot_few_shot({"raw pixels": {1: result}, "SimCLR": {1: result, 5: result}})
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['raw pixels', 'SimCLR']
    """
    rows = by_shots(results)
    columns = list(dict.fromkeys(shots for row in rows.values() for shots in row))
    if ax is None:
        from matplotlib.figure import Figure

        height = 1.2 + 0.25 * len(rows) * (len(columns) + 0.5)
        ax = Figure(figsize=(6, height), layout="constrained").subplots()
    for i, shots in enumerate(columns):
        places = [place for place, row in enumerate(rows.values()) if shots in row]
        column = [row[shots] for row in rows.values() if shots in row]
        thickness = _GROUP / len(columns)
        shift = (i - (len(columns) - 1) / 2) * thickness
        _draw_bars(
            ax, np.array(places) + shift, column, thickness, shots, _COLORS[i % len(_COLORS)]
        )
    _style(ax, [str(name) for name in rows])
    if columns != [None]:
        ax.legend(frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _draw_bars(ax, places, results: list[FewShotResult], thickness: float, shots, color) -> None:
    means = np.array([result.accuracy for result in results])
    halves = np.array([result.half_interval for result in results])
    label = column_name(shots)
    ax.barh(places, means, height=0.9 * thickness, color=color, label=label)
    ax.errorbar(means, places, xerr=halves, fmt="none", ecolor=INK, elinewidth=1.2, capsize=2.5)
    for place, mean, half in zip(places, means, np.nan_to_num(halves), strict=True):
        ax.annotate(
            f"{100 * mean:.1f}",
            (mean + half, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=8,
        )


def _style(ax, names: list[str]) -> None:
    from matplotlib.ticker import PercentFormatter

    ax.set_yticks(np.arange(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)  # The first on top.
    ax.set_xlim(0, 1.1)  # Room for the numbers of accuracies near 100%.
    ax.set_xticks(np.linspace(0, 1, 5))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel("accuracy", color=INK)
    ax.set_title("Few-shot accuracy", color=INK)
    ax.tick_params(colors=INK)
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_color(FAINT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
