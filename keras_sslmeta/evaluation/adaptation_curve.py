"""What a gradient-based meta-learner gains with each adaptation step."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.evaluation.adaptation_curve_result import AdaptationCurve
from keras_sslmeta.evaluation.episode_source import EpisodesKey, batches_of_tasks
from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.meta.episodic import check_episode


def adaptation_curve(
    model: Any,
    episodes: tf.data.Dataset | tuple[dict, Any],
    steps: int = 10,
    metric: Callable | None = None,
    verbose: int | str = "auto",
) -> AdaptationCurve:
    """Measures how well a meta-learner answers queries after 0, 1, …, `steps` adaptation steps.

    An episode's value is the mean over its queries; intervals are over episodes. Episodes that are
    functions of a seed, as those of `keras_sslmeta.data`, let two models be compared on the same
    ones: see `AdaptationCurve.paired_difference`.

    Args:
        model: a meta-learner with `predict_along`, such as `MAML`.
        episodes: a finite `tf.data.Dataset` of batches of episodes, `({"support_x", "support_y",
            "query_x"}, query_y)`, as `data.episodes(…, episodes=600).batch(32)` gives them; or one
            such pair of arrays, each with an axis of tasks in front.
        steps: the largest number of adaptation steps, from 0. Defaults to 10.
        metric: a function `(y_true, y_pred) → values`, one a query (further axes are averaged),
            as Keras's are: `keras.metrics.sparse_categorical_accuracy`,
            `keras.losses.mean_squared_error`. It gets NumPy arrays `(tasks · queries, …)`. Default:
            `sparse_categorical_accuracy` where labels are integers and predictions have an axis of
            classes, and `mean_squared_error` otherwise; where the compiled loss is another
            crossentropy, there is no default.
        verbose: 0 for silence, 1 for a progress bar, 2 for a line at the end. Defaults to "auto",
            which is 1, as in Keras.

    Returns:
        An `AdaptationCurve`. A query of which a prediction is NaN counts as wrong in accuracies.

    Raises:
        ValueError: if an argument is not as described, such as episodes without end or not
            batched, or a metric that gives no value a query.

    Example:
    >>> import keras_sslmeta as ksm
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> maml = ksm.MAML(network, inner_learning_rate=0.01)
    >>> maml.compile(loss="mse")
    >>> episodes = ksm.data.sinusoids(episodes=40, seed=0).batch(20)
    >>> curve = adaptation_curve(maml, episodes, steps=3, verbose=0)
    >>> curve.metric_name, curve.mean.shape, curve.per_episode.shape
    ('mean_squared_error', (4,), (40, 4))

    Reference:
        - Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep
          Networks, figure 3 (such a curve)
    """
    _check_arguments(model, steps, metric)
    level = arguments.verbosity(verbose)
    steps = int(steps)
    batches, count = batches_of_tasks("episodes", episodes)
    bar = keras.utils.Progbar(
        count, verbose=level, unit_name="batch", stateful_metrics=("before", "after")
    )
    rows: list[np.ndarray] = []
    key = EpisodesKey()
    for number, batch in enumerate(batches, 1):
        inputs, query_y = _checked(batch)
        key.add(inputs, query_y)
        predictions = keras.tree.map_structure(_as_wide, model.predict_along(inputs, steps))
        _check_predictions(predictions, query_y, steps)
        metric = _default_metric(model, query_y, predictions) if metric is None else metric
        rows.append(_measured(metric, query_y, predictions, steps))
        if level:
            means = np.mean(np.concatenate(rows), axis=0)
            bar.update(number, values=[("before", means[0]), ("after", means[-1])])
    if metric is None or not rows:
        raise ValueError("`episodes` must hold an episode at least. Received: none")
    if level and count is None:
        bar.target = len(rows)
        bar.update(len(rows), finalize=True)
    return AdaptationCurve(np.concatenate(rows), _name(metric), key.value)


def _checked(batch: Any) -> tuple[dict, Any]:
    """The episodes' inputs and the queries' targets as NumPy arrays, of shapes that agree."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        held = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ValueError(
            "`episodes` must hold pairs, ({'support_x': …, 'support_y': …, 'query_x': …}, "
            f"query_y). Received: {type(batch).__name__}{held}"
        )
    inputs, query_y = batch
    query_y = keras.tree.map_structure(keras.ops.convert_to_numpy, query_y)
    shapes = [y.shape for y in keras.tree.flatten(query_y)]
    if any(len(shape) < 2 for shape in shapes):
        raise ValueError(
            "`episodes` must be batches of episodes, query_y of shape (tasks, queries, …): call "
            f"`batch(32)` on the dataset. Received: query_y of shape={shapes[0]}"
        )
    episode = check_episode(inputs)
    wanted = tuple(keras.tree.flatten(episode["query_x"])[0].shape[:2])
    if any(shape[:2] != wanted for shape in shapes):
        raise ValueError(
            "The queries' targets and `query_x` must have the same numbers of tasks and queries. "
            f"Received: {shapes[0][:2]} and {wanted}"
        )
    return inputs, query_y


def _default_metric(model: Any, query_y: Any, predictions: Any) -> Callable:
    """Accuracy of integer labels, or the squared error."""
    loss, first = str(getattr(model, "loss", None)), _after(predictions, 0)
    if isinstance(query_y, np.ndarray) and isinstance(first, np.ndarray):
        shape = first.shape
        has_classes = query_y.shape in (shape[:-1], (*shape[:-1], 1)) and shape[-1] > 1
        if query_y.dtype.kind in "iu" and has_classes:
            return keras.metrics.sparse_categorical_accuracy
        without_ones = [s[:-1] if s[2:] and s[-1] == 1 else s for s in (query_y.shape, shape)]
        if without_ones[0] == without_ones[1] and "crossentropy" not in loss.lower():
            return keras.losses.mean_squared_error
    shapes = [[x.shape for x in keras.tree.flatten(nest)] for nest in (query_y, first)]
    raise ValueError(
        "`metric` must be given for these targets and predictions, such as "
        "keras.metrics.categorical_accuracy for one-hot labels. Received: metric=None, targets "
        f"of shapes {shapes[0]}, predictions of shapes {shapes[1]}, loss={loss}"
    )


def _measured(metric: Callable, query_y: Any, predictions: Any, steps: int) -> np.ndarray:
    """Means over the queries of each task after each number of steps, `(tasks, steps + 1)`."""
    tasks = len(keras.tree.flatten(query_y)[0])
    y_true = keras.tree.map_structure(_merged, query_y)
    columns = []
    for k in range(steps + 1):
        y_pred = keras.tree.map_structure(_merged, _after(predictions, k))
        values = _of_queries(metric, y_true, y_pred)
        columns.append(values.reshape(tasks, -1).mean(axis=1))
    return np.stack(columns, axis=1)


def _of_queries(metric: Callable, y_true: Any, y_pred: Any) -> np.ndarray:
    """The metric's value of each query, in float64."""
    values = keras.ops.convert_to_numpy(metric(*_aligned(y_true, y_pred)))
    count = len(keras.tree.flatten(y_true)[0])
    if values.shape[:1] != (count,):
        raise ValueError(
            "`metric` must give a value for each query, without taking their mean. "
            f"Received: shape={values.shape} for {count} queries"
        )
    values = values.astype("float64").reshape(count, -1).mean(axis=1)
    if "accuracy" in _name(metric):
        # The largest of NaNs is the first: they would be right wherever class 0 is.
        for array in keras.tree.flatten(y_pred):
            values[np.isnan(array.reshape(count, -1)).any(axis=1)] = 0.0
    return values


def _aligned(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Of `(n,)` and `(n, 1)`, or twice `(n,)`, both as `(n, 1)`: Keras averages the last axis."""
    if not isinstance(y_true, np.ndarray) or not isinstance(y_pred, np.ndarray):
        return y_true, y_pred
    if y_pred.ndim == 1:
        y_pred = y_pred[:, np.newaxis]
    if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
        y_true = y_true[..., np.newaxis]
    return y_true, y_pred


def _after(predictions: Any, k: int) -> Any:
    """Those after k steps, `(tasks, queries, …)`."""
    return keras.tree.map_structure(lambda x: x[:, k], predictions)


def _merged(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])


def _as_wide(x: Any) -> np.ndarray:
    """Half precision as single: Keras compares labels in the predictions' type."""
    x = keras.ops.convert_to_numpy(x)
    return x.astype("float32") if x.dtype.name in ("float16", "bfloat16") else x


def _name(metric: Any) -> str:
    metric = getattr(metric, "func", metric)  # Of functools.partial.
    name = getattr(metric, "__name__", None) or getattr(metric, "name", None) or str(metric)
    return name if name.isidentifier() else "metric"


def _check_arguments(model: Any, steps: Any, metric: Any) -> None:
    if not callable(getattr(model, "predict_along", None)):
        raise ValueError(
            "`model` must be a meta-learner with `predict_along`, such as keras_sslmeta.MAML. "
            f"Received: {model!r}"
        )
    arguments.count("steps", steps, least=0)
    is_one_number = isinstance(metric, (type, keras.Metric)) or (
        isinstance(metric, keras.Loss) and metric.reduction not in (None, "none")
    )
    if metric is not None and (is_one_number or not callable(metric)):
        raise ValueError(
            "`metric` must be a function (y_true, y_pred) → values, one a query, as Keras has "
            "beside its classes: keras.losses.mean_squared_error, not MeanSquaredError. "
            f"Received: {metric!r}"
        )


def _check_predictions(predictions: Any, query_y: Any, steps: int) -> None:
    tasks, queries = keras.tree.flatten(query_y)[0].shape[:2]
    wanted = (tasks, steps + 1, queries)
    for array in keras.tree.flatten(predictions):
        if array.shape[:3] != wanted:
            raise ValueError(
                "`model.predict_along` must give (tasks, steps + 1, queries, …), here "
                f"{wanted}. Received: shape={array.shape}"
            )
