import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses import DecoupledContrastive

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"
VIEWS = np.random.default_rng(0).normal(size=(5, 2, 6))


def oracle(z, temperature, sigma=None):
    """Equation 6 of the paper, term by term; one value a sample."""
    batch, views, _ = z.shape
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    values = np.zeros(batch)
    for v in range(views):
        for i in range(batch):
            negatives = 0.0
            for k in range(batch):
                for w in range(views):
                    if k != i:
                        negatives += math.exp(unit[i, v] @ unit[k, w] / temperature)
            attraction = []
            for u in range(views):
                if u == v:
                    continue
                weight = 1.0
                if sigma is not None:
                    terms = [math.exp(unit[k, v] @ unit[k, u] / sigma) for k in range(batch)]
                    weight = 2 - batch * terms[i] / sum(terms)
                attraction.append(weight * (unit[i, v] @ unit[i, u]) / temperature)
            values[i] += (math.log(negatives) - np.mean(attraction)) / views
    return values


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values_of_lightly(value_and_gradient):
    golden = np.load(GOLDEN)
    cases = sorted({key.rsplit("/", 1)[0] for key in golden.files if key.startswith("decoupled/")})
    assert cases
    for case in cases:
        loss = DecoupledContrastive(float(golden[f"{case}/temperature"]))
        value, got = value_and_gradient(loss, None, golden[f"{case}/z"])
        expected = golden[f"{case}/grad_z"]
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("sigma", [None, 0.5, 0.1])
def test_equals_the_paper_term_by_term(views, temperature, sigma):
    z = np.random.default_rng(views).normal(size=(5, views, 6))
    settings = {} if sigma is None else {"weighted": True, "sigma": sigma}
    loss = DecoupledContrastive(temperature, reduction=None, dtype="float64", **settings)
    np.testing.assert_allclose(loss(None, z), oracle(z, temperature, sigma), rtol=1e-9)


def test_gradients(check_gradient, value_and_gradient):
    check_gradient(DecoupledContrastive(0.3, dtype="float64"), None, VIEWS)
    # Weights have no gradient: each positive's is its weight over T.
    _, weighted = value_and_gradient(
        DecoupledContrastive(0.3, weighted=True, normalize=False, dtype="float64"), None, VIEWS
    )
    _, plain = value_and_gradient(
        DecoupledContrastive(0.3, normalize=False, dtype="float64"), None, VIEWS
    )
    s = np.sum(VIEWS[:, 0] * VIEWS[:, 1], axis=1) / 0.5
    weights = 2 - 5 * np.exp(s - s.max()) / np.exp(s - s.max()).sum()
    change = -(weights - 1)[:, None, None] * VIEWS[:, ::-1] / 0.3 / 5
    np.testing.assert_allclose(weighted - plain, change, rtol=1e-9, atol=1e-12)


def test_closed_forms(value_and_gradient):
    ones = np.ones((8, 2, 4), "float32")
    for weighted in (False, True):
        got = DecoupledContrastive(weighted=weighted)(None, ones)
        np.testing.assert_allclose(got, math.log(14), rtol=1e-5)
    zero = np.zeros((4, 2, 4), "float32")
    value, got = value_and_gradient(DecoupledContrastive(weighted=True), None, zero)
    np.testing.assert_allclose(value, math.log(6), rtol=1e-6)
    np.testing.assert_array_equal(got, zero)
    large = tf.cast(VIEWS * 1e4 / 3, "float16")
    value, got = value_and_gradient(DecoupledContrastive(), None, large)
    np.testing.assert_allclose(
        value, oracle(tf.cast(large, tf.float64).numpy(), 0.1).mean(), rtol=1e-4
    )
    assert np.isfinite(got).all()


@pytest.mark.slow
def test_a_batch_that_turns_out_to_hold_one_sample_is_finite(value_and_gradient):
    loss = DecoupledContrastive(weighted=True)

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 6])])
    def step(z):
        return value_and_gradient(loss, None, z)

    value, got = step(VIEWS[:1].astype("float32"))
    unit = VIEWS[0] / np.linalg.norm(VIEWS[0], axis=1, keepdims=True)
    np.testing.assert_allclose(value, -(unit[0] @ unit[1]) / 0.1, rtol=1e-5)
    assert np.isfinite(got).all()


def test_extreme_sigma_is_finite(value_and_gradient):
    value, got = value_and_gradient(DecoupledContrastive(weighted=True, sigma=1e-3), None, VIEWS)
    assert np.isfinite(value) and np.isfinite(got).all()
