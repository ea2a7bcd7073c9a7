"""A function of one number before and after it adapts to a few points."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.visualization.palette import COLORS, FAINT, INK

_POINTS = 200  # Of the curves: enough to look smooth.
_COLORS = (COLORS[0], COLORS[2], COLORS[4], COLORS[6], COLORS[5])


def plot_adapted_functions(
    model: Any,
    episode: tuple[dict, Any],
    steps: Iterable[int] = (0, 1, 10),
    x: Any = None,
    true: Callable | None = None,
    ax: Any = None,
) -> Any:
    """Draws what a meta-learner makes of a regression task in one dimension, step by step.

    Support points are triangles. The true curve is `true`, or goes through the queries where they
    lie on a grid (`data.sinusoids(query_grid=True, queries=100)`); queries elsewhere are dots.

    Args:
        model: a meta-learner with `predict_along`, such as `MAML`, from one number to one number.
        episode: one, without an axis of tasks: `({"support_x", "support_y", …}, query_y)`, as
            `next(iter(data.sinusoids()))` gives it.
        steps: the numbers of adaptation steps after which to draw the function, each from 0.
            Defaults to (0, 1, 10): before adaptation, and after as many as in the paper's figure.
        x: where to evaluate the functions, `(n,)`. Default: 200 points from the least support or
            query x to the greatest. Under batch normalisation by the batch at hand, these points
            are the batch.
        true: the true curve, if known: a function from x to y, arrays `(n,)`. Default: as above.
        ax: matplotlib axes to draw on. Default: those of a new `Figure`.

    Returns:
        The axes. `ax.figure.savefig("functions.png")` saves the picture.

    Raises:
        ValueError: if the episode is not of one task of one number, or an argument is out of range.

    Example:
    >>> import keras_sslmeta as ksm
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> maml = ksm.MAML(network, inner_learning_rate=0.01)
    >>> maml.compile(loss="mse")
    >>> episode = next(iter(ksm.data.sinusoids(shots=5, queries=50, seed=0, query_grid=True)))
    >>> ax = plot_adapted_functions(maml, episode, steps=(0, 1))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['true curve', 'before adaptation', 'after 1 step', 'support']

    Reference:
        - Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep
          Networks, figure 2 (such a picture)
    """
    numbers = _checked_steps(steps)
    if not callable(getattr(model, "predict_along", None)):
        raise ValueError(
            "`model` must be a meta-learner with `predict_along`, such as keras_sslmeta.MAML. "
            f"Received: {model!r}"
        )
    if true is not None and not callable(true):
        raise ValueError(f"`true` must be None or a function from x to y. Received: {true!r}")
    support_x, support_y, query_x, query_y = _points(episode)
    ends = np.concatenate([support_x, query_x])
    x = np.linspace(ends.min(), ends.max(), _POINTS) if x is None else _checked_x(x)
    functions = _functions(model, episode[0], x, max(numbers))
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(6, 3.6), layout="constrained").subplots()
    if true is not None:
        _draw_true(ax, x, np.reshape(true(x), -1))
    elif _is_grid(query_x):
        _draw_true(ax, query_x, query_y)
    else:
        ax.plot(query_x, query_y, ".", color=COLORS[3], markersize=5, label="queries")
    for i, k in enumerate(numbers):
        label = f"after {k} step{'s' * (k != 1)}" if k else "before adaptation"
        style = {"color": _COLORS[i % len(_COLORS)], "linestyle": "-" if k else "--"}
        ax.plot(x, functions[k], linewidth=1.8, label=label, **style)
    ax.plot(support_x, support_y, "^", color=INK, markersize=7, label="support", zorder=3)
    _style(ax)
    return ax


def _functions(model: Any, inputs: dict, x: np.ndarray, steps: int) -> np.ndarray:
    """The model's function at `x` after each number of steps, `(steps + 1, n)`."""
    support = {
        key: keras.ops.convert_to_numpy(inputs[key])[np.newaxis]
        for key in ("support_x", "support_y")
    }
    like = support["support_x"]
    points = x.reshape(1, len(x), *like.shape[2:]).astype(like.dtype)
    values = model.predict_along({**support, "query_x": points}, steps)
    values = np.asarray(values) if not isinstance(values, (dict, list, tuple)) else np.zeros(0)
    if values.size != (steps + 1) * len(x):
        raise ValueError(
            "`model` must give one number a sample. Received: predictions of "
            f"shape={values.shape} for {len(x)} samples after each of 0 to {steps} steps"
        )
    return values.reshape(steps + 1, len(x))


def _draw_true(ax, x: np.ndarray, y: np.ndarray) -> None:
    ax.plot(x, y, color=COLORS[1], linewidth=3, alpha=0.6, label="true curve")


def _is_grid(x: np.ndarray) -> bool:
    """Whether the points stand in order, at equal distances."""
    gaps = np.diff(x)
    return len(x) > 2 and gaps[0] > 0 and bool(np.allclose(gaps, gaps[0], rtol=1e-2))


def _points(episode: Any) -> list[np.ndarray]:
    """Support and query points of an episode, `(n,)` each."""
    keys = ("support_x", "support_y", "query_x")
    is_pair = isinstance(episode, (tuple, list)) and len(episode) == 2
    if not is_pair or not isinstance(episode[0], dict) or not set(keys) <= set(episode[0]):
        raise ValueError(
            "`episode` must be ({'support_x': …, 'support_y': …, 'query_x': …}, query_y), as "
            f"`next(iter(data.sinusoids()))` gives it. Received: {type(episode).__name__}"
        )
    arrays = {key: np.asarray(episode[0][key]) for key in keys} | {
        "query_y": np.asarray(episode[1])
    }
    for name, array in arrays.items():
        if array.ndim not in (1, 2) or array.size == 0 or array.shape[1:] not in ((), (1,)):
            raise ValueError(
                "`episode` must be one task from one number to one number, without an axis of "
                f"tasks: (samples, 1). Received: {name} of shape={array.shape}"
            )
    for part in ("support", "query"):
        lengths = len(arrays[f"{part}_x"]), len(arrays[f"{part}_y"])
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"`episode` must have as many {part}_x as {part}_y. "
                f"Received: {lengths[0]} and {lengths[1]}"
            )
    return [arrays[name].reshape(-1) for name in (*keys, "query_y")]


def _checked_x(x: Any) -> np.ndarray:
    points = np.asarray(x)
    if points.size == 0 or points.ndim not in (1, 2) or points.shape[1:] not in ((), (1,)):
        raise ValueError(f"`x` must be points (n,), one at least. Received: shape={points.shape}")
    return points.reshape(-1)


def _checked_steps(steps: Any) -> list[int]:
    numbers = list(steps) if isinstance(steps, Iterable) else []
    if not numbers or not all(arguments.is_integer(k) and k >= 0 for k in numbers):
        raise ValueError(
            f"`steps` must be integers from 0, one at least. Received: steps={steps!r}"
        )
    return [int(k) for k in numbers]


def _style(ax) -> None:
    ax.set_xlabel("x", color=INK)
    ax.set_ylabel("y", color=INK)
    ax.set_title("Functions before and after adaptation", color=INK)
    ax.tick_params(colors=INK)
    ax.spines[:].set_color(FAINT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(framealpha=0.8, edgecolor="none", labelcolor=INK, fontsize=9)
