import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.data.episode_indices import episode_indices
from keras_sslmeta.evaluation import few_shot
from keras_sslmeta.meta.prototypical_network import PrototypicalNetwork

TASKS, SAMPLES, QUERIES, WAYS = 3, 7, 4, 3
RNG = np.random.default_rng(0)
X = {
    "support_x": RNG.normal(size=(TASKS, SAMPLES, 5)).astype("float32"),
    "support_y": np.stack([RNG.permutation([0, 1, 2, 0, 1, 0, 2]) for _ in range(TASKS)]),
    "query_x": RNG.normal(size=(TASKS, QUERIES, 5)).astype("float32"),
}
Y = RNG.integers(WAYS, size=(TASKS, QUERIES))


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def network():
    return keras.Sequential([keras.Input((5,)), layers.Dense(4, "tanh")])


def by_loops(embed, x):
    """−‖q − c_k‖², one number at a time."""
    outputs = np.zeros((TASKS, QUERIES, WAYS))
    for task in range(TASKS):
        support, labels = embed(x["support_x"][task]), x["support_y"][task]
        for j, query in enumerate(embed(x["query_x"][task])):
            for k in range(WAYS):
                mean = np.mean([s for s, y in zip(support, labels, strict=True) if y == k], axis=0)
                outputs[task, j, k] = -np.sum((query - mean) ** 2)
    return outputs


def test_logits_are_negative_squared_distances_to_class_means():
    encoder = network()
    got = PrototypicalNetwork(encoder).predict(X, verbose=0)
    np.testing.assert_allclose(got, by_loops(lambda x: encoder(x).numpy(), X), rtol=1e-4, atol=1e-5)


def test_maps_are_flattened():
    encoder = keras.Sequential([keras.Input((5,)), layers.Dense(8), layers.Reshape((2, 2, 2))])
    got = PrototypicalNetwork(encoder).predict(X, verbose=0)
    flat = by_loops(lambda x: encoder(x).numpy().reshape(len(x), -1), X)
    np.testing.assert_allclose(got, flat, rtol=1e-4, atol=1e-5)


def test_a_large_common_mean_costs_no_digits():
    """Embeddings of size 1 about 4,096, exact in float32: squares of 2^24 would leave no distance."""
    shift = 4096.0
    x = {key: np.round(X[key] * 64) / 64 if key[-1] == "x" else X[key] for key in X}
    encoder = keras.Sequential([keras.Input((5,)), layers.Rescaling(1.0, offset=shift)])
    got = PrototypicalNetwork(encoder)(x)
    np.testing.assert_allclose(
        got, by_loops(lambda x: x.astype("float64"), x), rtol=1e-3, atol=2e-3
    )


def test_gradient_is_that_of_the_direct_formula(double_precision):
    """With the distances taken one by one, and the center part of the graph."""
    encoder = network()
    model = PrototypicalNetwork(encoder)
    x = {key: value.astype("float64") if key[-1] == "x" else value for key, value in X.items()}
    hot = tf.one_hot(X["support_y"], WAYS, dtype=tf.float64)

    def direct():
        support, queries = (
            tf.reshape(encoder(x[k].reshape(-1, 5)), [TASKS, -1, 4])
            for k in ("support_x", "query_x")
        )
        means = tf.einsum("tsw,tsd->twd", hot, support) / tf.reduce_sum(hot, 1)[..., None]
        return -tf.reduce_sum((queries[:, :, None] - means[:, None]) ** 2, axis=-1)

    gradients = []
    for run in (lambda: model(x), direct):
        with tf.GradientTape() as tape:
            logs = tf.nn.log_softmax(run())
            loss = -tf.reduce_mean(tf.gather(logs, Y, batch_dims=2))
        gradients.append(tape.gradient(loss, encoder.trainable_variables))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def test_accuracy_is_that_of_few_shot_evaluation():
    """The same classifier as `evaluation.few_shot` without normalisation, on an encoder as it is."""
    y = np.repeat(np.arange(8), 12)
    x = (RNG.normal(size=(8, 5))[y] + RNG.normal(size=(96, 5))).astype("float32")
    encoder = network()
    result = few_shot(encoder, (x, y), ways=4, shots=3, queries=5, episodes=200, normalize=False)
    model = PrototypicalNetwork(encoder)
    support, query = episode_indices(y, ways=4, shots=3, queries=5, episodes=200, seed=0)
    episodes = {
        "support_x": x[support].reshape(200, 12, 5),
        "support_y": np.tile(np.repeat(np.arange(4), 3), (200, 1)),
        "query_x": x[query].reshape(200, 20, 5),
    }
    hits = model.predict(episodes, verbose=0).argmax(-1) == np.repeat(np.arange(4), 5)
    np.testing.assert_allclose(hits.mean(axis=1), result.per_episode, atol=0.051)
    np.testing.assert_allclose(hits.mean(), np.mean(result.per_episode), atol=1e-3)
