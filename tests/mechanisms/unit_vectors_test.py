import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import unit_vectors


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e25])
def test_unit_norm_and_gradient_at_any_scale(scale):
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 7)) * scale, tf.float32)
    direction = tf.constant(np.random.default_rng(1).normal(size=(5, 7)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        unit = unit_vectors.normalize(x)
        value = tf.reduce_sum(unit * direction)
    gradient = tape.gradient(value, x)
    wide = x.numpy().astype("float64")
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    expected = wide / norm
    np.testing.assert_allclose(unit, expected, rtol=1e-6, atol=1e-7)
    # d(x/‖x‖) = (I − u uᵀ)/‖x‖
    along = (direction - (expected * direction).numpy().sum(1, keepdims=True) * expected) / norm
    np.testing.assert_allclose(gradient, along, rtol=1e-4, atol=1e-5 / scale)


def test_zero_stays_zero_with_zero_gradient():
    x = tf.constant([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(unit_vectors.normalize(x))
    np.testing.assert_allclose(unit_vectors.normalize(x), [[0, 0, 0], [0, 0.6, 0.8]], rtol=1e-6)
    gradient = tape.gradient(value, x).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0], [0, 0, 0])


def test_nan_stays_nan():
    assert np.isnan(unit_vectors.normalize(tf.constant([[np.nan, 1.0]]))).all()


@pytest.mark.parametrize("tape_outside", [False, True])
def test_second_derivative(tape_outside):
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 4)))
    direction = tf.constant(np.random.default_rng(1).normal(size=(3, 4)))

    def first(normalize, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.sin(normalize(x)) * direction)
        return tape.gradient(value, x)

    def plain(x):
        return x / tf.sqrt(tf.reduce_sum(x * x, axis=-1, keepdims=True))

    results = []
    for normalize in (unit_vectors.normalize, plain):
        function = tf.function(lambda x, normalize=normalize: first(normalize, x))
        with tf.GradientTape() as tape:
            tape.watch(x)
            slope = function(x) if tape_outside else first(normalize, x)
            total = tf.reduce_sum(tf.cos(slope))
        results.append(tape.gradient(total, x))
    np.testing.assert_allclose(*results, rtol=1e-10)
