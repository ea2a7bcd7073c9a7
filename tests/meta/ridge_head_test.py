import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn.linear_model import Ridge

from keras_sslmeta.meta.ridge_head import RidgeHead, _dual, _primal

TASKS, QUERIES, WAYS, DIM = 3, 4, 3, 4
RNG = np.random.default_rng(0)
Y = RNG.integers(WAYS, size=(TASKS, QUERIES))


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def episode(samples, dtype="float32"):
    labels = np.arange(samples) % WAYS
    return {
        "support_x": RNG.normal(size=(TASKS, samples, 5)).astype(dtype),
        "support_y": np.stack([RNG.permutation(labels) for _ in range(TASKS)]),
        "query_x": RNG.normal(size=(TASKS, QUERIES, 5)).astype(dtype),
    }


def network():
    return keras.Sequential([keras.Input((5,)), layers.Dense(DIM, "tanh")])


# Up to n = d + 1 the dual form is solved, beyond it the other.
@pytest.mark.parametrize("samples", [3, 5, 6, 12])
@pytest.mark.parametrize("regularization", [0.01, 50.0])
def test_logits_are_those_of_ridge_regression_in_sklearn(samples, regularization):
    """Of penalty n · λ on weights and bias, since x and y are divided by √n."""
    encoder, x = network(), episode(samples)
    model = RidgeHead(encoder, regularization, scale=3.0, shift=-0.5)
    got = model.predict(x, verbose=0)
    for task in range(TASKS):
        support, queries = (encoder(x[k][task]).numpy() for k in ("support_x", "query_x"))
        ridge = Ridge(samples * regularization, fit_intercept=False, solver="svd")
        ones = np.ones((samples, 1))
        ridge.fit(np.hstack([support, ones]), np.eye(WAYS)[x["support_y"][task]])
        wanted = 3.0 * ridge.predict(np.hstack([queries, np.ones((QUERIES, 1))])) - 0.5
        np.testing.assert_allclose(got[task], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [3, 5, 12])
def test_both_forms_are_equal(samples):
    """In value, and in the gradient with respect to everything."""
    x, y = RNG.normal(size=(TASKS, samples, 5)), RNG.normal(size=(TASKS, samples, WAYS))
    inputs, upstream = (
        [tf.constant(v, tf.float64) for v in (x, y, 0.3)],
        RNG.normal(size=(TASKS, 5, WAYS)),
    )
    results = []
    for solve in (_primal, _dual):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            weights = solve(*inputs)
        results.append((weights, *tape.gradient(weights, inputs, upstream)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("samples", [3, 12])
def test_gradients_are_finite_differences(samples, double_precision):
    """Of λ, scale, shift and the encoder's weights."""
    model, x = RidgeHead(network(), 0.5, scale=2.0, shift=0.1), episode(samples, "float64")

    def loss():
        logs = tf.nn.log_softmax(
            model(x) + tf.constant([0.0, 0.3, -0.2], tf.float64) * model(x) ** 2
        )
        return -tf.reduce_mean(tf.gather(logs, Y, batch_dims=2))

    with tf.GradientTape() as tape:
        value = loss()
    variables = model.trainable_variables
    gradients = tape.gradient(value, variables)
    assert len(variables) == 5
    for v, gradient in zip(variables, gradients, strict=True):
        start, direction = v.numpy(), RNG.normal(size=v.shape)
        v.assign(start + 1e-6 * direction)
        up = loss()
        v.assign(start - 1e-6 * direction)
        down = loss()
        v.assign(start)
        wanted = float(up - down) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), wanted, rtol=1e-5, atol=1e-9)


def test_an_unknown_number_of_samples():
    """As of a dataset that does not tell: the dual form, with the same answers."""
    model, x = RidgeHead(network(), 0.1), episode(12)
    wanted = model.predict(x, verbose=0)
    specs = {key: tf.TensorSpec([None, None, 5]) for key in ("support_x", "query_x")}
    specs["support_y"] = tf.TensorSpec([None, None], tf.int64)
    function = tf.function(model).get_concrete_function(specs)
    x = {key: tf.constant(value) for key, value in x.items()}
    np.testing.assert_allclose(function(x), wanted, rtol=1e-3, atol=1e-4)


def test_what_is_learnt_is_saved_and_stays_positive(tmp_path):
    model, x = RidgeHead(network(), 0.01), episode(12)
    model.compile(keras.optimizers.Adam(0.5))
    assert float(RidgeHead(network()).regularization) == pytest.approx(50.0, rel=1e-6)
    start = [float(v) for v in (model.regularization, model.scale, model.shift)]
    model.fit(x, Y, epochs=10, verbose=0)
    now = [float(v) for v in (model.regularization, model.scale, model.shift)]
    assert now[0] > 0 and now[0] != pytest.approx(start[0]) and now[1] != pytest.approx(start[1])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.regularization) == pytest.approx(now[0])
    wanted = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regularization": 0}, "`regularization` must be a positive number"),
        ({"regularization": "auto"}, "`regularization` must be a positive number"),
        ({"scale": -1}, "`scale` must be a positive number"),
        ({"shift": float("inf")}, "`shift` must be a number"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RidgeHead(network(), **arguments)
