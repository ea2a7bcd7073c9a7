import math

import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.losses import DebiasedContrastive, HardNegative, NTXent

VIEWS = np.random.default_rng(0).normal(size=(5, 2, 6))
NEAR = np.random.default_rng(1).normal(size=(5, 1, 6)) + 0.3 * VIEWS


def oracle(z, temperature, tau_plus, beta=None):
    """Chuang's Eq. 8, with Robinson's weights where `beta` is given; one value a sample."""
    batch, views, _ = z.shape
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    values, floored = np.zeros(batch), 0
    pairs = [(v, u) for v in range(views) for u in range(views) if u != v]
    for i in range(batch):
        for v, u in pairs:
            positive = math.exp(unit[i, v] @ unit[i, u] / temperature)
            negatives = np.array(
                [
                    math.exp(unit[i, v] @ unit[k, w] / temperature)
                    for k in range(batch)
                    for w in range(views)
                    if k != i
                ]
            )
            count = len(negatives)
            if beta is not None:
                importance = negatives**beta
                negatives = negatives * importance / importance.mean()
            group = (negatives.sum() - tau_plus * count * positive) / (1 - tau_plus)
            floor = count * math.exp(-1 / temperature)
            floored += group < floor
            group = max(group, floor)
            values[i] += -math.log(positive / (positive + group)) / len(pairs)
    return values, floored


@pytest.mark.parametrize("z", [VIEWS, NEAR, np.concatenate([VIEWS, NEAR[:, :1]], axis=1)])
@pytest.mark.parametrize("temperature", [0.2, 0.5])
@pytest.mark.parametrize("beta", [None, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.4])
def test_equals_the_paper_term_by_term(z, temperature, beta, tau_plus):
    cls = DebiasedContrastive if beta is None else HardNegative
    settings = {} if beta is None else {"beta": beta}
    loss = cls(temperature, tau_plus, reduction=None, dtype="float64", **settings)
    np.testing.assert_allclose(loss(None, z), oracle(z, temperature, tau_plus, beta)[0], rtol=1e-9)


@pytest.mark.parametrize(
    "loss",
    [DebiasedContrastive(0.5, 0.05, dtype="float64"), HardNegative(0.5, 0.05, dtype="float64")],
)
def test_gradients_by_finite_differences(loss, check_gradient):
    assert oracle(VIEWS, 0.5, 0.05)[1] == 0
    check_gradient(loss, None, VIEWS)


def test_no_gradient_where_the_floor_holds(check_gradient):
    """With every pair at its floor only the positives pull."""
    assert oracle(NEAR, 0.2, 0.4)[1] == 10
    loss = DebiasedContrastive(0.2, 0.4, dtype="float64")
    check_gradient(loss, None, NEAR, rtol=1e-4)


def test_without_false_negatives_it_is_nt_xent(value_and_gradient):
    ours = value_and_gradient(DebiasedContrastive(0.5, 0.0), None, VIEWS)
    theirs = value_and_gradient(NTXent(0.5), None, VIEWS)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("build", [DebiasedContrastive, HardNegative])
def test_extremes(build, value_and_gradient):
    ones = np.ones((8, 2, 4), "float32")  # G = (N − τN)/(1 − τ) e^{1/T}
    np.testing.assert_allclose(build()(None, ones), math.log(15), rtol=1e-5)
    for z in (np.zeros((4, 2, 4), "float32"), ones, tf.cast(VIEWS * 1e4 / 3, "float16")):
        for temperature in (0.02, 0.5, 10.0):
            value, got = value_and_gradient(build(temperature), None, z)
            assert np.isfinite(value) and np.isfinite(got).all()

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 6])])
    def step(z):
        return value_and_gradient(build(), None, z)

    value, got = step(VIEWS[:1].astype("float32"))
    assert value == 0
    np.testing.assert_array_equal(got, np.zeros((1, 2, 6)))


def test_rules_change_the_number_of_negatives():
    """With every sample twice, leaving out the doubles is the loss of the batch without them."""
    twice = np.concatenate([VIEWS, VIEWS])
    labels = np.tile(np.arange(5), 2)
    rules = [ksm.negatives.ExcludeSameLabel(), ksm.negatives.WeighPairs(_half)]
    for build in (DebiasedContrastive, HardNegative):
        loss = build(negatives=rules, reduction=None, dtype="float64")
        plain = build(reduction=None, dtype="float64")
        got = loss(labels, twice)
        np.testing.assert_allclose(got[:5], plain(None, VIEWS), rtol=1e-9)


def _half(a, b):
    return tf.fill([tf.shape(a)[0], tf.shape(b)[1]], 0.5)


@pytest.mark.parametrize("tau_plus", [-0.1, 1.0, math.nan, "0.1", None, True])
def test_refuses(tau_plus):
    with pytest.raises(ValueError, match=r"`tau_plus` must be a number from 0 to below 1\. Rec"):
        DebiasedContrastive(tau_plus=tau_plus)
    with pytest.raises(ValueError, match=r"`beta` must be a number from 0\. Received"):
        HardNegative(beta=-1.0)
