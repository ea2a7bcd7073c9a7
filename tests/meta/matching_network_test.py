import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.meta.matching_network import MatchingNetwork

TASKS, SAMPLES, QUERIES, WAYS = 3, 7, 4, 3
RNG = np.random.default_rng(0)
X = {
    "support_x": RNG.normal(size=(TASKS, SAMPLES, 5)).astype("float32"),
    "support_y": np.stack([RNG.permutation([0, 1, 2, 0, 1, 0, 2]) for _ in range(TASKS)]),
    "query_x": RNG.normal(size=(TASKS, QUERIES, 5)).astype("float32"),
}


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def network(*between):
    return keras.Sequential([keras.Input((5,)), *between, layers.Dense(4)])


def by_loops(embed, x, temperature):
    """Attention of one query to one sample at a time."""
    outputs = np.zeros((TASKS, QUERIES, WAYS))
    for task in range(TASKS):
        support = embed(x["support_x"][task]).astype("float64")
        for j, query in enumerate(embed(x["query_x"][task]).astype("float64")):
            cosines = [s @ query / np.linalg.norm(s) / np.linalg.norm(query) for s in support]
            weights = np.exp(np.array(cosines) / temperature)
            for weight, y in zip(weights / weights.sum(), x["support_y"][task], strict=True):
                outputs[task, j, y] += weight
    return np.log(outputs)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 5])
def test_outputs_are_log_attention_summed_by_class(temperature):
    encoder = network()
    got = MatchingNetwork(encoder, temperature).predict(X, verbose=0)
    wanted = by_loops(lambda x: encoder(x).numpy(), X, temperature)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tf.nn.log_softmax(got), got, rtol=1e-5, atol=1e-5)


def test_the_papers_temperature_is_the_default_and_bounds_the_loss():
    assert MatchingNetwork(network()).get_config()["temperature"] == 1.0
    axes = np.concatenate([np.eye(5), -np.eye(5)]).astype("float32")
    encoder = keras.Sequential([keras.Input((5,)), layers.Rescaling(1.0)])
    x = {"support_x": axes[None, [0, 5]], "support_y": [[0, 1]], "query_x": axes[None, :1]}
    got = MatchingNetwork(encoder)({k: np.asarray(v) for k, v in x.items()})
    np.testing.assert_allclose(got[0, 0, 0], 1 - np.log(np.e + 1 / np.e), rtol=1e-6)


def test_a_sharp_temperature_stays_finite():
    """A class whose attention underflows float32 has its logarithm all the same."""
    axes = np.concatenate([np.eye(5), -np.eye(5)]).astype("float32")
    encoder = keras.Sequential([keras.Input((5,)), layers.Rescaling(1.0)])
    x = {
        "support_x": axes[None, [0, 5]],
        "support_y": np.array([[0, 1]]),
        "query_x": axes[None, :1],
    }
    got = MatchingNetwork(encoder, 0.002)(x)
    np.testing.assert_allclose(got[0, 0], [0, -1000], rtol=1e-6)


def test_an_embedding_of_zero_has_a_finite_gradient():
    encoder = network(layers.Dense(4, "relu", bias_initializer=keras.initializers.Constant(-100.0)))
    model = MatchingNetwork(encoder)
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(model(X)[..., 0])
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, encoder.trainable_variables))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "hot", None])
def test_temperatures_that_are_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a positive number"):
        MatchingNetwork(network(), temperature)
