"""Closed-form derivatives of batch normalisation against TensorFlow's, op by op."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms.batch_normalization import applies, normalized

EPSILON = 1e-3


def plain(x, scale, shift, epsilon):
    axes = list(range(len(x.shape) - 1))
    mean = tf.reduce_mean(x, axes)
    variance = tf.reduce_mean((x - mean) ** 2, axes)
    return (x - mean) * tf.math.rsqrt(variance + epsilon) * scale + shift, mean, variance


def derivatives(function, inputs, weights):
    """Value, gradients, and gradients of a function of these, in all inputs."""
    inputs = [tf.convert_to_tensor(x) for x in inputs]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            y, mean, variance = function(*inputs, EPSILON)
            loss = tf.reduce_sum(tf.sin(y) * weights[0])
        first = inner.gradient(loss, inputs)
        along = sum(tf.reduce_sum(g * w) for g, w in zip(first, weights[1:], strict=True))
    second = outer.gradient(along, inputs)
    return [y, mean, variance, *first, *second]


@pytest.mark.first(4)
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-4)])
@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (7, 5), (3, 4, 5)])
def test_value_and_both_derivatives(shape, dtype, tolerance, in_graph):
    rng = np.random.default_rng(0)
    inputs = [
        (3 + 2 * rng.normal(size=size)).astype(dtype) for size in (shape, shape[-1:], shape[-1:])
    ]
    weights = [rng.normal(size=x.shape).astype(dtype) for x in (inputs[0], *inputs)]
    run = tf.function(derivatives) if in_graph else derivatives
    got = run(normalized, inputs, weights)
    wanted = derivatives(plain, [x.astype("float64") for x in inputs], weights)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def test_precision_under_xla():
    x = (1000 + 0.1 * np.random.default_rng(0).normal(size=(16, 3, 3, 4))).astype("float32")
    ones = np.ones(4, "float32")
    run = tf.function(normalized, jit_compile=True)
    y, mean, variance = run(x, ones, 0 * ones, EPSILON)
    wanted = plain(x.astype("float64"), ones, 0 * ones, EPSILON)
    np.testing.assert_allclose(mean, wanted[1], rtol=1e-6)
    np.testing.assert_allclose(variance, wanted[2], rtol=1e-2)
    np.testing.assert_allclose(y, wanted[0], atol=0.05)


def test_no_scale_and_no_shift():
    x = tf.constant(np.random.default_rng(1).normal(size=(6, 3)), tf.float32)
    got, _, _ = normalized(x, None, None, EPSILON)
    wanted, _, _ = plain(x, tf.ones(3), tf.zeros(3), EPSILON)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_sample(dtype):
    """Its variance is 0, and so is its gradient."""
    x = tf.constant([[1.0, -2.0]], dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _, variance = normalized(x, None, tf.constant([0.5, 0.25], dtype), EPSILON)
    np.testing.assert_allclose(y, [[0.5, 0.25]], atol=1e-6)
    np.testing.assert_array_equal(variance, [0.0, 0.0])
    np.testing.assert_allclose(tape.gradient(y, x), [[0.0, 0.0]], atol=1e-6)


def test_an_unknown_number_of_samples():
    run = tf.function(
        lambda x: normalized(x, None, None, EPSILON)[0],
        input_signature=[tf.TensorSpec((None, 3), tf.float32)],
    )
    x = np.random.default_rng(2).normal(size=(5, 3)).astype("float32")
    wanted = plain(tf.constant(x), tf.ones(3), tf.zeros(3), EPSILON)[0]
    np.testing.assert_allclose(run(x), wanted, rtol=1e-5, atol=1e-6)


def test_when_it_applies():
    x = tf.zeros((2, 3, 4))
    layer = keras.layers.BatchNormalization()
    assert applies(layer, x, None)
    assert not applies(layer, x, tf.ones((2, 3)))
    assert not applies(layer, tf.cast(x, tf.float16), None)
    assert not applies(keras.layers.BatchNormalization(axis=1), x, None)
    assert applies(keras.layers.BatchNormalization(axis=2), x, None)
    frozen = keras.layers.BatchNormalization()
    frozen.trainable = False
    assert not applies(frozen, x, None)

    class Own(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs, training=training, mask=mask) + 1

    assert not applies(Own(), x, None)
