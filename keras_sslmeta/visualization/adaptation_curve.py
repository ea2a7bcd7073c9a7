"""What each adaptation step gains, with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sslmeta.evaluation.adaptation_curve_result import AdaptationCurve
from keras_sslmeta.visualization.palette import COLORS, FAINT, INK

_COLORS = (COLORS[0], COLORS[2], COLORS[4], COLORS[6], COLORS[1], COLORS[5], COLORS[8])


def plot_adaptation_curve(
    curves: AdaptationCurve | Mapping[str, AdaptationCurve], ax: Any = None
) -> Any:
    """Draws means over episodes after each adaptation step, their 95% intervals shaded.

    Args:
        curves: what `evaluation.adaptation_curve` gives, or a dict from names for the legend to
            several of one metric.
        ax: matplotlib axes to draw on. Default: those of a new `Figure`.

    Returns:
        The axes. `ax.figure.savefig("adaptation.png")` saves the picture.

    Raises:
        ValueError: if there is no curve, something else than curves, or curves of several metrics.

    Example:
    >>> from keras_sslmeta.evaluation import AdaptationCurve
    >>> errors = np.array([[4.0, 2.0, 1.0], [6.0, 3.0, 1.0]])
    >>> ax = plot_adaptation_curve({"MAML": AdaptationCurve(errors, "mean_squared_error")})
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('adaptation steps', 'mean squared error')

    Reference:
        - Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep
          Networks, figure 3 (such a curve)
    """
    named = dict(curves) if isinstance(curves, Mapping) else {"": curves}
    if not named or not all(isinstance(curve, AdaptationCurve) for curve in named.values()):
        raise ValueError(
            "`curves` must be an AdaptationCurve, or a dict from names to one or more of them. "
            f"Received: {curves!r}"
        )
    metrics = {curve.metric_name for curve in named.values()}
    if len(metrics) > 1:
        raise ValueError(
            f"`curves` must all be of one metric. Received: {', '.join(sorted(metrics))}"
        )
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(6, 3.6), layout="constrained").subplots()
    for i, (name, curve) in enumerate(named.items()):
        _draw_curve(ax, curve, name, _COLORS[i % len(_COLORS)])
    _style(ax, metrics.pop())
    if isinstance(curves, Mapping):
        ax.legend(frameon=False, labelcolor=INK)
    return ax


def _draw_curve(ax, curve: AdaptationCurve, name: str, color: str) -> None:
    steps, mean, half = np.arange(curve.steps + 1), curve.mean, curve.half_interval
    ax.fill_between(steps, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
    marker = "o" if curve.steps <= 30 else ""
    ax.plot(steps, mean, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=name)


def _style(ax, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if "accuracy" in metric:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("adaptation steps", color=INK)
    ax.set_ylabel(metric.replace("_", " "), color=INK)
    ax.set_title("Adaptation", color=INK)
    ax.tick_params(colors=INK)
    ax.spines[:].set_color(FAINT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=FAINT, linewidth=0.6)
