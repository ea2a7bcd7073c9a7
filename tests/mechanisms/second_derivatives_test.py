import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.mechanisms.second_derivatives import exact, explained, moments

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 2)) * 2 + 1
TENSORFLOWS = tf.nn.moments


def first_derivatives(function, x, axes, keepdims, cotangents):
    with tf.GradientTape() as tape:
        tape.watch(x)
        results = function(x, axes, keepdims=keepdims)
        total = tf.add_n(
            [tf.reduce_sum(r * tf.cast(c, r.dtype)) for r, c in zip(results, cotangents)]  # noqa: B905
        )
    return results, tape.gradient(total, x)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [[0], [0, 1], [-1], [2, 0], [0, 1, 2]])
def test_value_and_first_derivative_are_tensorflows(axes, keepdims, dtype):
    x = tf.cast(X, dtype)
    shape = np.mean(X, axis=tuple(axes), keepdims=keepdims).shape
    cotangents = RNG.normal(size=(2, *shape))
    got, gradient = first_derivatives(moments, x, axes, keepdims, cotangents)
    wanted, expected = first_derivatives(TENSORFLOWS, x, axes, keepdims, cotangents)
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}[dtype]
    for a, b in zip([*got, gradient], [*wanted, expected], strict=True):
        assert a.dtype == b.dtype == x.dtype and a.shape == b.shape
        a, b = tf.cast(a, tf.float64), tf.cast(b, tf.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_half_precision_is_averaged_in_single():
    """65,000 and more would overflow."""
    x = tf.constant([200.0, -300.0, 250.0, 100.0], tf.float16)
    mean, variance = moments(x, [0])
    np.testing.assert_allclose(mean, np.mean(x.numpy().astype("float64")), rtol=1e-3)
    np.testing.assert_allclose(variance, np.var(x.numpy().astype("float64")), rtol=1e-3)


def test_the_second_derivative_is_that_of_the_formulas():
    """sin(μ) + σ²^1.5, whose Hessian is known."""
    x = RNG.normal(size=7) + 0.5
    with tf.GradientTape() as outer:
        point = tf.constant(x)
        outer.watch(point)
        with tf.GradientTape() as inner:
            inner.watch(point)
            mean, variance = moments(point, [0])
            value = tf.sin(mean) + variance**1.5
        gradient = inner.gradient(value, point)
    hessian = outer.jacobian(gradient, point)
    n, mean, variance = 7, x.mean(), x.var()
    of_variance = 2 / n * (x - mean)
    expected = (
        -np.sin(mean) * np.ones((n, n)) / n**2
        + 0.75 / np.sqrt(variance) * np.outer(of_variance, of_variance)
        + 1.5 * np.sqrt(variance) * 2 / n * (np.eye(n) - 1 / n)
    )
    np.testing.assert_allclose(hessian, expected, rtol=1e-10, atol=1e-12)


NORMALIZATIONS = {
    "batch": lambda: layers.BatchNormalization(dtype="float64"),
    "layer": lambda: layers.LayerNormalization(dtype="float64"),
    "layer, two axes": lambda: layers.LayerNormalization(axis=[1, 2], dtype="float64"),
    "group": lambda: layers.GroupNormalization(2, dtype="float64"),
    "unit": lambda: layers.UnitNormalization(dtype="float64"),
    "root mean square": lambda: layers.RMSNormalization(dtype="float64"),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_second_derivatives_of_keras_layers(name):
    """A product of the Hessian with a direction against a difference of gradients."""
    layer = NORMALIZATIONS[name]()
    x = tf.constant(RNG.normal(size=(4, 3, 4)))
    layer.build(x.shape)
    cotangent, direction = RNG.normal(size=(2, 4, 3, 4))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            total = tf.reduce_sum(tf.tanh(y) * cotangent)
        return tape.gradient(total, x)

    with exact():
        with tf.GradientTape() as tape:
            tape.watch(x)
            slope = tf.reduce_sum(gradient(x) * direction)
        got = tape.gradient(slope, x)
        ends = gradient(x + 1e-6 * direction), gradient(x - 1e-6 * direction)
    np.testing.assert_allclose(got, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_tensorflows_moments_return():
    assert tf.nn.moments is TENSORFLOWS
    with exact():
        assert tf.nn.moments is moments
        with exact():
            assert tf.nn.moments is moments
        assert tf.nn.moments is moments
    assert tf.nn.moments is TENSORFLOWS


def test_tensorflows_moments_return_after_an_error():
    with pytest.raises(KeyError), exact():
        raise KeyError
    assert tf.nn.moments is TENSORFLOWS


class Response(keras.layers.Layer):
    """Local response normalisation, of which TensorFlow has no second derivative."""

    def call(self, x):
        return tf.nn.local_response_normalization(x)


def response_network(name="response"):
    inputs = keras.Input((4, 4, 2))
    inner = keras.Sequential([keras.Input((4, 4, 3)), layers.ReLU(), Response(name=name)])
    x = inner(layers.Conv2D(3, 1)(inputs))
    return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x)))


def twice(model, x):
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(model(x) ** 2)
        gradient = inner.gradient(y, x)
    return outer.gradient(gradient, x)


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_layer_without_second_derivative_is_named(in_graph):
    """Also where it is in a model in the model."""
    model = response_network("culprit")
    run = tf.function(lambda x: twice(model, x)) if in_graph else lambda x: twice(model, x)
    wanted = "(?s)second_order=True.*'culprit'.*LRNGrad.*second_order=False"
    with pytest.raises(ValueError, match=wanted) as raised, explained(model):
        run(tf.ones([2, 4, 4, 2]))
    assert isinstance(raised.value.__cause__, LookupError)


def test_other_errors_pass():
    for error in (LookupError("of something else"), KeyError("name"), ValueError("value")):
        with pytest.raises(type(error)) as raised, explained(response_network()):
            raise error
        assert raised.value is error


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_recurrent_layer_is_told_of_use_cudnn(in_graph):
    """The message alone: there is no cuDNN without a GPU."""
    error = LookupError("gradient registry has no entry for: CudnnRNNBackprop")
    if in_graph:
        error = LookupError(
            "No gradient defined for operation 'x' (op type: CudnnRNNV3). In general"
        )
    with pytest.raises(ValueError, match="use_cudnn=False"), explained(response_network()):
        raise error
