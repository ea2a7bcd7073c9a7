import math

import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.losses import SigLIP

A, C = np.random.default_rng(0).normal(size=(2, 5, 6))


def oracle(a, c, temperature, bias):
    """Algorithm 1 of the paper, pair by pair; one value a row."""
    values = np.zeros(len(a))
    for i in range(len(a)):
        for j in range(len(c)):
            cosine = a[i] @ c[j] / np.linalg.norm(a[i]) / np.linalg.norm(c[j])
            y = 1 if i == j else -1
            values[i] += np.log1p(math.exp(-y * (cosine / temperature + bias)))
    return values


@pytest.mark.parametrize(("temperature", "bias"), [(0.1, -10.0), (0.5, 0.0), (1.0, 2.0)])
def test_equals_the_paper_pair_by_pair(temperature, bias, check_gradient):
    loss = SigLIP(temperature, bias, reduction=None, dtype="float64")
    expected = oracle(A, C, temperature, bias)
    for y_true, y_pred in ((C, A), (None, np.stack([A, C], 1)), (np.zeros(5), np.stack([A, C], 1))):
        np.testing.assert_allclose(loss(y_true, y_pred), expected, rtol=1e-10)
    check_gradient(SigLIP(temperature, bias, dtype="float64"), None, np.stack([A, C], axis=1))


def test_the_mean_divides_by_the_batch_and_not_by_the_pairs():
    same = np.ones((8, 2, 4), "float32")
    got = SigLIP(temperature=1.0, bias=0.5)(None, same)
    expected = np.log1p(np.exp(-1.5)) + 7 * np.log1p(np.exp(1.5))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_learnt_scale_and_bias_give_the_same():
    scale = ksm.layers.LogitScale(0.1, max_scale=None, initial_bias=-10.0)
    a, c = A.astype("float32"), C.astype("float32")
    with tf.GradientTape() as tape:
        value = SigLIP(temperature=1.0, bias=0.0, normalize=False)(None, tf.stack(scale([a, c]), 1))
    np.testing.assert_allclose(value, SigLIP()(c, a), rtol=1e-5)
    slopes = tape.gradient(value, [scale.log_scale, scale.bias])
    step = 1e-4
    for slope, up, down in (
        (slopes[0], (0.1 * math.exp(-step), -10.0), (0.1 * math.exp(step), -10.0)),
        (slopes[1], (0.1, -10.0 + step), (0.1, -10.0 - step)),
    ):
        expected = (oracle(A, C, *up).mean() - oracle(A, C, *down).mean()) / (2 * step)
        np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_extremes(value_and_gradient):
    zero = np.zeros((4, 2, 4), "float32")
    value, got = value_and_gradient(SigLIP(), None, zero)
    np.testing.assert_allclose(value, np.log1p(np.exp(10)) + 3 * np.log1p(np.exp(-10)), rtol=1e-5)
    np.testing.assert_array_equal(got, zero)
    large = tf.cast(np.stack([A, C], 1) * 1e4 / 3, "float16")
    value, got = value_and_gradient(SigLIP(0.005), None, large)
    exact = tf.cast(large, tf.float64).numpy()
    expected = oracle(exact[:, 0], exact[:, 1], 0.005, -10).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("bias", [math.nan, math.inf, "0", None, True])
def test_refuses_biases(bias):
    with pytest.raises(ValueError, match="`bias` must be a finite number. Received"):
        SigLIP(bias=bias)


def test_config_is_complete():
    loss = SigLIP(0.2, -3.0, normalize=False, gather=False, name="mine")
    assert SigLIP.from_config(loss.get_config()).get_config() == loss.get_config()
    assert loss.get_config()["bias"] == -3.0
