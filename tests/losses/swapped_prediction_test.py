import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.swapped_prediction import SwappedPrediction
from keras_sslmeta.mechanisms import sinkhorn


def scores(batch=6, views=2, prototypes=4, seed=0, dtype="float32"):
    return np.random.default_rng(seed).uniform(-1, 1, size=(batch, views, prototypes)).astype(dtype)


def codes(s, epsilon, steps):
    """Sinkhorn–Knopp as the paper's appendix writes it, on prototypes × samples, of one view."""
    q = np.exp((s.astype("float64") - s.max()) / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(steps):
        for row in range(k):
            q[row] /= q[row].sum() * k
        for column in range(b):
            q[:, column] /= q[:, column].sum() * b
    return q.T * b


def oracle(s, temperature=0.1, epsilon=0.05, steps=3, queue=None, fixed=None):
    """The mean over ordered pairs of views, each sum by itself; `fixed` are codes not to compute."""
    batch, views, k = s.shape
    everyone = s if queue is None else np.concatenate([s, queue])
    q = [codes(everyone[:, u], epsilon, steps)[:batch] for u in range(views)]
    q = q if fixed is None else fixed
    values = np.zeros(batch)
    for i in range(batch):
        for u in range(views):
            for v in range(views):
                if u == v:
                    continue
                logits = s[i, v].astype("float64") / temperature
                log_sum = logits.max() + math.log(np.exp(logits - logits.max()).sum())
                for j in range(k):
                    values[i] -= q[u][i, j] * (logits[j] - log_sum) / (views * (views - 1))
    return values


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(
    ("temperature", "epsilon", "steps"), [(0.1, 0.05, 3), (0.1, 0.05, 1), (1.0, 0.5, 10)]
)
def test_equals_the_paper_sum_by_sum(views, temperature, epsilon, steps):
    s = scores(views=views)
    loss = SwappedPrediction(temperature, epsilon, steps, reduction=None)
    expected = oracle(s, temperature, epsilon, steps)
    np.testing.assert_allclose(loss(None, s), expected, rtol=2e-5)
    mean = SwappedPrediction(temperature, epsilon, steps)(None, s)
    np.testing.assert_allclose(mean, expected.mean(), rtol=2e-5)


def test_the_defaults_are_swavs():
    expected = oracle(scores(), 0.1, 0.05, 3).mean()
    np.testing.assert_allclose(SwappedPrediction()(None, scores()), expected, rtol=2e-5)


def test_closed_forms():
    same = np.zeros((8, 2, 4), "float32")
    np.testing.assert_allclose(SwappedPrediction()(None, same), math.log(4), rtol=1e-6)
    # As many samples as prototypes, each with its own: codes are certain.
    certain = np.repeat(np.eye(4, dtype="float32")[:, None], 2, axis=1)
    expected = math.log(math.exp(10) + 3) - 10
    np.testing.assert_allclose(SwappedPrediction()(None, certain), expected, rtol=1e-3)


def test_codes_use_all_prototypes_equally():
    """Every sample prefers prototype 0, and still the codes' sums over the batch end up equal."""
    s = scores(batch=40)
    s[..., 0] += 3
    q = sinkhorn.codes(tf.constant(s), None, epsilon=0.5, steps=100)
    np.testing.assert_allclose(tf.reduce_sum(q, axis=2), np.ones((40, 2)), rtol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(q, axis=0), np.full((2, 4), 10), rtol=1e-3)


@pytest.mark.parametrize("has_queue", [False, True])
def test_gradient_takes_codes_as_given(has_queue):
    s = scores(batch=4, views=3, dtype="float64")
    queue = scores(batch=5, views=3, seed=1, dtype="float64") if has_queue else None
    everyone = np.concatenate([s, queue]) if has_queue else s
    fixed = [codes(everyone[:, u], 0.05, 3)[:4] for u in range(3)]
    x, more = tf.constant(s), None if queue is None else tf.constant(queue)
    with tf.GradientTape() as tape:
        tape.watch([x] if more is None else [x, more])
        value = SwappedPrediction(dtype="float64")(more, x)
    got, by_queue = tape.gradient(value, [x, x if more is None else more])
    assert has_queue == (by_queue is None)
    np.testing.assert_allclose(value, oracle(s, queue=queue).mean(), rtol=1e-10)
    for index in np.ndindex(s.shape):
        up, down = s.copy(), s.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        expected = (oracle(up, fixed=fixed).mean() - oracle(down, fixed=fixed).mean()) / 2e-6
        np.testing.assert_allclose(got.numpy()[index], expected, rtol=1e-4, atol=1e-8)


def test_a_queue_takes_part_in_the_codes_alone():
    s, queue = scores(), scores(batch=9, seed=1)
    values = SwappedPrediction(reduction=None)(queue, s)
    assert values.shape == (6,)
    np.testing.assert_allclose(values, oracle(s, queue=queue), rtol=2e-5)
    assert np.abs(values - oracle(s)).max() > 1e-3


@pytest.mark.parametrize(
    "labels",
    [np.arange(6), np.zeros(6, "float32"), np.array(list("abcdef")), np.zeros((6, 2, 4), int)],
)
def test_labels_are_ignored(labels):
    expected = SwappedPrediction()(None, scores())
    np.testing.assert_array_equal(SwappedPrediction()(labels, scores()), expected)


def test_one_sample_has_uniform_codes():
    s = scores(batch=1)
    expected = -np.mean(tf.nn.log_softmax(s / 0.1))
    np.testing.assert_allclose(SwappedPrediction()(None, s), expected, rtol=1e-5)


def test_scores_of_any_size_are_safe():
    """e^{s/ε} of these is beyond float32, and of their negatives below it."""
    for scale in (1e3, 1e4, -1e4):
        x = tf.constant(scores() * scale)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = SwappedPrediction()(None, x)
        assert np.isfinite(value) and np.isfinite(tape.gradient(value, x)).all()
    shifted = SwappedPrediction()(None, scores() + 1e3)
    np.testing.assert_allclose(shifted, oracle(scores()).mean(), rtol=5e-2)
    low = SwappedPrediction(0.01, 0.005, reduction=None)(None, scores())
    np.testing.assert_allclose(low, oracle(scores(), 0.01, 0.005), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_computed_in_float32(dtype, tolerance):
    s, queue = tf.cast(scores(), dtype), tf.cast(scores(seed=1), dtype)
    wide, more = (tf.cast(x, tf.float64).numpy() for x in (s, queue))
    expected = oracle(wide, queue=more).mean()
    np.testing.assert_allclose(SwappedPrediction()(queue, s), expected, rtol=2e-5)
    value = SwappedPrediction(dtype=dtype)(queue, s)
    assert value.dtype == dtype
    np.testing.assert_allclose(tf.cast(value, tf.float32), expected, rtol=tolerance)


def test_nan_gives_nan():
    s = scores()
    s[0, 0, 0] = np.nan
    assert np.isnan(SwappedPrediction()(None, s))


def test_sample_weights_weigh_losses_and_leave_samples_in_the_codes():
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 1.0], "float32")
    got = SwappedPrediction()(None, scores(), sample_weight=weights)
    np.testing.assert_allclose(got, (oracle(scores()) * weights).mean(), rtol=2e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}]
)
def test_under_fit(settings):
    model = keras.Sequential([keras.Input((2, 5)), keras.layers.Dense(4)])
    model.compile(keras.optimizers.SGD(0.05), SwappedPrediction(), **settings)
    x = scores(16, prototypes=5)
    history = model.fit(x, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    expected = oracle(model.predict(x, verbose=0)).mean()
    np.testing.assert_allclose(model.evaluate(x, batch_size=16, verbose=0), expected, rtol=1e-4)


def test_config():
    loss = SwappedPrediction(0.2, 0.1, 5, reduction="sum", name="swav", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.temperature, again.epsilon, again.sinkhorn_steps) == (0.2, 0.1, 5)
    assert (again.reduction, again.name, again.dtype) == ("sum", "swav", "float64")


@pytest.mark.parametrize(
    ("name", "value", "required"),
    [
        ("temperature", 0, "a positive number"),
        ("temperature", "0.1", "a positive number"),
        ("epsilon", -0.05, "a positive number"),
        ("epsilon", None, "a positive number"),
        ("sinkhorn_steps", 0, "a positive integer"),
        ("sinkhorn_steps", 3.0, "a positive integer"),
    ],
)
def test_refused(name, value, required):
    with pytest.raises(ValueError, match=f"`{name}` must be {required}") as error:
        SwappedPrediction(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (None, np.zeros((6, 4), "float32"), r"\(batch, views, prototypes\)"),
        (None, np.zeros((6, 1, 4), "float32"), "at least two views"),
        (None, np.zeros((6, 2, 4), "int64"), "floating-point"),
        (scores(prototypes=5), scores(), "as many views and prototypes"),
        (scores(views=3), scores(), "as many views and prototypes"),
    ],
)
def test_refused_inputs(y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        SwappedPrediction()(y_true, y_pred)
