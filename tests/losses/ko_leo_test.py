import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.ko_leo import KoLeo
from keras_sslmeta.mechanisms import row_functions


def embeddings(shape=(7, 2, 4), seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def oracle(z, epsilon=1e-8):
    """Equation 2 of the paper on unit vectors, distance by distance, in float64."""
    z = z.astype("float64")
    z = z[:, None] if z.ndim == 2 else z
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    batch, views, _ = z.shape
    logs = []
    for v in range(views):
        for i in range(batch):
            others = [np.linalg.norm(z[i, v] - z[j, v]) for j in range(batch) if j != i]
            logs.append(np.log(min(others) + epsilon))
    return -np.mean(logs)


def gradient(loss, z):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(None, z)
    return value, tape.gradient(value, z)


@pytest.mark.parametrize("shape", [(7, 4), (7, 1, 4), (7, 2, 4), (7, 3, 4)])
@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_equals_the_paper_distance_by_distance(shape, epsilon):
    z = embeddings(shape)
    expected = oracle(z, epsilon)
    np.testing.assert_allclose(KoLeo(epsilon)(None, z), expected, rtol=1e-5, atol=1e-6)
    values = KoLeo(epsilon, reduction=None)(None, z)
    np.testing.assert_allclose(values, np.full(7, expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 3), (5, 2, 3)])
def test_gradient_by_finite_differences(shape):
    z = embeddings(shape, dtype="float64")
    value, got = gradient(KoLeo(dtype="float64"), z)
    np.testing.assert_allclose(value, oracle(z), rtol=1e-12)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected = (oracle(up) - oracle(down)) / (2 * step)
        np.testing.assert_allclose(got.numpy()[index], expected, rtol=1e-4, atol=1e-7)


def test_blocks_of_rows_change_nothing(monkeypatch):
    z = embeddings((23, 2, 4), dtype="float64")
    loss = KoLeo(dtype="float64")
    expected_value, expected = gradient(loss, z)
    monkeypatch.setattr(row_functions, "PAIRS", 100)  # 4 rows at a time
    value, got = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_closed_form():
    """Vertices of a square: √2 apart; lengths do not count."""
    square = np.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, -0.5]], "float32")
    np.testing.assert_allclose(KoLeo()(None, square), -np.log(2) / 2, rtol=1e-6)


def test_steps_spread_embeddings():
    z = tf.constant(embeddings((12, 3)))
    before, _ = gradient(KoLeo(), z)
    for _ in range(20):
        z -= 0.05 * gradient(KoLeo(), z)[1]
    assert KoLeo()(None, z) < before - 0.1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_duplicates_and_zero_vectors(value):
    z = np.full((5, 2, 4), value, "float32")
    loss, got = gradient(KoLeo(), z)
    np.testing.assert_allclose(loss, -np.log(1e-8), rtol=1e-6)
    np.testing.assert_array_equal(got, np.zeros_like(z))


def test_some_duplicates_leave_the_others_their_gradient():
    z = embeddings((6, 4))
    z[1], z[2] = z[0], 0
    value, got = gradient(KoLeo(), z)
    assert np.isfinite(value) and np.isfinite(got).all()
    np.testing.assert_array_equal(got[2], np.zeros(4))
    assert np.abs(got[3:]).max() > 0


def test_near_duplicates_find_their_nearest():
    """Products of unit vectors would not tell distances of 1e-5 apart in float32."""
    rng = np.random.default_rng(0)
    z = (np.ones(8) + 1e-4 * rng.normal(size=(20, 8))).astype("float32")
    np.testing.assert_allclose(KoLeo()(None, z), oracle(z), rtol=1e-3)


def test_one_sample():
    z = embeddings((1, 2, 4))
    value, got = gradient(KoLeo(), z)
    assert value == 0
    np.testing.assert_array_equal(got, np.zeros_like(z))


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 5e-3), ("bfloat16", 5e-2)])
def test_half_precision(dtype, atol):
    z = embeddings()
    large = tf.cast(1e4 * z / np.abs(z).max(), dtype)
    np.testing.assert_allclose(KoLeo()(None, large), oracle(z), atol=atol)
    half = KoLeo(dtype=dtype)(None, large)
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, "float32"), oracle(z), atol=2 * atol)


@pytest.mark.parametrize("batch", [1, 7])
def test_nan_stays_nan(batch):
    z = embeddings()[:batch]
    z[0, 0, 0] = np.nan
    assert np.isnan(KoLeo()(None, z))


def test_unknown_batch_and_empty_batch():
    loss = KoLeo(gather=False)
    function = tf.function(
        lambda z: gradient(loss, z), input_signature=[tf.TensorSpec([None, 2, 4])]
    )
    z = embeddings()
    value, got = function(z)
    expected_value, expected = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    value, got = function(z[:0])
    assert value == 0 and got.shape == (0, 2, 4)


def test_config():
    loss = KoLeo(1e-4, gather=False, reduction="sum", name="mine", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.epsilon, again.gather) == (1e-4, False)


@pytest.mark.parametrize("value", [0, -1.0, "1", None, np.inf])
def test_refused_arguments(value):
    with pytest.raises(ValueError, match="`epsilon` must be a positive number") as error:
        KoLeo(epsilon=value)
    assert repr(value) in str(error.value)


def test_refused_inputs():
    loss, z = KoLeo(), embeddings()
    for bad, message in (
        (z[0, 0], r"\(batch, dim\) or \(batch, views, dim\)"),
        (z[None], r"\(batch, dim\) or \(batch, views, dim\)"),
        (z.astype("int32"), "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(None, bad)
    with pytest.raises(ValueError, match="sample_weight"):
        loss(None, z, sample_weight=np.ones(7))
