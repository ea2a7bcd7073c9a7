"""Singular values of features, from which collapse can be seen."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sslmeta.evaluation.representation_health import representation_health
from keras_sslmeta.evaluation.representation_health_result import RepresentationHealthResult
from keras_sslmeta.visualization.palette import COLORS, FAINT, INK

_FLOOR = 1e-8  # Relative to the largest: below is float32's rounding.


def plot_spectrum(
    features: Any | Mapping[str, Any],
    ax: Any = None,
) -> Any:
    """Draws the singular values of features, relative to the largest, on a logarithmic scale.

    A spectrum that falls off slowly uses many directions; one that drops to rounding, about 1e-7 in
    float32, has lost those behind the drop. The legend gives each one's RankMe. Compare encoders on
    the same samples: more samples have larger and more singular values.

    Args:
        features: `{name: features}`, where features are `(n, dim)`, `(n, views, dim)` or what
            `evaluation.representation_health` returns; or one of them without a name.
        ax: matplotlib axes to draw on. Default: those of a new `Figure`.

    Returns:
        The axes. `ax.figure.savefig("spectrum.png")` saves the picture.

    Raises:
        ValueError: if there are no features, or they have another rank or are not finite.

    Example:
    >>> random = np.random.default_rng(0)
    >>> spread = random.normal(size=(1000, 8))
    >>> ax = plot_spectrum({"spread": spread, "collapsed": spread @ np.diag([1, 1, 0, 0, 0, 0, 0, 0])})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['spread, RankMe 8.0', 'collapsed, RankMe 2.0']

    Reference:
        - Jing et al. 2022, Understanding Dimensional Collapse in Contrastive Self-supervised Learning
          (the picture). https://arxiv.org/abs/2110.09348
        - Petroff 2021, Accessible Color Sequences for Data Visualization (the colours)
    """
    named = dict(features) if isinstance(features, Mapping) else {"": features}
    if not named:
        raise ValueError("`features` must hold features at least once. Received: {}")
    results = {str(name): _result(name, value) for name, value in named.items()}
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(6, 3.6), layout="constrained").subplots()
    for i, (name, result) in enumerate(results.items()):
        values = result.singular_values / max(result.singular_values[0], np.finfo("float64").tiny)
        ax.plot(
            np.arange(1, len(values) + 1),
            values.clip(min=_FLOOR),
            color=COLORS[i % len(COLORS)],
            linewidth=1.8,
            linestyle=("-", "--", ":")[i // len(COLORS) % 3],
            marker="o" if len(values) < 3 else "",  # A line of one point is invisible.
            label=f"{name}, RankMe {result.rankme:.1f}".removeprefix(", "),
        )
    _style(ax)
    return ax


def _result(name, value) -> RepresentationHealthResult:
    result = (
        value if isinstance(value, RepresentationHealthResult) else representation_health(value)
    )
    if not np.isfinite(result.singular_values).all():
        raise ValueError(f"`features` must be finite. Received: a NaN or an infinity in {name!r}")
    return result


def _style(ax) -> None:
    ax.set_yscale("log")
    ax.set_ylim(_FLOOR, 2)
    ax.set_xlabel("index", color=INK)
    ax.set_ylabel("singular value / largest", color=INK)
    ax.set_title("Spectrum of the features", color=INK)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.tick_params(colors=INK)
    ax.spines[:].set_color(FAINT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.legend(frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
