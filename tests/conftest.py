"""What tests of losses share, and which cases of a test are for plain runs."""

import collections

import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture
def value_and_gradient():
    """Of a loss in `y_pred`."""

    def compute(loss, y_true, y_pred, **kwargs):
        y_pred = tf.convert_to_tensor(y_pred)
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y_true, y_pred, **kwargs)
        return value, tape.gradient(value, y_pred)

    return compute


@pytest.fixture
def check_gradient(value_and_gradient):
    """The gradient of a float64 loss in `y_pred` against central differences, component by component."""

    def check(loss, y_true, y_pred, step=1e-6, rtol=1e-5, atol=1e-7):
        y_pred = np.asarray(y_pred, "float64")
        _, got = value_and_gradient(loss, y_true, y_pred)
        value = tf.function(lambda y_pred: loss(y_true, y_pred), autograph=False)
        expected = np.zeros_like(y_pred)
        for index in np.ndindex(y_pred.shape):
            up, down = y_pred.copy(), y_pred.copy()
            up[index] += step
            down[index] -= step
            expected[index] = (float(value(tf.constant(up))) - float(value(tf.constant(down)))) / (
                2 * step
            )
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)

    return check


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `first(n)`, plain runs take the first n cases; the others are slow tests."""
    seen = collections.Counter()
    for item in items:
        marker = item.get_closest_marker("first")
        if marker is None:
            continue
        test = item.nodeid.split("[")[0]
        seen[test] += 1
        if seen[test] > marker.args[0]:
            item.add_marker(pytest.mark.slow)
