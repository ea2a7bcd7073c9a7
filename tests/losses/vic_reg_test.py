import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.vic_reg import VICReg

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"


def embeddings(batch=6, views=2, dim=4, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, views, dim)).astype(dtype)


def oracle(z, weights=(25.0, 25.0, 1.0)):
    """Equations 1 to 6 of the paper, with the ½ of the authors' code, sum by sum, in float64."""
    z = z.astype("float64")
    batch, views, dim = z.shape
    losses = []
    for a, b in itertools.combinations(range(views), 2):
        losses.append(weights[0] * np.mean((z[:, a] - z[:, b]) ** 2))
        for v in (a, b):
            centered = z[:, v] - z[:, v].mean(axis=0)
            cov = np.zeros((dim, dim))
            for i, j in np.ndindex(dim, dim):
                products = sum(centered[n, i] * centered[n, j] for n in range(batch))
                cov[i, j] = products / max(batch - 1, 1)
            hinge = np.mean([max(0, 1 - np.sqrt(cov[i, i] + 1e-4)) for i in range(dim)])
            off = sum(cov[i, j] ** 2 for i, j in np.ndindex(dim, dim) if i != j) / dim
            losses[-1] += weights[1] * hinge / 2 + weights[2] * off
    return np.mean(losses)


def gradient(loss, z):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(None, z)
    return value, tape.gradient(value, z)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values_of_lightly():
    golden = np.load(GOLDEN)
    cases = sorted({key.rsplit("/", 1)[0] for key in golden.files if "vicreg/" in key})
    assert cases
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    for case in cases:
        loss = VICReg(**{name: float(golden[f"{case}/{name}"]) for name in names})
        value, got = gradient(loss, golden[f"{case}/z"])
        expected = golden[f"{case}/grad_z"]
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("weights", [(25, 25, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("views", [2, 3])
def test_equals_the_paper_sum_by_sum(weights, views):
    z = embeddings(views=views)
    assert oracle(z, weights) > 0
    np.testing.assert_allclose(VICReg(*weights)(None, z), oracle(z, weights), rtol=1e-5)
    values = VICReg(*weights, reduction=None)(None, z)
    np.testing.assert_allclose(values, np.full(len(z), oracle(z, weights)), rtol=1e-5)


@pytest.mark.parametrize("views", [2, 3])
def test_gradient_by_finite_differences(views):
    # Some deviations below 1 and some above, none at the hinge.
    z = embeddings(batch=5, views=views, dim=3, dtype="float64") * np.array([0.3, 0.5, 3.0])
    weights = (2.0, 5.0, 3.0)
    value, got = gradient(VICReg(*weights, dtype="float64"), z)
    np.testing.assert_allclose(value, oracle(z, weights), rtol=1e-12)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected = (oracle(up, weights) - oracle(down, weights)) / (2 * step)
        np.testing.assert_allclose(got.numpy()[index], expected, rtol=1e-4, atol=1e-6)


def test_each_term_alone():
    view = 2 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], "float32")
    assert VICReg()(None, np.stack([view, view], axis=1)) == 0
    np.testing.assert_allclose(VICReg()(None, np.stack([view, view + 3], axis=1)), 25 * 9)
    # Two equal columns of variance 16/3: one covariance off the diagonal in each half, of two views.
    redundant = np.stack([view[:, 0], view[:, 0]], axis=1)
    z = np.stack([redundant, redundant], axis=1)
    np.testing.assert_allclose(VICReg()(None, z), 2 * (16 / 3) ** 2, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 5])
def test_collapsed_embeddings_have_the_full_hinge(batch, scale):
    z = np.full((batch, 2, 4), scale, "float32")
    value, got = gradient(VICReg(), z)
    np.testing.assert_allclose(value, 25 * (1 - 1e-2), rtol=1e-5)
    np.testing.assert_allclose(got, np.zeros_like(z), atol=1e-4)


def test_one_sample_is_pulled_together_and_not_nan():
    z = embeddings(batch=1)
    value, got = gradient(VICReg(), z)
    np.testing.assert_allclose(value, oracle(z), rtol=1e-5)
    difference = z[:, 0] - z[:, 1]
    expected = 25 * 2 / 4 * np.stack([difference, -difference], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_an_offset_does_not_cancel_the_variance():
    """E[z²] − E[z]² would have nothing left of it."""
    far = (embeddings(dim=3).astype("float64") + 1000).astype("float32")
    np.testing.assert_allclose(VICReg()(None, far), oracle(far), rtol=1e-3)


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 5e-3), ("bfloat16", 2e-2)])
def test_half_precision(dtype, rtol):
    z = embeddings(batch=16)
    np.testing.assert_allclose(VICReg()(None, tf.cast(z, dtype)), oracle(z), rtol=rtol)
    half = VICReg(dtype=dtype)(None, z)
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, "float32"), oracle(z), rtol=2 * rtol)
    large = tf.cast(1e4 * z / np.abs(z).max(), dtype)
    expected = oracle(tf.cast(large, "float32").numpy())
    np.testing.assert_allclose(VICReg()(None, large), expected, rtol=1e-4)


def test_nan_stays_nan():
    z = embeddings()
    z[0, 0, 0] = np.nan
    assert np.isnan(VICReg()(None, z))


def test_unknown_batch_and_empty_batch():
    loss = VICReg(gather=False)
    function = tf.function(
        lambda z: gradient(loss, z), input_signature=[tf.TensorSpec([None, 2, 4])]
    )
    z = embeddings()
    value, got = function(z)
    expected_value, expected = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    value, got = function(z[:0])
    assert value == 0 and got.shape == (0, 2, 4)


def test_config():
    loss = VICReg(2.0, 3.0, 4.0, gather=False, reduction="sum", name="mine", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.invariance_weight, again.variance_weight, again.covariance_weight) == (2, 3, 4)
    assert not again.gather


@pytest.mark.parametrize("name", ["invariance_weight", "variance_weight", "covariance_weight"])
@pytest.mark.parametrize("value", [-1.0, "25", None, np.nan])
def test_refused_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a number from 0") as error:
        VICReg(**{name: value})
    assert repr(value) in str(error.value)


def test_refused_inputs():
    loss, z = VICReg(), embeddings()
    for bad, message in (
        (z[:, 0], r"\(batch, views, dim\)"),
        (z[:, :1], "at least 2 views"),
        (z.astype("int32"), "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(None, bad)
    with pytest.raises(ValueError, match="sample_weight"):
        loss(None, z, sample_weight=np.ones(6))
