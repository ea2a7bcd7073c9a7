import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.barlow_twins import BarlowTwins

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"


def embeddings(batch=6, views=2, dim=4, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, views, dim)).astype(dtype)


def oracle(z, redundancy_weight=0.005):
    """Equations 1 and 2 of the paper, sum by sum, in float64."""
    z = z.astype("float64")
    batch, views, dim = z.shape
    losses = []
    for a, b in itertools.combinations(range(views), 2):
        x, y = ((v - v.mean(axis=0)) / np.sqrt(v.var(axis=0) + 1e-5) for v in (z[:, a], z[:, b]))
        loss = 0.0
        for i, j in np.ndindex(dim, dim):
            c = sum(x[n, i] * y[n, j] for n in range(batch)) / batch
            loss += (1 - c) ** 2 if i == j else redundancy_weight * c**2
        losses.append(loss)
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
    cases = sorted({key.rsplit("/", 1)[0] for key in golden.files if "barlow_twins/" in key})
    assert cases
    for case in cases:
        loss = BarlowTwins(float(golden[f"{case}/redundancy_weight"]))
        value, got = gradient(loss, golden[f"{case}/z"])
        expected = golden[f"{case}/grad_z"]
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
@pytest.mark.parametrize("views", [2, 3])
def test_equals_the_paper_sum_by_sum(weight, views):
    z = embeddings(views=views)
    np.testing.assert_allclose(BarlowTwins(weight)(None, z), oracle(z, weight), rtol=1e-5)
    values = BarlowTwins(weight, reduction=None)(None, z)
    np.testing.assert_allclose(values, np.full(len(z), oracle(z, weight)), rtol=1e-5)


@pytest.mark.parametrize("views", [2, 3])
def test_gradient_by_finite_differences(views):
    z = embeddings(batch=5, views=views, dim=3, dtype="float64")
    value, got = gradient(BarlowTwins(0.3, dtype="float64"), z)
    np.testing.assert_allclose(value, oracle(z, 0.3), rtol=1e-12)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected = (oracle(up, 0.3) - oracle(down, 0.3)) / (2 * step)
        np.testing.assert_allclose(got.numpy()[index], expected, rtol=1e-4, atol=1e-7)


def test_decorrelated_equal_views_have_no_loss():
    view = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], "float32")
    np.testing.assert_allclose(
        BarlowTwins()(None, np.stack([view, 5 * view + 3], axis=1)), 0, atol=1e-8
    )
    # Opposite views: c = −1 on the diagonal.
    np.testing.assert_allclose(BarlowTwins()(None, np.stack([view, -view], axis=1)), 8, rtol=1e-4)


def test_redundant_dimensions_cost_their_weight():
    column = np.array([1.0, -1.0, 1.0, -1.0], "float32")
    view = np.stack([column, column, -column], axis=1)
    z = np.stack([view, view], axis=1)
    np.testing.assert_allclose(BarlowTwins(0.1)(None, z), 6 * 0.1, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("batch", [1, 5])
def test_collapsed_embeddings_lose_one_a_dimension(batch, scale):
    z = np.full((batch, 2, 4), scale, "float32")
    value, got = gradient(BarlowTwins(), z)
    np.testing.assert_allclose(value, 4, rtol=1e-4)
    assert np.isfinite(got).all()
    if batch == 1:
        np.testing.assert_array_equal(got, np.zeros_like(z))


def test_an_offset_does_not_cancel_the_variance():
    """E[z²] − E[z]² would have nothing left of it."""
    z = embeddings(dim=3)
    far = (z.astype("float64") + 1000).astype("float32")
    np.testing.assert_allclose(BarlowTwins()(None, far), oracle(far), rtol=1e-3)


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision(dtype, rtol):
    z = embeddings(batch=16)
    np.testing.assert_allclose(BarlowTwins()(None, tf.cast(z, dtype)), oracle(z), rtol=rtol)
    large = tf.cast(1e4 * z / np.abs(z).max(), dtype)
    expected = oracle(tf.cast(large, "float32").numpy())
    np.testing.assert_allclose(BarlowTwins()(None, large), expected, rtol=1e-4)
    half = BarlowTwins(dtype=dtype)(None, large)
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, "float32"), expected, rtol=rtol)


def test_nan_stays_nan():
    z = embeddings()
    z[0, 0, 0] = np.nan
    assert np.isnan(BarlowTwins()(None, z))


def test_unknown_batch_and_empty_batch():
    loss = BarlowTwins(gather=False)
    function = tf.function(
        lambda z: gradient(loss, z), input_signature=[tf.TensorSpec([None, 2, 4])]
    )
    z = embeddings()
    value, got = function(z)
    expected_value, expected = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    value, got = function(z[:0])
    assert value == 0 and got.shape == (0, 2, 4)


def test_config():
    loss = BarlowTwins(0.3, gather=False, reduction="sum", name="mine", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.redundancy_weight, again.gather) == (0.3, False)


@pytest.mark.parametrize("value", [-0.1, "1", None, np.inf, True])
def test_refused_arguments(value):
    with pytest.raises(ValueError, match="`redundancy_weight` must be a number from 0") as error:
        BarlowTwins(redundancy_weight=value)
    assert repr(value) in str(error.value)


def test_refused_inputs():
    loss, z = BarlowTwins(), embeddings()
    for bad, message in (
        (z[:, 0], r"\(batch, views, dim\)"),
        (z[:, :1], "at least 2 views"),
        (z.astype("int32"), "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(None, bad)
    with pytest.raises(ValueError, match="sample_weight"):
        loss(None, z, sample_weight=np.ones(6))
