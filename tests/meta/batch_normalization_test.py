"""Whose statistics batch normalisation uses: every policy against the formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.meta import MAML

POLICIES = ["transductive", "support", "per_step", "frozen"]
TASKS, SHOTS, QUERIES, RATE, MOMENTUM, EPSILON = 3, 4, 5, 0.2, 0.7, 1e-3


pytestmark = pytest.mark.usefixtures("double_precision")


def network():
    """Statistics and scales as if pretrained."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4),
            layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON),
            layers.Activation("tanh"),
            layers.Dense(2),
        ]
    )
    norm = model.layers[1]
    norm.gamma.assign([0.5, 1.5, 1.0, 0.7])
    norm.beta.assign([0.1, 0.0, -0.3, 0.2])
    norm.moving_mean.assign([0.3, -0.2, 0.5, 0.0])
    norm.moving_variance.assign([1.0, 0.5, 2.0, 1.5])
    return model


def episodes(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "support_x": rng.normal(size=(TASKS, SHOTS, 3)),
        "support_y": rng.normal(size=(TASKS, SHOTS, 2)),
        "query_x": rng.normal(size=(TASKS, QUERIES, 3)) + 0.5,
    }, rng.normal(size=(TASKS, QUERIES, 2))


X, Y = episodes()


def meta(policy, steps=2, **kwargs):
    maml = MAML(network(), steps, RATE, batch_normalization=policy, **kwargs)
    maml.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    return maml


def forward(w, x, statistics=None, moved_to=None, amount=1.0):
    """The network written out; by the batch's statistics unless others are given, or moved to others."""
    kernel, bias, gamma, beta, kernel2, bias2 = w
    hidden = x @ kernel + bias
    if statistics is None:
        mean = tf.reduce_mean(hidden, axis=0)
        statistics = mean, tf.reduce_mean((hidden - mean) ** 2, axis=0)
    mean, variance = statistics
    normal = (hidden - mean) / tf.sqrt(variance + EPSILON)
    if moved_to is not None:  # Ioffe 2017, equation 2: r and d are constants, within limits.
        deviation = np.sqrt(moved_to[1] + EPSILON)
        r = np.sqrt(np.asarray(variance) + EPSILON) / deviation
        d = (np.asarray(mean) - moved_to[0]) / deviation
        r = np.clip(r, 1 / (1 + 2 * amount), 1 + 2 * amount)
        normal = normal * r + np.clip(d, -5 * amount, 5 * amount)
    outputs = tf.tanh(normal * gamma + beta) @ kernel2 + bias2
    return outputs, [np.asarray(s) for s in statistics]


def adapted(w, t, steps, given=lambda k: None, **how):
    """Weights after some steps on a task, and the statistics of every step."""
    w, seen = [tf.constant(v.numpy()) for v in w], []
    for k in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(w)
            outputs, statistics = forward(w, X["support_x"][t], **given_to(given(k), **how))
            loss = tf.reduce_mean((outputs - X["support_y"][t]) ** 2)
        w = [v - RATE * g for v, g in zip(w, tape.gradient(loss, w), strict=True)]
        seen.append(statistics)
    return w, seen


def given_to(statistics, moves=False, amount=1.0):
    """Given statistics in place of the batch's, or the batch's moved to them."""
    if moves:
        return {"moved_to": statistics, "amount": amount}
    return {"statistics": statistics}


def moving(model):
    return [model.layers[1].moving_mean.numpy(), model.layers[1].moving_variance.numpy()]


def set_step_statistics(maml):
    rng = np.random.default_rng(2)
    for v in maml.step_statistics:
        v.assign(rng.uniform(0.5, 1.5, size=v.shape))
    means, variances = (v.numpy() for v in maml.step_statistics)
    return lambda k: [means[min(k, len(means) - 1)], variances[min(k, len(means) - 1)]]


@pytest.mark.first(3)
@pytest.mark.parametrize("test_steps", [0, 2, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_predictions_are_those_of_the_formulas(policy, test_steps):
    """Also with more steps than in training, and with none."""
    maml = meta(policy, test_inner_steps=test_steps)
    given, to_queries = (lambda k: None), None
    if policy == "frozen":
        given = lambda k: moving(maml.model)  # noqa: E731
    if policy == "per_step":
        given = set_step_statistics(maml)
    got = maml(X)
    for t in range(TASKS):
        is_moved = policy == "per_step"
        w, _ = adapted(maml.model.trainable_variables, t, test_steps, given, moves=is_moved)
        to_queries = given(test_steps)
        if policy == "support":
            to_queries = forward(w, X["support_x"][t])[1]
        wanted = forward(w, X["query_x"][t], to_queries)[0]
        np.testing.assert_allclose(got[t], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.first(2)
@pytest.mark.parametrize("policy", POLICIES)
def test_predictions_in_meta_training(policy):
    """As above, where queries see each other under `transductive` alone, but for the start of `per_step`."""
    maml = meta(policy)
    given = (lambda k: moving(maml.model)) if policy == "frozen" else (lambda k: None)
    got = maml(X, training=True)
    for t in range(TASKS):
        w, _ = adapted(maml.model.trainable_variables, t, 2, given)
        to_queries = forward(w, X["support_x"][t])[1] if policy == "support" else given(2)
        wanted = forward(w, X["query_x"][t], to_queries)[0]
        np.testing.assert_allclose(got[t], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.first(2)
@pytest.mark.parametrize(("done", "amount"), [(0, 0.0), (50, 0.25), (200, 1.0), (1000, 1.0)])
def test_meta_training_moves_to_the_statistics_of_its_steps(done, amount):
    maml = meta("per_step")
    given = set_step_statistics(maml)
    maml.optimizer.iterations.assign(done)
    got, how = maml(X, training=True), {"moves": True, "amount": amount}
    for t in range(TASKS):
        w, _ = adapted(maml.model.trainable_variables, t, 2, given, **how)
        wanted = forward(w, X["query_x"][t], **given_to(given(2), **how))[0]
        np.testing.assert_allclose(got[t], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize("policy", POLICIES)
def test_permuted_queries_and_dropped_ones(policy):
    """Only a transductive answer depends on the other queries."""
    maml = meta(policy)
    whole = maml.predict(X, batch_size=TASKS, verbose=0)
    order = [3, 1, 4, 0, 2]
    permuted = maml({**X, "query_x": X["query_x"][:, order]})
    np.testing.assert_allclose(permuted, whole[:, order], rtol=1e-10, atol=1e-12)
    few = maml({**X, "query_x": X["query_x"][:, :2]})
    one = maml({**X, "query_x": X["query_x"][:, :1]})
    alone = maml({key: value[1:2] for key, value in X.items()})
    np.testing.assert_allclose(alone, whole[1:2], rtol=1e-10, atol=1e-12)
    if policy == "transductive":
        assert np.abs(few - whole[:, :2]).max() > 0.01
        assert np.abs(one - whole[:, :1]).max() > 0.01
    else:
        np.testing.assert_allclose(few, whole[:, :2], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(one, whole[:, :1], rtol=1e-10, atol=1e-12)


@pytest.mark.first(2)
@pytest.mark.parametrize("policy", POLICIES)
def test_permuting_the_support_set_changes_nothing(policy):
    maml, order = meta(policy), [2, 0, 3, 1]
    permuted = {**X, **{key: X[key][:, order] for key in ("support_x", "support_y")}}
    np.testing.assert_allclose(maml(permuted), maml(X), rtol=1e-9, atol=1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize("policy", POLICIES)
def test_adapt_answers_as_predict_does(policy):
    """But for transductive answers, whose stand-in is the support set's statistics."""
    maml = meta(policy)
    wanted = maml(X).numpy()
    if policy == "transductive":
        other = meta("support")
        other.model.set_weights(maml.model.get_weights())
        wanted = other(X).numpy()
        assert np.abs(wanted - maml(X)).max() > 0.01
    if policy == "per_step":
        set_step_statistics(maml)
        wanted = maml(X).numpy()
    for t in (0, 2):
        specialist = maml.adapt(X["support_x"][t], X["support_y"][t])
        got = specialist(X["query_x"][t], training=False)
        np.testing.assert_allclose(got, wanted[t], rtol=1e-9, atol=1e-12)
        assert specialist.layers[1].momentum == MOMENTUM


def followed(old, new):
    return MOMENTUM * np.asarray(old) + (1 - MOMENTUM) * np.asarray(new)


@pytest.mark.first(4)
@pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("policy", ["transductive", "support"])
def test_moving_statistics_follow_the_support_sets(policy, steps, eager):
    """At the weights before adaptation, the mean over tasks; without steps, the queries that were seen."""
    maml = meta(policy, steps)
    maml.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=eager)
    before, w = moving(maml.model), [v.numpy() for v in maml.model.trainable_variables]
    key = "query_x" if (steps == 0 and policy == "transductive") else "support_x"
    seen = [forward(w, X[key][t])[1] for t in range(TASKS)]
    maml.fit(X, Y, batch_size=TASKS, verbose=0)
    for i, v in enumerate(moving(maml.model)):
        wanted = followed(before[i], np.mean([s[i] for s in seen], axis=0))
        np.testing.assert_allclose(v, wanted, rtol=1e-9)


def test_per_step_statistics_follow_every_step():
    maml = meta("per_step", 2)
    before = [v.numpy() for v in maml.step_statistics]
    of_model = moving(maml.model)
    variables = maml.model.trainable_variables
    seen = []
    for t in range(TASKS):
        w, of_steps = adapted(variables, t, 2)
        seen.append([*of_steps, forward(w, X["query_x"][t])[1]])
    maml.fit(X, Y, batch_size=TASKS, verbose=0)
    for i, v in enumerate(maml.step_statistics):
        assert v.shape == (3, 4) and not v.trainable
        new = np.mean([[s[i] for s in task] for task in seen], axis=0)
        np.testing.assert_allclose(v, (2 * before[i] + 9 * new) / 11, rtol=1e-8)
        assert all(np.abs(v[a] - v[b]).max() > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)))
        wanted = followed(of_model[i], new[0])
        np.testing.assert_allclose(moving(maml.model)[i], wanted, rtol=1e-8)


def test_per_step_statistics_follow_fast_at_first():
    maml = meta("per_step", 1)
    for done, kept in ((0, 2 / 11), (3, 5 / 14), (1000, MOMENTUM)):
        maml.optimizer.iterations.assign(done)
        before = [v.numpy() for v in maml.step_statistics]
        maml.train_on_batch(X, Y)
        after = [v.numpy() for v in maml.step_statistics]
        # The support sets before adaptation, whose statistics no step has changed: the rate is 0.
        seen = np.mean(
            [forward(maml.model.trainable_variables, x)[1] for x in X["support_x"]], axis=0
        )
        for i in range(2):
            wanted = kept * before[i][0] + (1 - kept) * seen[i]
            np.testing.assert_allclose(after[i][0], wanted, rtol=1e-8)


def test_per_step_statistics_start_from_the_models():
    maml = meta("per_step", 3)
    for steps, v in zip(maml.step_statistics, moving(maml.model), strict=True):
        np.testing.assert_array_equal(steps, np.repeat(v[None], 4, axis=0))
    maml.test_inner_steps = 0
    wanted = [maml.model(x, training=False) for x in X["query_x"]]
    np.testing.assert_allclose(maml(X), wanted, rtol=1e-9)


@pytest.mark.first(1)
@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_and_adaptation_leave_all_state(policy):
    maml = meta(policy)
    before = [v.numpy() for v in maml.variables]
    maml.evaluate(X, Y, batch_size=TASKS, verbose=0)
    maml.predict(X, batch_size=TASKS, verbose=0)
    maml.adapt(X["support_x"][0], X["support_y"][0])
    maml.predict_along(X, 1)
    for old, v in zip(before, maml.variables, strict=True):
        np.testing.assert_array_equal(old, v.numpy(), err_msg=v.path)


def test_frozen_leaves_moving_statistics():
    maml = meta("frozen")
    before = moving(maml.model)
    maml.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    maml.fit(X, Y, batch_size=1, epochs=2, verbose=0)
    for a, b in zip(moving(maml.model), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.first(2)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_frozen_layer_is_not_touched_by_any_policy(policy):
    """In single precision, where even the mean of a value with itself would move some of 64 values."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    norm = layers.BatchNormalization(momentum=0.97, trainable=False)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(64), norm, layers.Dense(2)])
    for v in norm.variables:
        v.assign(np.random.default_rng(3).uniform(0.5, 1.5, size=64))
    before = model.layers[1].get_weights()
    maml = MAML(model, 2, RATE, batch_normalization=policy)
    maml.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    maml.fit(X, Y, batch_size=TASKS, verbose=0)
    for a, b in zip(model.layers[1].get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    whole, few = maml(X), maml({**X, "query_x": X["query_x"][:, :2]})
    np.testing.assert_allclose(few, whole[:, :2], rtol=1e-4, atol=1e-5)


def test_statistics_of_steps_are_saved(tmp_path):
    maml = meta("per_step")
    set_step_statistics(maml)
    maml.save(tmp_path / "maml.keras")
    loaded = keras.saving.load_model(tmp_path / "maml.keras")
    np.testing.assert_array_equal(loaded(X), maml(X))
    other = meta("per_step")
    maml.save_weights(tmp_path / "maml.weights.h5")
    other.load_weights(tmp_path / "maml.weights.h5")
    np.testing.assert_array_equal(other(X), maml(X))


@pytest.mark.first(2)
@pytest.mark.parametrize("policy", POLICIES)
def test_predict_along_uses_the_statistics_of_its_step(policy):
    maml = meta(policy)
    if policy == "per_step":
        set_step_statistics(maml)
    along = maml.predict_along(X, 3)
    for k in range(4):
        maml.test_inner_steps = k
        np.testing.assert_allclose(along[:, k], maml(X), rtol=1e-9, atol=1e-12)
