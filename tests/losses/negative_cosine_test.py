from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.negative_cosine import NegativeCosine

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"


def pair(shape=(5, 2, 4), seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(dtype)


def oracle(target, prediction):
    """Equation 1 of the paper, sample by sample, in float64."""
    target, prediction = target.astype("float64"), prediction.astype("float64")
    values = np.zeros(len(target))
    for i in range(len(target)):
        cosines = [
            z @ p / (np.linalg.norm(z) * np.linalg.norm(p))
            for z, p in zip(np.atleast_2d(target[i]), np.atleast_2d(prediction[i]), strict=True)
        ]
        values[i] = -np.mean(cosines)
    return values


def gradients(loss, target, prediction, **kwargs):
    target, prediction = tf.convert_to_tensor(target), tf.convert_to_tensor(prediction)
    with tf.GradientTape() as tape:
        tape.watch((target, prediction))
        value = loss(target, prediction, **kwargs)
    return value, *tape.gradient(value, (target, prediction))


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values_of_lightly():
    golden = np.load(GOLDEN)
    cases = sorted({key.rsplit("/", 1)[0] for key in golden.files if "negative_cosine/" in key})
    assert cases
    for case in cases:
        # There the views are crossed; here that is the model's part.
        target = golden[f"{case}/target"][:, ::-1]
        value, _, got = gradients(NegativeCosine(), target, golden[f"{case}/prediction"])
        expected = golden[f"{case}/grad_prediction"]
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 4), (5, 2, 4), (5, 3, 4)])
def test_equals_the_paper_sample_by_sample(shape):
    target, prediction = pair(shape)
    got = NegativeCosine(reduction=None)(target, prediction)
    np.testing.assert_allclose(got, oracle(target, prediction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_gradient_by_finite_differences(shape):
    target, prediction = pair(shape, dtype="float64")
    value, into_target, got = gradients(NegativeCosine(dtype="float64"), target, prediction)
    np.testing.assert_allclose(value, oracle(target, prediction).mean(), rtol=1e-12)
    assert into_target is None
    step = 1e-6
    for index in np.ndindex(shape):
        up, down = prediction.copy(), prediction.copy()
        up[index] += step
        down[index] -= step
        expected = oracle(target, up).mean() - oracle(target, down).mean()
        np.testing.assert_allclose(got.numpy()[index], expected / (2 * step), rtol=1e-4, atol=1e-8)


def test_views_meet_the_targets_of_their_place():
    target, _ = pair()
    np.testing.assert_allclose(NegativeCosine()(target, 7 * target), -1, rtol=1e-6)
    crossed = NegativeCosine()(target[:, ::-1], target)
    np.testing.assert_allclose(crossed, oracle(target[:, ::-1], target).mean(), rtol=1e-5)
    assert crossed > -0.9


def test_sample_weights():
    target, prediction = pair()
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.0])
    value, _, got = gradients(NegativeCosine(), target, prediction, sample_weight=weights)
    np.testing.assert_allclose(value, np.mean(weights * oracle(target, prediction)), rtol=1e-5)
    of_sample = np.abs(got).sum(axis=(1, 2))
    np.testing.assert_array_equal(of_sample == 0, weights == 0)


@pytest.mark.parametrize("which", [0, 1])
def test_zero_vectors_have_cosine_zero_and_no_gradient(which):
    both = pair((3, 4))
    both[which, 0] = 0
    value, _, got = gradients(NegativeCosine(reduction=None), *both)
    assert value[0] == 0
    np.testing.assert_array_equal(got[0], np.zeros(4))
    assert np.isfinite(got).all() and np.abs(got[1:]).max() > 0


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 1e-3), ("bfloat16", 2e-2)])
def test_half_precision(dtype, atol):
    target, prediction = pair()
    expected = oracle(target, prediction).mean()
    large = [tf.cast(1e4 * x / np.abs(x).max(), dtype) for x in (target, prediction)]
    np.testing.assert_allclose(NegativeCosine()(*large), expected, atol=atol)
    half = NegativeCosine(dtype=dtype)(*large)
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, "float32"), expected, atol=2 * atol)


@pytest.mark.parametrize("which", [0, 1])
def test_nan_stays_nan(which):
    both = pair()
    both[which, 0, 0, 0] = np.nan
    assert np.isnan(NegativeCosine()(*both))


def test_config():
    loss = NegativeCosine(reduction="sum", name="mine", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()


def test_refused_inputs():
    loss, (target, prediction) = NegativeCosine(), pair()
    for y_true, y_pred, message in (
        (None, prediction, "y_true=None"),
        (np.arange(5), prediction, "floating-point"),
        (target, prediction.astype("int32"), "floating-point"),
        (target[:, :1], prediction, "same shape"),
        (target[:, 0], prediction, "same shape"),
        (target[..., :2], prediction, "same shape"),
        (target[:1], prediction, "as many samples"),
        (target[0, 0], prediction[0, 0], r"\(batch, dim\) or"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(y_true, y_pred)
