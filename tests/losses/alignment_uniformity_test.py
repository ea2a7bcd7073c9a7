import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.alignment_uniformity import AlignmentUniformity
from keras_sslmeta.mechanisms import row_blocks, streaming_similarity


def embeddings(batch=6, views=2, dim=4, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, views, dim)).astype(dtype)


def oracle(z, alpha=2.0, t=2.0, weight=1.0):
    """Section 4 of the paper, pair by pair, in float64."""
    z = z.astype("float64")
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    batch, views, _ = z.shape
    distances = [
        np.linalg.norm(z[i, a] - z[i, b])
        for a, b in itertools.combinations(range(views), 2)
        for i in range(batch)
    ]
    uniformities = []
    for v in range(views):
        potentials = [
            np.exp(-t * np.sum((z[i, v] - z[j, v]) ** 2))
            for i, j in itertools.combinations(range(batch), 2)
        ]
        uniformities.append(np.log(np.mean(potentials)))
    return np.mean(np.array(distances) ** alpha) + weight * np.mean(uniformities)


def gradient(loss, z):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(None, z)
    return value, tape.gradient(value, z)


@pytest.mark.parametrize("arguments", [(2, 2, 1), (1, 3, 0.5), (2, 2, 0), (0.5, 0.1, 2)])
@pytest.mark.parametrize("views", [2, 3])
def test_equals_the_paper_pair_by_pair(arguments, views):
    z = embeddings(views=views)
    expected = oracle(z, *arguments)
    got = AlignmentUniformity(*arguments)(None, z)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    values = AlignmentUniformity(*arguments, reduction=None)(None, z)
    np.testing.assert_allclose(values, np.full(6, expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", [(2, 2, 1), (1, 3, 0.5)])
@pytest.mark.parametrize("views", [2, 3])
def test_gradient_by_finite_differences(arguments, views):
    z = embeddings(batch=4, views=views, dim=3, dtype="float64")
    value, got = gradient(AlignmentUniformity(*arguments, dtype="float64"), z)
    np.testing.assert_allclose(value, oracle(z, *arguments), rtol=1e-12)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected = (oracle(up, *arguments) - oracle(down, *arguments)) / (2 * step)
        np.testing.assert_allclose(got.numpy()[index], expected, rtol=1e-4, atol=1e-7)


def test_tiles_change_nothing(monkeypatch):
    z = embeddings(batch=23, dtype="float64")
    loss = AlignmentUniformity(dtype="float64")
    expected_value, expected = gradient(loss, z)
    monkeypatch.setattr(streaming_similarity, "DENSE_PAIRS", 0)
    monkeypatch.setattr(row_blocks, "TILE", 4)
    value, got = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_closed_forms():
    """Opposite samples, views equal; then views at a right angle of equal samples."""
    opposite = np.array([[[1, 0], [2, 0]], [[-1, 0], [-3, 0]]], "float32")
    np.testing.assert_allclose(AlignmentUniformity(t=0.7)(None, opposite), -0.7 * 4, rtol=1e-5)
    right = np.array([[[1, 0], [0, 2]]] * 5, "float32")
    np.testing.assert_allclose(AlignmentUniformity(alpha=3)(None, right), 2**1.5, rtol=1e-5)


def test_high_t_does_not_underflow():
    """All of exp(−60 · 4) are zero in float32."""
    opposite = np.array([[[1, 0], [1, 0]], [[-1, 0], [-1, 0]]], "float32")
    np.testing.assert_allclose(AlignmentUniformity(t=60)(None, opposite), -240, rtol=1e-5)
    z = embeddings(dtype="float64")
    np.testing.assert_allclose(AlignmentUniformity(t=60)(None, z), oracle(z, t=60), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_collapsed_embeddings_are_finite(alpha):
    z = np.ones((5, 2, 4), "float32")
    value, got = gradient(AlignmentUniformity(alpha), z)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(got, np.zeros_like(z), atol=1e-6)


def test_zero_vectors_are_at_a_right_angle():
    z = np.zeros((5, 2, 4), "float32")
    value, got = gradient(AlignmentUniformity(), z)
    np.testing.assert_allclose(value, -2 * 2, rtol=1e-6)
    np.testing.assert_array_equal(got, z)
    z = embeddings()
    z[2] = 0
    value, got = gradient(AlignmentUniformity(alpha=1), z)
    assert np.isfinite(value) and np.isfinite(got).all()
    np.testing.assert_array_equal(got[2], np.zeros((2, 4)))


def test_one_sample_has_its_alignment_alone():
    z = embeddings(batch=1)
    value, got = gradient(AlignmentUniformity(), z)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    np.testing.assert_allclose(value, np.sum((unit[0, 0] - unit[0, 1]) ** 2), rtol=1e-5)
    assert np.isfinite(got).all() and np.abs(got).max() > 0


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_half_precision(dtype, atol):
    z = embeddings()
    large = tf.cast(1e4 * z / np.abs(z).max(), dtype)
    np.testing.assert_allclose(AlignmentUniformity()(None, large), oracle(z), atol=atol)
    half = AlignmentUniformity(dtype=dtype)(None, large)
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, "float32"), oracle(z), atol=2 * atol)


@pytest.mark.parametrize("batch", [1, 6])
def test_nan_stays_nan(batch):
    z = embeddings()[:batch]
    z[0, 0, 0] = np.nan
    assert np.isnan(AlignmentUniformity()(None, z))


@pytest.mark.slow
def test_unknown_batch_and_empty_batch():
    loss = AlignmentUniformity(gather=False)
    function = tf.function(
        lambda z: gradient(loss, z), input_signature=[tf.TensorSpec([None, 2, 4])]
    )
    z = embeddings()
    value, got = function(z)
    expected_value, expected = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    value, got = function(z[:1])
    np.testing.assert_allclose(value, gradient(loss, z[:1])[0], rtol=1e-5)
    assert np.isfinite(got).all()
    value, got = function(z[:0])
    assert value == 0 and got.shape == (0, 2, 4)


def test_config():
    loss = AlignmentUniformity(1, 3, 0.5, gather=False, reduction="sum", name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.alpha, again.t, again.uniformity_weight, again.gather) == (1, 3, 0.5, False)


@pytest.mark.parametrize(
    ("name", "value", "required"),
    [
        ("alpha", 0, "a positive number"),
        ("alpha", "2", "a positive number"),
        ("t", -1.0, "a positive number"),
        ("t", None, "a positive number"),
        ("uniformity_weight", -1.0, "a number from 0"),
    ],
)
def test_refused_arguments(name, value, required):
    with pytest.raises(ValueError, match=f"`{name}` must be {required}") as error:
        AlignmentUniformity(**{name: value})
    assert repr(value) in str(error.value)


def test_refused_inputs():
    loss, z = AlignmentUniformity(), embeddings()
    for bad, message in (
        (z[:, 0], r"\(batch, views, dim\)"),
        (z[:, :1], "at least 2 views"),
        (z.astype("int32"), "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(None, bad)
    with pytest.raises(ValueError, match="sample_weight"):
        loss(None, z, sample_weight=np.ones(6))
