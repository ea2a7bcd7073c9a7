import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.pairwise_contrastive import PairwiseContrastive

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"
SAME = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], "float32")


def pairs(batch=6, dim=4, seed=0, dtype="float32", scale=0.6):
    return (np.random.default_rng(seed).normal(size=(batch, 2, dim)) * scale).astype(dtype)


def oracle(same, z, margin=1.0, normalize=False):
    """Pair by pair, in float64."""
    values = []
    for y, (a, b) in zip(np.asarray(same, "float64"), np.asarray(z, "float64"), strict=True):
        if normalize:
            a, b = (x / (np.linalg.norm(x) or 1) for x in (a, b))
        d = math.sqrt(((a - b) ** 2).sum())
        values.append(y * d**2 + (1 - y) * max(margin - d, 0) ** 2)
    return np.array(values)


def gradient(loss, same, z):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(same, z)
    return value, tape.gradient(value, z)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values():
    golden = np.load(GOLDEN)
    cases = {
        key.rsplit("/", 1)[0] for key in golden.files if key.startswith("pairwise_contrastive/")
    }
    assert cases
    for case in sorted(cases):
        z = np.stack([golden[f"{case}/x1"], golden[f"{case}/x2"]], axis=1)
        loss = PairwiseContrastive(float(golden[f"{case}/margin"]))
        value, got = gradient(loss, golden[f"{case}/same"], z)
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        for side, name in enumerate(("grad_x1", "grad_x2")):
            expected = golden[f"{case}/{name}"]
            np.testing.assert_allclose(
                got[:, side], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
            )


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("same", [SAME, np.linspace(0, 1, 6)])
def test_equals_the_definition_pair_by_pair(margin, normalize, same):
    z = pairs()
    got = PairwiseContrastive(margin, normalize, reduction=None)(same, z)
    np.testing.assert_allclose(got, oracle(same, z, margin, normalize), rtol=1e-5, atol=1e-7)


def test_one_means_the_same_and_both_terms_are_whole():
    z = np.array([[[0.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.3, 0.4]]], "float32")
    loss = PairwiseContrastive(reduction=None)
    np.testing.assert_allclose(loss(np.array([1, 0]), z), [4.0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(loss(np.array([0, 1]), z), [0.0, 0.25], rtol=1e-6)
    assert (PairwiseContrastive().margin, PairwiseContrastive().normalize) == (1.0, False)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("same", [SAME, np.linspace(0, 1, 6)])
def test_gradient_by_finite_differences(normalize, same):
    z = pairs(dtype="float64")
    loss = PairwiseContrastive(1.3, normalize, dtype="float64")
    value, got = gradient(loss, same, z)
    np.testing.assert_allclose(value, oracle(same, z, 1.3, normalize).mean(), rtol=1e-12)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        wanted = oracle(same, up, 1.3, normalize).mean() - oracle(same, down, 1.3, normalize).mean()
        np.testing.assert_allclose(got.numpy()[index], wanted / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("z", [np.zeros((2, 2, 4), "float32"), np.full((2, 2, 4), 0.7, "float32")])
def test_equal_embeddings_have_no_gradient(normalize, z):
    value, got = gradient(PairwiseContrastive(0.5, normalize, reduction=None), np.array([0, 1]), z)
    np.testing.assert_allclose(value, [0.25, 0.0])
    np.testing.assert_array_equal(got, np.zeros_like(z))


def test_a_zero_embedding_normalised_gets_no_gradient():
    z = pairs()
    z[1, 0] = 0
    value, got = gradient(PairwiseContrastive(1.5, normalize=True), SAME, z)
    np.testing.assert_allclose(value, oracle(SAME, z, 1.5, True).mean(), rtol=1e-5)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[1, 0], np.zeros(4))


@pytest.mark.parametrize("kind", ["int32", "uint8", "bool", "float16", "float64"])
def test_labels_of_any_kind(kind):
    z = pairs()
    expected = oracle(SAME, z).mean()
    loss = PairwiseContrastive()
    np.testing.assert_allclose(loss(SAME.astype(kind), z), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(SAME.astype(kind)[:, None], z), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(list(map(int, SAME)), z), expected, rtol=1e-5)


def test_soft_labels_are_not_rounded_to_half_precision():
    z = tf.cast(pairs(scale=0.2), "bfloat16")
    same = np.full(6, 0.3, "float32")
    expected = oracle(same, tf.cast(z, tf.float64).numpy())
    got = PairwiseContrastive(reduction=None)(same, z)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_compared_in_float32(dtype, tolerance):
    z = tf.cast(pairs(), dtype)
    expected = oracle(SAME, tf.cast(z, tf.float64).numpy()).mean()
    np.testing.assert_allclose(PairwiseContrastive()(SAME, z), expected, rtol=1e-5)
    value, got = gradient(PairwiseContrastive(dtype=dtype), SAME, z)
    assert value.dtype == got.dtype == dtype
    np.testing.assert_allclose(tf.cast(value, tf.float32), expected, rtol=tolerance)


def test_large_half_precision_embeddings_do_not_overflow():
    z = tf.cast(pairs(scale=1e4), tf.float16)
    value, got = gradient(PairwiseContrastive(), SAME, z)
    np.testing.assert_allclose(value, oracle(SAME, z.numpy()).mean(), rtol=1e-4)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("same", [0.0, 1.0])
def test_nan_gives_nan(same):
    z = pairs()
    z[2, 1, 0] = np.nan
    got = PairwiseContrastive(reduction=None)(np.full(6, same), z).numpy()
    np.testing.assert_array_equal(np.isnan(got), np.arange(6) == 2)


def test_sample_weights():
    z, weights = pairs(), np.array([0.0, 1.0, 2.0, 0.5, 0.0, 1.0], "float32")
    values = oracle(SAME, z)
    got = PairwiseContrastive()(SAME, z, sample_weight=weights)
    np.testing.assert_allclose(got, (values * weights).mean(), rtol=1e-5)
    got = PairwiseContrastive(reduction="mean_with_sample_weight")(SAME, z, sample_weight=weights)
    np.testing.assert_allclose(got, (values * weights).sum() / weights.sum(), rtol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("settings", [{}, {"run_eagerly": True}, {"jit_compile": True}])
def test_fits(settings):
    x = pairs(12)
    same = np.tile(SAME, 2).astype("int64")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2, 4)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), loss=PairwiseContrastive(), **settings)
    first = oracle(same, model.predict(x, verbose=0)).mean()
    losses = model.fit(x, same, batch_size=12, epochs=4, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], first, rtol=1e-4)
    assert losses[-1] < losses[0]


def test_a_batch_of_unknown_size():
    step = tf.function(
        lambda y, z: gradient(PairwiseContrastive(), y, z),
        input_signature=[tf.TensorSpec(None, tf.int32), tf.TensorSpec([None, 2, 4])],
    )
    value, _ = step(SAME.astype("int32")[:, None], pairs())
    np.testing.assert_allclose(value, oracle(SAME, pairs()).mean(), rtol=1e-5)
    value, got = step(np.zeros(0, "int32"), pairs(0))
    assert value == 0 and got.shape == (0, 2, 4)


@pytest.mark.parametrize("wrong", [-1.0, 1.5, math.nan])
def test_labels_outside_of_zero_and_one(wrong):
    """-1 for different pairs, as cosine losses have it, would pull them apart without end."""
    same = SAME.copy()
    same[1] = wrong
    with pytest.raises(ValueError, match=r"`y_true` must lie in \[0, 1\].*Received: y_true=array"):
        PairwiseContrastive()(same, pairs())
    got = tf.function(PairwiseContrastive(reduction=None))(tf.constant(same), tf.constant(pairs()))
    np.testing.assert_array_equal(np.isnan(got), np.arange(6) == 1)


@pytest.mark.parametrize("margin", [-0.1, math.nan, "1", None, True])
def test_refuses_margins(margin):
    with pytest.raises(ValueError, match=r"`margin` must be a number from 0\. Received") as error:
        PairwiseContrastive(margin)
    assert repr(margin) in str(error.value)


@pytest.mark.parametrize(
    ("same", "z", "message"),
    [
        (None, np.ones((4, 2, 5)), "y_true=None"),
        (np.array(["a"] * 4), np.ones((4, 2, 5)), r"one number a pair.*dtype=string"),
        (np.zeros((4, 2)), np.ones((4, 2, 5)), r"one number a pair.*shape=\(4, 2\)"),
        (np.zeros(3), np.ones((4, 2, 5)), r"each of the 4 pairs.*shape=\(3,\)"),
        (np.zeros(4), np.ones((4, 5)), r"\(batch, 2, dim\).*shape=\(4, 5\)"),
        (np.zeros(4), np.ones((4, 3, 5)), r"\(batch, 2, dim\).*shape=\(4, 3, 5\)"),
        (np.zeros(4), np.ones((4, 2, 5), int), "dtype=int64"),
    ],
)
def test_refuses_inputs(same, z, message):
    with pytest.raises(ValueError, match=message):
        PairwiseContrastive()(same, z)


def test_config_is_complete():
    loss = PairwiseContrastive(0.3, True, "sum", "mine", "float64")
    again = PairwiseContrastive.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    assert (again.margin, again.normalize, again.reduction, again.name, again.dtype) == (
        0.3,
        True,
        "sum",
        "mine",
        "float64",
    )
