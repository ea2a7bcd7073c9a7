import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import random_state


def folded(state, indices):
    return np.stack([random_state.fold_in(state, i).numpy() for i in indices])


def state_of(seed, moved=0):
    state = keras.random.SeedGenerator(seed).state.value
    return tf.constant(state.numpy() + [0, moved], state.dtype)


@pytest.mark.slow
def test_the_states_of_tasks_and_steps_are_distinct():
    """A seed generator counts its second word up, so two streams that meet would be two close states."""
    states = [state_of(seed, moved) for seed in (0, 1, 7) for moved in range(20)]
    every = np.concatenate([folded(state, range(20)) for state in states]).astype(np.int64)
    assert len(np.unique(every, axis=0)) == len(every) == 1200
    for a, b in itertools.pairwise(every[np.lexsort(every.T[::-1])]):
        assert a[0] != b[0] or abs(a[1] - b[1]) > 1000


def test_states_are_neither_negative_nor_constant_in_one_word():
    every = folded(state_of(3), range(200)).astype(np.int64)
    assert every.min() >= 0 and every.max() < 2**31
    assert all(len(np.unique(every[:, word])) > 195 for word in (0, 1))


def test_a_large_state_is_folded_too():
    state = tf.constant([2**32 - 1, 2**31], "uint32")
    every = folded(state, range(50)).astype(np.int64)
    assert every.min() >= 0 and len(np.unique(every, axis=0)) == 50


def test_the_state_depends_on_state_and_index_alone():
    """The n-th task draws the same on any replica, eager or compiled."""
    state = state_of(5)
    eager = folded(state, range(4))
    in_loop = tf.map_fn(
        lambda i: random_state.fold_in(state, i), tf.range(4), fn_output_signature=state.dtype
    )
    compiled = tf.function(lambda i: random_state.fold_in(state, i), jit_compile=True)
    np.testing.assert_array_equal(in_loop, eager)
    np.testing.assert_array_equal([compiled(tf.constant(i)) for i in range(4)], eager)
    assert in_loop.dtype == state.dtype


def test_folded_states_seed_unrelated_streams():
    """Dropout-like draws of tasks and of their next steps agree no more often than chance."""
    state = state_of(1)
    draws = [
        tf.random.stateless_uniform([4000], random_state.fold_in(state, i) + [0, step]) < 0.5
        for i in range(3)
        for step in range(3)
    ]
    for a, b in itertools.combinations(draws, 2):
        agreement = np.mean(a.numpy() == b.numpy())
        assert abs(agreement - 0.5) < 0.05


class Noisy(random_state.SavedRandomState):
    """Two generators of its own, one of them in a sublayer."""

    def __init__(self, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(seed)
        self.dropout = keras.layers.Dropout(0.5, seed=seed + 1)

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], name="scale")
        super().build(shape)

    def call(self, x, training=None):
        return self.dropout(x * keras.random.normal((), seed=self.generator), training=training)


def test_states_are_saved_and_loaded(tmp_path):
    x = np.ones((3, 4), "float32")
    model, other = (keras.Sequential([keras.Input((4,)), Noisy(seed)]) for seed in (0, 5))
    for _ in range(3):
        model(x, training=True)
    path = str(tmp_path / "model.weights.h5")
    model.save_weights(path)
    assert not np.array_equal(model(x, training=True), other(x, training=True))
    model.load_weights(path)
    other.load_weights(path)
    np.testing.assert_array_equal(model(x, training=True), other(x, training=True))
    np.testing.assert_array_equal(model.get_weights()[0], other.get_weights()[0])


@pytest.mark.parametrize("name", ["scale", "seed_generator_state"])
def test_is_seed(name):
    layer = Noisy()
    layer.build((None, 4))
    found = [random_state.is_seed(v) for v in layer.variables if v.name == name]
    assert found and all(is_seed == (name != "scale") for is_seed in found)
