import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32") * 2 + 1


class Counter(keras.layers.Layer):
    """Keeps a running mean of its inputs and counts its calls."""

    def build(self, shape):
        self.average = self.add_weight(shape=(shape[-1],), trainable=False, name="average")
        self.calls = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls"
        )

    def call(self, x):
        self.average.assign(0.5 * self.average + 0.5 * tf.reduce_mean(x, axis=0))
        self.calls.assign(self.calls + 1)
        return x * 1.0


def network(**kwargs):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="body"),
            keras.Sequential([keras.Input((4,)), layers.BatchNormalization(momentum=0.7)]),
            Counter(),
            layers.Dropout(0.5, seed=1),
            layers.Dense(2, name="head"),
        ]
    )
    return model, StatelessNetwork(model, **kwargs)


def tensors(variables):
    return [tf.convert_to_tensor(v.value) for v in variables]


def groups(net):
    return [tensors(x) for x in (net.adapted, net.others, net.statistics, net.state)]


def names(variables):
    return [v.path.split("/", 1)[-1] for v in variables]


def test_every_variable_is_in_one_group():
    model, net = network(is_adapted=lambda v: "head" in v.path)
    assert [v.name for v in net.adapted] == ["kernel", "bias"]
    assert all("head" in v.path for v in net.adapted)
    assert [v.name for v in net.others] == ["kernel", "bias", "gamma", "beta"]
    assert [v.name for v in net.statistics] == ["moving_mean", "moving_variance"]
    assert net.momenta == [0.7, 0.7]
    assert sorted(v.name for v in net.state) == ["average", "calls", "seed_generator_state"]
    everything = [*net.adapted, *net.others, *net.statistics, *net.state]
    assert {id(v) for v in everything} == {id(v) for v in model.variables}
    assert len(everything) == len(model.variables)
    assert [v.name == "seed_generator_state" for v in net.state] == net.random_states()


def test_all_trainable_variables_by_default():
    model, net = network()
    assert [id(v) for v in net.adapted] == [id(v) for v in model.trainable_variables]
    assert net.others == []


@pytest.mark.parametrize("by_batch", [False, True])
def test_equals_the_model_with_the_weights_assigned(by_batch):
    model, net = network()
    rng = np.random.default_rng(1)
    adapted, others, statistics, state = groups(net)
    adapted = [w + rng.normal(size=w.shape).astype("float32") for w in adapted]
    statistics = [tf.constant([0.3, -1.0, 2.0, 0.5]), tf.constant([0.5, 1.0, 2.0, 3.0])]
    outputs, of_inputs, after, _ = net(adapted, others, statistics, state, X, False, by_batch)

    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for target, source in zip(twin.trainable_variables, adapted, strict=True):
        target.assign(source)
    norm = twin.layers[1].layers[0]
    hidden = X @ adapted[0].numpy() + adapted[1].numpy()
    if by_batch:
        statistics = [hidden.mean(axis=0), hidden.var(axis=0)]
    norm.moving_mean.assign(statistics[0])
    norm.moving_variance.assign(statistics[1])
    np.testing.assert_allclose(outputs, twin(X, training=False), rtol=1e-4, atol=1e-5)
    for got, wanted in zip(of_inputs, statistics, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    # The custom layer's state moves as in a call of the model.
    wanted = {v.name: v.numpy() for v in twin.layers[2].variables}
    for variable, got in zip(net.state, after, strict=True):
        if variable.name in wanted:
            np.testing.assert_allclose(got, wanted[variable.name], rtol=1e-4, atol=1e-5)


def test_the_model_itself_stays_as_it_was():
    model, net = network()
    before = [v.numpy() for v in model.variables]
    norm = model.layers[1].layers[0]
    net(*groups(net), X, True, True)
    for old, v in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, v.numpy())
    assert norm.momentum == 0.7
    assert "call" not in vars(norm)


def test_the_model_stays_as_it_was_after_an_error():
    model, net = network()
    norm = model.layers[1].layers[0]
    with pytest.raises(Exception, match="incompatible|expected"):
        net(*groups(net), X[:, :2], True, True)
    assert norm.momentum == 0.7
    assert "call" not in vars(norm)


def test_statistics_are_differentiable():
    _, net = network()
    adapted, others, statistics, state = groups(net)
    with tf.GradientTape() as tape:
        tape.watch(adapted[1])
        _, of_inputs, *_ = net(
            adapted, others, statistics, state, X, False, True, through_statistics=True
        )
        total = tf.reduce_sum(of_inputs[0])
    np.testing.assert_allclose(tape.gradient(total, adapted[1]), np.ones(4), rtol=1e-5)


def test_dropout_follows_training_and_moves_its_state():
    _, net = network()
    start = groups(net)
    at = net.random_states().index(True)
    first, _, after, _ = net(*start, X, True, False)
    again, *_ = net(*start, X, True, False)
    then, *_ = net(*start[:3], after, X, True, False)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, then)
    assert not np.array_equal(after[at], start[3][at])
    _, _, inactive, _ = net(*start, X, False, True)
    np.testing.assert_array_equal(inactive[at], start[3][at])


def test_a_frozen_batch_normalisation_has_statistics_and_keeps_them():
    model, _ = network()
    norm = model.layers[1].layers[0]
    norm.trainable = False
    net = StatelessNetwork(model)
    assert [v.name for v in net.statistics] == ["moving_mean", "moving_variance"]
    assert {"gamma", "beta"} <= {v.name for v in net.frozen}
    given = [tf.constant([1.0, 2.0, 3.0, 4.0]), tf.constant([4.0, 3.0, 2.0, 1.0])]
    adapted, others, _, state = groups(net)
    by_batch, after, *_ = net(adapted, others, given, state, X, False, True)
    by_given, *_ = net(adapted, others, given, state, X, False, False)
    np.testing.assert_array_equal(by_batch, by_given)
    for got, wanted in zip(after, given, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_shared_layer_is_counted_once():
    inputs = keras.Input((3,))
    norm, dense = layers.BatchNormalization(), layers.Dense(3)
    model = keras.Model(inputs, norm(dense(norm(dense(inputs)))))
    net = StatelessNetwork(model)
    assert len(net.adapted) == 4
    assert len(net.statistics) == 2
