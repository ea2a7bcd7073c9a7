"""Loss and probe accuracy over the epochs."""

from collections.abc import Sequence
from typing import Any

from keras_sslmeta.visualization.palette import COLORS, FAINT, INK

_LOSSES = ("loss", "val_loss")
_METRIC_COLORS = (COLORS[2], COLORS[4], COLORS[1], COLORS[5], COLORS[8])


def plot_learning_curve(history: Any, metrics: Sequence[str] | None = None, ax: Any = None) -> Any:
    """Draws the loss on the left axis and probe metrics on the right one.

    Args:
        history: what `fit` returns, or a dict from names to one value an epoch.
        metrics: keys of the history for the right axis. Default: all that are neither a loss nor
            the learning rate. A validation metric is dashed, in the colour of its training one.
        ax: matplotlib axes to draw on. Default: those of a new `Figure`.

    Returns:
        The axes of the loss. `ax.figure.savefig("curve.png")` saves the picture.

    Raises:
        ValueError: if the history is empty, or lacks one of the metrics.

    Example:
    >>> ax = plot_learning_curve({"loss": [3.0, 2.0, 1.5], "knn_accuracy": [0.5, 0.7, 0.8]})
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('epoch', 'loss')

    Reference:
        - Petroff 2021, Accessible Color Sequences for Data Visualization (the colours)
    """
    values = dict(getattr(history, "history", history))
    if not values or not all(len(series) for series in values.values()):
        raise ValueError(f"`history` must hold an epoch at least. Received: {values}")
    losses = [key for key in _LOSSES if key in values]
    if metrics is None:
        rates = ("lr", "learning_rate")
        metrics = [
            key for key in values if key not in (*rates, *losses) and not key.endswith("loss")
        ]
    missing = [key for key in metrics if key not in values]
    if missing:
        raise ValueError(
            f"`metrics` must be keys of the history: {', '.join(values)}. Received: {missing}"
        )
    first = (getattr(history, "epoch", None) or [0])[0] + 1
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(6, 3.6), layout="constrained").subplots()
    lines = [
        _line(ax, values[key], first, key, COLORS[0], dashed=key.startswith("val_"))
        for key in losses
    ]
    _style(ax, "loss", COLORS[0] if losses else INK)
    if metrics:
        right = ax.twinx()
        lines += _metric_lines(right, values, metrics, first)
        if all("accuracy" in key for key in metrics):
            _mark_percents(right)
        _style(right, _axis_label(metrics), _METRIC_COLORS[0] if len(metrics) == 1 else INK)
    ax.set_xlabel("epoch", color=INK)
    ax.set_title("Learning curve", color=INK)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    (right if metrics else ax).legend(
        handles=lines, frameon=False, loc="center right", labelcolor=INK
    )
    return ax


def _metric_lines(ax, values, metrics, first) -> list:
    stems = list(dict.fromkeys(key.removeprefix("val_") for key in metrics))
    colors = {stem: _METRIC_COLORS[i % len(_METRIC_COLORS)] for i, stem in enumerate(stems)}
    return [
        _line(
            ax,
            values[key],
            first,
            key,
            colors[key.removeprefix("val_")],
            dashed=key.startswith("val_"),
        )
        for key in metrics
    ]


def _line(ax, series, first: int, key: str, color: str, dashed: bool):
    epochs = range(first, first + len(series))
    marker = "o" if len(series) < 3 else ""  # A line of one point is invisible.
    (line,) = ax.plot(
        epochs,
        series,
        color=color,
        linewidth=1.8,
        linestyle="--" if dashed else "-",
        marker=marker,
        label=key.replace("_", " "),
    )
    return line


def _mark_percents(ax) -> None:
    from matplotlib.ticker import PercentFormatter

    ax.yaxis.set_major_formatter(PercentFormatter(1))


def _axis_label(metrics: Sequence[str]) -> str:
    if len(metrics) == 1:
        return metrics[0].replace("_", " ")
    return "accuracy" if all("accuracy" in key for key in metrics) else "metrics"


def _style(ax, label: str, color: str) -> None:
    ax.set_ylabel(label, color=color)
    ax.tick_params(axis="y", colors=color)
    ax.tick_params(axis="x", colors=INK)
    ax.spines[:].set_color(FAINT)
    ax.spines["top"].set_visible(False)
