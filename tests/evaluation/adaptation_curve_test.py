import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.evaluation import AdaptationCurve, FewShotResult, adaptation_curve

TASKS, QUERIES, STEPS = 7, 6, 3


def arrays(dataset, tasks):
    return next(iter(dataset.batch(tasks)))


class Recorded:
    """A model whose predictions for queries are known: those of `values`, by the episodes' number."""

    def __init__(self, values, loss=None):
        self.values, self.loss, self.sizes = values, loss, []

    def predict_along(self, episode, steps):
        ids = keras.ops.convert_to_numpy(episode["support_x"])[:, 0, 0].astype(int)
        self.sizes.append(len(ids))
        return keras.tree.map_structure(lambda x: x[ids, : steps + 1], self.values)


def numbered(query_y, tasks=TASKS):
    ids = np.broadcast_to(np.arange(tasks, dtype="float32")[:, None, None], (tasks, 2, 1))
    query_x = np.zeros((tasks, QUERIES, 1), "float32")
    return {"support_x": ids, "support_y": ids[..., 0], "query_x": query_x}, query_y


@pytest.fixture
def classes():
    random = np.random.default_rng(0)
    logits = random.normal(size=(TASKS, STEPS + 1, QUERIES, 4)).astype("float32")
    return logits, random.integers(0, 4, (TASKS, QUERIES))


def accuracies(logits, labels):
    """One query at a time."""
    return [
        [
            sum(list(row).index(max(row)) == label for row, label in zip(rows, truth, strict=True))
            / QUERIES
            for rows in task
        ]
        for task, truth in zip(logits, labels, strict=True)
    ]


@pytest.fixture(scope="module")
def sinusoids():
    """MAML, its episodes, and what models adapted to each of them one by one get wrong."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    )
    maml = ksm.MAML(network, inner_learning_rate=0.1)
    maml.compile(loss="mse")
    dataset = ksm.data.sinusoids(shots=4, queries=QUERIES, episodes=5, seed=1)
    errors = np.zeros((5, STEPS + 1))
    for i, (episode, query_y) in enumerate(dataset):
        for k in range(STEPS + 1):
            specialist = maml.adapt(episode["support_x"], episode["support_y"], steps=k)
            gaps = specialist(episode["query_x"]).numpy() - query_y.numpy()
            errors[i, k] = sum(gaps.ravel() ** 2) / QUERIES
    return maml, dataset, errors


@pytest.mark.parametrize("tasks_a_batch", [1, 2, 5])
def test_regression_equals_adapted_models_one_by_one(sinusoids, tasks_a_batch):
    maml, dataset, expected = sinusoids
    curve = adaptation_curve(maml, dataset.batch(tasks_a_batch), steps=STEPS, verbose=0)
    np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-4)
    assert np.ptp(expected, axis=1).min() > 0.01  # Adaptation does something.
    np.testing.assert_allclose(curve.mean, expected.mean(0), rtol=1e-4)
    assert curve.metric_name == "mean_squared_error"


def test_ends_where_evaluate_does(sinusoids):
    maml, dataset, _ = sinusoids
    curve = adaptation_curve(maml, arrays(dataset, 5), steps=STEPS, verbose=0)
    copy = ksm.MAML(maml.model, inner_learning_rate=0.1, test_inner_steps=STEPS)
    copy.compile(loss="mse")
    loss = copy.evaluate(dataset.batch(5), verbose=0, return_dict=True)["loss"]
    assert curve.mean[-1] == pytest.approx(loss, rel=1e-4)


def test_classification_equals_adapted_models_one_by_one():
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 8)
    x = (random.normal(size=(6, 5))[y] + 0.8 * random.normal(size=(48, 5))).astype("float32")
    network = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    maml = ksm.MAML(network, inner_learning_rate=0.5)
    maml.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    dataset = ksm.data.episodes((x, y), ways=3, shots=2, queries=4, episodes=5, seed=0)
    curve = adaptation_curve(maml, arrays(dataset, 5), steps=2, verbose=0)
    expected = np.zeros((5, 3))
    for i, (episode, query_y) in enumerate(dataset):
        for k in range(3):
            specialist = maml.adapt(episode["support_x"], episode["support_y"], steps=k)
            logits = specialist(episode["query_x"]).numpy()
            expected[i, k] = np.mean(logits.argmax(-1) == query_y.numpy())
    np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-6)
    assert curve.metric_name == "sparse_categorical_accuracy"
    assert curve.mean[2] > curve.mean[0] + 0.1


def test_accuracy_is_the_default_for_integer_labels(classes):
    logits, labels = classes
    expected = accuracies(logits, labels)
    for y in (labels, labels[..., None], labels.astype("uint8"), tf.constant(labels)):
        curve = adaptation_curve(Recorded(logits), numbered(y), steps=STEPS, verbose=0)
        np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-6)
    fewer = adaptation_curve(Recorded(logits), numbered(labels), steps=1, verbose=0)
    np.testing.assert_allclose(fewer.per_episode, np.array(expected)[:, :2], rtol=1e-6)
    np.testing.assert_allclose(
        fewer.half_interval,
        [FewShotResult(column).half_interval for column in fewer.per_episode.T],
    )


@pytest.mark.parametrize("axes", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("integers", [True, False])
def test_squared_error_is_the_default_otherwise(axes, integers):
    random = np.random.default_rng(1)
    predicted = random.normal(size=(TASKS, STEPS + 1, QUERIES)).astype("float32")
    y = random.integers(0, 3, (TASKS, QUERIES))
    y = y if integers else y.astype("float32")
    expected = ((predicted - y[:, None]) ** 2).mean(-1)
    model = Recorded(predicted[..., None] if axes[0] else predicted, loss="mse")
    episodes = numbered(y[..., None] if axes[1] else y)
    curve = adaptation_curve(model, episodes, steps=STEPS, verbose=0)
    np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-5)
    assert curve.metric_name == "mean_squared_error"


def test_further_axes_are_averaged():
    random = np.random.default_rng(1)
    predicted = random.normal(size=(TASKS, STEPS + 1, QUERIES, 2, 5))
    y = random.normal(size=(TASKS, QUERIES, 2, 5))
    curve = adaptation_curve(Recorded(predicted), numbered(y), steps=STEPS, verbose=0)
    np.testing.assert_allclose(
        curve.per_episode, ((predicted - y[:, None]) ** 2).mean((2, 3, 4)), rtol=1e-12
    )


def test_any_function_is_a_metric(classes):
    logits, labels = classes
    expected = accuracies(logits, labels)

    def first_guess(y_true, y_pred):
        return y_pred.argmax(-1) == y_true

    one_hot = np.eye(4, dtype="float32")[labels]
    for metric, y, name in (
        (first_guess, labels, "first_guess"),
        (lambda y, p: first_guess(y, p), labels, "metric"),
        (keras.metrics.categorical_accuracy, one_hot, "categorical_accuracy"),
        (
            functools.partial(keras.metrics.sparse_top_k_categorical_accuracy, k=1),
            labels,
            "sparse_top_k_categorical_accuracy",
        ),
    ):
        curve = adaptation_curve(Recorded(logits), numbered(y), STEPS, metric, verbose=0)
        np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-6)
        assert curve.metric_name == name
    huber = keras.losses.Huber(reduction=None, name="huber")
    curve = adaptation_curve(Recorded(logits), numbered(one_hot), STEPS, huber, verbose=0)
    gap = np.abs(logits - one_hot[:, None])
    expected = np.where(gap <= 1, gap**2 / 2, gap - 0.5).mean((2, 3))
    np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-5)
    assert curve.metric_name == "huber"


def test_binary_labels_of_one_axis_meet_predictions_of_two():
    random = np.random.default_rng(1)
    predicted = random.uniform(size=(TASKS, STEPS + 1, QUERIES, 1))
    y = random.integers(0, 2, (TASKS, QUERIES))
    metric = keras.metrics.binary_accuracy
    curve = adaptation_curve(Recorded(predicted), numbered(y), STEPS, metric, verbose=0)
    expected = ((predicted[..., 0] > 0.5) == y[:, None]).mean(-1)
    np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-6)


def test_several_outputs(classes):
    logits, labels = classes
    values = {"a": logits, "b": logits.sum(-1)}

    def metric(y_true, y_pred):
        assert set(y_true) == set(y_pred) == {"a", "b"}
        return (y_pred["a"].argmax(-1) == y_true["a"]) + np.abs(y_pred["b"] - y_true["b"])

    y = {"a": labels, "b": np.zeros(labels.shape)}
    curve = adaptation_curve(Recorded(values), numbered(y), STEPS, metric, verbose=0)
    expected = accuracies(logits, labels) + np.abs(values["b"]).mean(-1)
    np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="`metric` must be given"):
        adaptation_curve(Recorded(values), numbered(y), STEPS, verbose=0)


def test_nan_is_wrong_in_accuracies_and_seen_in_errors():
    predicted = np.full((TASKS, STEPS + 1, QUERIES, 3), np.nan, "float32")
    predicted[:, 0] = np.eye(3)[0]
    labels = np.zeros((TASKS, QUERIES), int)  # The class that argmax picks among NaNs.
    curve = adaptation_curve(Recorded(predicted), numbered(labels), steps=STEPS, verbose=0)
    np.testing.assert_array_equal(curve.mean, [1, 0, 0, 0])
    targets = np.zeros((TASKS, QUERIES, 3))
    curve = adaptation_curve(Recorded(predicted), numbered(targets), steps=STEPS, verbose=0)
    np.testing.assert_array_equal(np.isnan(curve.mean), [False, True, True, True])


def test_many_classes_in_half_precision():
    labels = np.full((TASKS, QUERIES), 257)  # In bfloat16 equal to 256.
    scores = np.zeros((TASKS, STEPS + 1, QUERIES, 300), "float32")
    scores[..., 256] = 1
    scores = tf.cast(scores, tf.bfloat16).numpy()
    curve = adaptation_curve(Recorded(scores), numbered(labels), steps=STEPS, verbose=0)
    np.testing.assert_array_equal(curve.mean, 0)


def test_arrays_are_taken_in_batches():
    random = np.random.default_rng(0)
    predicted = random.normal(size=(70, 2, QUERIES)).astype("float32")
    y = random.normal(size=(70, QUERIES)).astype("float32")
    model = Recorded(predicted)
    curve = adaptation_curve(model, numbered(y, 70), steps=1, verbose=0)
    assert model.sizes == [32, 32, 6]
    expected = ((predicted - y[:, None]) ** 2).mean(-1)
    np.testing.assert_allclose(curve.per_episode, expected, rtol=1e-5)


def test_curves_pair_on_the_same_episodes(classes):
    logits, labels = classes
    episodes = numbered(labels)
    dataset = tf.data.Dataset.from_tensor_slices(episodes)
    measure = functools.partial(adaptation_curve, steps=STEPS, verbose=0)
    one = measure(Recorded(logits), episodes)
    other = measure(Recorded(logits[:, ::-1]), dataset.batch(2))  # However they are batched.
    difference, half = one.paired_difference(other)
    gaps = np.array(accuracies(logits, labels)) - accuracies(logits[:, ::-1], labels)
    np.testing.assert_allclose(difference, gaps.mean(0), atol=1e-7)
    deviation = np.sqrt(((gaps - gaps.mean(0)) ** 2).sum(0) / (TASKS - 1))
    np.testing.assert_allclose(half, 1.96 * deviation / math.sqrt(TASKS), rtol=1e-6)
    changed = labels.copy()
    changed[-1, -1] = (changed[-1, -1] + 1) % 4
    for unlike in (
        measure(Recorded(logits), numbered(changed)),
        measure(Recorded(logits), dataset.batch(2).take(3)),
    ):
        with pytest.raises(ValueError, match="`other` must be a curve on the same episodes"):
            one.paired_difference(unlike)
    for unlike in (
        measure(Recorded(logits), episodes, steps=1),
        measure(Recorded(logits), episodes, metric=lambda y, p: y * 0.0),
    ):
        with pytest.raises(ValueError, match="of the same metric and number of steps"):
            one.paired_difference(unlike)


def test_bar(classes, capsys):
    logits, labels = classes
    dataset = tf.data.Dataset.from_tensor_slices(numbered(labels)).batch(2)
    unknown = dataset.filter(lambda x, y: True)
    curves = [
        adaptation_curve(Recorded(logits), episodes, steps=STEPS, **verbose)
        for episodes in (dataset, unknown)
        for verbose in ({}, {"verbose": 2})
    ]
    printed = capsys.readouterr().out
    assert "4/4" in printed and "1/Unknown" in printed and printed.endswith("\n")
    mean = np.mean(accuracies(logits, labels), axis=0)
    assert printed.count(f"before: {mean[0]:.4f} - after: {mean[-1]:.4f}") >= 4
    assert printed.count("\n") == 4
    for curve in curves:
        np.testing.assert_array_equal(curve.per_episode, curves[0].per_episode)
    adaptation_curve(Recorded(logits), dataset, steps=STEPS, verbose=0)
    assert not capsys.readouterr().out


def test_no_steps_and_a_single_episode(classes):
    logits, labels = classes
    inputs, y = numbered(labels)
    episode = {key: x[:1] for key, x in inputs.items()}, y[:1]
    curve = adaptation_curve(Recorded(logits), episode, steps=0, verbose=0)
    assert curve.per_episode.shape == (1, 1) and np.isnan(curve.half_interval).all()
    assert (
        str(curve)
        == f"steps  sparse categorical accuracy\n    0  {100 * curve.mean[0]:.1f} ± nan %"
    )


def test_table():
    values = np.array([[0.5] * 61, [1.0] * 61]) * np.linspace(1, 0.5, 61)
    lines = str(AdaptationCurve(values, "accuracy")).splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == [0, 1, 2, 5, 10, 20, 50, 60]
    assert lines[1] == "    0  75.0 ± 49.0 %" and lines[-1] == "   60  37.5 ± 24.5 %"
    errors = str(AdaptationCurve(np.array([[12.0, 0.04], [14.0, 0.05]]), "mean_squared_error"))
    assert errors.splitlines()[1:] == ["    0  13.0 ± 2.0", "    1  0.0450 ± 0.0098"]
    assert repr(AdaptationCurve(values, "accuracy")) == (
        "AdaptationCurve(accuracy 0.75 before and 0.375 after 60 steps, 2 episodes)"
    )


LOGITS = np.zeros((TASKS, STEPS + 1, QUERIES, 4), "float32")
LABELS = np.zeros((TASKS, QUERIES), int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": keras.Sequential()}, "`model` must be a meta-learner with `predict_along`"),
        ({"steps": -1}, "`steps` must be an integer from 0. Received: steps=-1"),
        ({"steps": 1.5}, "`steps` must be an integer"),
        ({"steps": True}, "`steps` must be an integer"),
        ({"metric": "accuracy"}, r"`metric` must be a function .*Received: 'accuracy'"),
        ({"metric": keras.metrics.Accuracy}, "`metric` must be a function"),
        ({"metric": keras.metrics.MeanSquaredError()}, "`metric` must be a function"),
        ({"metric": keras.losses.MeanSquaredError()}, "mean_squared_error, not MeanSquaredError"),
        ({"verbose": 3}, '`verbose` must be "auto", 0, 1 or 2. Received: verbose=3'),
        ({"episodes": LABELS}, "`episodes` must be a tf.data.Dataset of .*Received: ndarray"),
        (
            {"episodes": ksm.data.sinusoids(seed=0).batch(4)},
            r"`episodes` must come to an end.*episodes=600.*take\(batches\)",
        ),
        ({"episodes": tf.data.Dataset.from_tensors((LOGITS, LABELS, LABELS))}, "of length 3"),
        ({"episodes": tf.data.Dataset.from_tensors(LOGITS)}, "`episodes` must hold pairs"),
        (
            {"episodes": ksm.data.sinusoids(seed=0, episodes=1).map(lambda x, y: (x, y[:, 0]))},
            r"`batch\(32\)` on the dataset. Received: query_y of shape=\(10,\)",
        ),
        ({"episodes": numbered(LABELS[:3])}, "same number of tasks. Received: 3, 7"),
        ({"episodes": numbered(LABELS[:, :2])}, r"Received: \(7, 2\) and \(7, 6\)"),
        ({"episodes": numbered(LABELS.tolist())}, "`episodes` must hold arrays"),
        ({"episodes": ({"query_x": LOGITS}, LABELS)}, "support_x, support_y is missing"),
        ({"episodes": numbered(LABELS[:0], 0)}, "`episodes` must hold an episode at least"),
    ],
)
def test_bad_input_before_any_work(change, message):
    model = Recorded(None)  # Which fails where it is asked.
    with pytest.raises(ValueError, match=message):
        adaptation_curve(**{"model": model, "episodes": numbered(LABELS), "verbose": 0, **change})
    assert not model.sizes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": lambda y, p: np.mean(p)}, r"a value for each query.*shape=\(\) for 42"),
        ({"metric": lambda y, p: p.reshape(-1)}, r"\(168,\) for 42 queries"),
        ({"steps": STEPS + 1}, r"must give \(tasks, steps \+ 1, queries, …\), here \(7, 5, 6\)"),
        ({"episodes": numbered(np.eye(4)[LABELS])}, "keras.metrics.categorical_accuracy for one"),
        ({"episodes": numbered(np.zeros((7, 6, 3)))}, r"shapes \[\(7, 6, 3\)\], .*\(7, 6, 4\)\]"),
        ({"episodes": numbered(LABELS.astype("float32"))}, "`metric` must be given"),
    ],
)
def test_what_does_not_fit_the_predictions(change, message):
    model = Recorded(LOGITS, loss=keras.losses.CategoricalCrossentropy(name="mine"))
    arguments = {"episodes": numbered(LABELS), "steps": STEPS, "verbose": 0, **change}
    with pytest.raises(ValueError, match=message):
        adaptation_curve(model, **arguments)
