import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.mechanisms.momentum_copy import MomentumCopy

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype("float32")


class Subclassed(keras.Model):
    """Tells nothing of its shapes before it has been called."""

    def __init__(self):
        super().__init__()
        self.body, self.head = layers.Dense(4, "tanh"), layers.Dense(2)

    def call(self, x):
        return self.head(self.body(x))


def dense(*between):
    return keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), *between, layers.Dense(2)])


def subclassed():
    model = Subclassed()
    model(X)
    return model


def shuffle(network, seed):
    """Other values in all weights that are trained."""
    rng = np.random.default_rng(seed)
    for weight in network.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("as_function", [False, True])
def test_the_averages_follow_the_recurrence(momentum, as_function):
    network = dense(layers.BatchNormalization())
    copy = MomentumCopy(network)
    update = copy.update
    if as_function:  # As within a step, whose momentum may follow a schedule.
        update = tf.function(copy.update, input_signature=[tf.TensorSpec([])])
    expected = [w.numpy().astype("float64") for w in network.trainable_variables]
    for step in range(5):
        shuffle(network, step)
        update(tf.constant(momentum) if as_function else momentum)
        expected = [
            momentum * average + (1 - momentum) * w.numpy()
            for average, w in zip(expected, network.trainable_variables, strict=True)
        ]
        for average, value in zip(copy.averages, expected, strict=True):
            np.testing.assert_allclose(average, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [dense, subclassed], ids=["Sequential", "subclassed"])
def test_the_outputs_are_those_of_a_network_with_the_averages(build):
    network, other = build(), build()
    copy = MomentumCopy(network)
    np.testing.assert_array_equal(copy(X), network(X))
    shuffle(network, 1)
    copy.update(0.7)
    other.set_weights([average.numpy() for average in copy.averages])
    np.testing.assert_allclose(copy(X), other(X), rtol=1e-6)
    assert np.abs(copy(X) - network(X)).max() > 0.1


def test_no_gradient_flows_into_averages_weights_or_inputs():
    network = dense()
    copy = MomentumCopy(network)
    assert not copy.trainable_variables and len(copy.non_trainable_variables) == 4
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        watched = [w.value for w in (*copy.averages, *network.variables)]
        tape.watch(watched)
        value = tf.reduce_sum(copy(x) ** 2)
    assert tape.gradient(value, [x, *watched]) == [None] * 9


def test_a_model_that_is_made_trainable_leaves_the_averages_as_they_are():
    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.network = dense()
            self.copy = MomentumCopy(self.network)

    holder = Holder()
    holder.trainable = False
    holder.trainable = True
    assert len(holder.trainable_variables) == 4


def test_batch_normalisation_uses_the_copys_batch_and_moves_nothing():
    norm = layers.BatchNormalization(momentum=0.5)
    network = keras.Sequential([keras.Input((3,)), norm])
    copy = MomentumCopy(network)
    np.testing.assert_allclose(
        copy(X, training=True), (X - X.mean(0)) / np.sqrt(X.var(0) + norm.epsilon), atol=1e-5
    )
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(3))
    network(X, training=True)  # What the network sees moves them.
    assert np.abs(norm.moving_mean).max() > 0
    expected = (X - norm.moving_mean) / np.sqrt(norm.moving_variance + norm.epsilon)
    np.testing.assert_allclose(copy(X, training=False), expected, atol=1e-5)


def test_frozen_weights_stay_to_the_bit_and_are_followed_when_they_train_again():
    network = dense()
    network.layers[0].trainable = False
    copy = MomentumCopy(network)
    assert len(copy.averages) == 4
    kernel = network.layers[0].kernel
    for _ in range(20):
        copy.update(0.99)
    np.testing.assert_array_equal(copy.averages[0], kernel)
    before = kernel.numpy()
    network.layers[0].trainable = True
    kernel.assign(before + 1)
    copy.update(0.75)
    np.testing.assert_allclose(copy.averages[0], before + 0.25, rtol=1e-6)


def test_a_layer_that_occurs_twice_has_one_average():
    shared = layers.Dense(3)
    network = keras.Sequential([keras.Input((3,)), shared, layers.ReLU(), shared])
    assert len(MomentumCopy(network).averages) == 2


def test_dropout_goes_on_from_the_networks_random_state():
    network = keras.Sequential([keras.Input((200,)), layers.Dropout(0.5, seed=3)])
    copy = MomentumCopy(network)
    ones = np.ones((1, 200), "float32")
    drawn = [f(ones, training=True).numpy() for f in (network, copy, network, copy)]
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(drawn[i], drawn[j])
    again = keras.Sequential([keras.Input((200,)), layers.Dropout(0.5, seed=3)])
    for expected in drawn:
        np.testing.assert_array_equal(again(ones, training=True), expected)


def test_losses_of_layers_are_the_networks_alone():
    network = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, activity_regularizer="l2", kernel_regularizer="l2")]
    )
    copy = MomentumCopy(network)
    network(X)
    before = [float(x) for x in network.losses]
    copy(10 * X)
    assert [float(x) for x in network.losses] == before and not copy.losses


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("float16", "float32"), ("mixed_float16", "float32"), ("float64", "float64")],
)
def test_dtypes(policy, kept):
    network = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype=policy)])
    copy = MomentumCopy(network)
    assert {average.dtype for average in copy.averages} == {kept}
    network.layers[0].kernel.assign(network.layers[0].kernel + 1)
    start = copy.averages[0].numpy()
    for _ in range(10):
        copy.update(0.999)  # Increments that half precision would lose.
    expected = start + (1 - 0.999**10) * (network.layers[0].kernel.numpy().astype(kept) - start)
    np.testing.assert_allclose(copy.averages[0], expected, rtol=1e-5)
    assert copy(X).dtype == network(X).dtype


class Follower(keras.Model):
    """Builds network and copy within Keras's symbolic build, where variables have no values yet."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.network = Subclassed()

    def build(self, shape):
        self.network(keras.KerasTensor(shape))
        self.copy = MomentumCopy(self.network)
        self.built = True

    def call(self, x):
        return self.network(x) + self.copy(x)


def test_a_copy_made_in_a_symbolic_build_begins_equal_and_is_saved(tmp_path):
    model = Follower()
    model.compile("sgd", "mse")
    model._symbolic_build(data_batch=(tf.constant(X), tf.constant(X[:, :2])))
    for average, weight in zip(model.copy.averages, model.network.weights, strict=True):
        np.testing.assert_array_equal(average, weight)
    shuffle(model.network, 2)
    model.copy.update(0.5)
    assert len(model.weights) == 8  # The network's own and their averages, none twice.
    model.save_weights(tmp_path / "follower.weights.h5")
    loaded = Follower()
    loaded(X)
    loaded.load_weights(tmp_path / "follower.weights.h5")
    np.testing.assert_array_equal(loaded.copy(X), model.copy(X))
    np.testing.assert_array_equal(loaded(X), model(X))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (3, "`network` must be a Keras layer or model. Received: 3"),
        (layers.Dense(2), "must be built before it is copied"),
    ],
)
def test_refused(network, message):
    with pytest.raises(ValueError, match=message):
        MomentumCopy(network)
