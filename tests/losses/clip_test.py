import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.losses import CLIP

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"
A, C = np.random.default_rng(0).normal(size=(2, 5, 6))


def oracle(a, c, temperature):
    """Rows and columns of the matrix, one cross-entropy at a time."""
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    c = c / np.linalg.norm(c, axis=1, keepdims=True)
    logits = a @ c.T / temperature
    values = []
    for i in range(len(a)):
        row = math.log(sum(math.exp(x) for x in logits[i])) - logits[i, i]
        column = math.log(sum(math.exp(x) for x in logits[:, i])) - logits[i, i]
        values.append((row + column) / 2)
    return np.array(values)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values():
    golden = np.load(GOLDEN)
    cases = sorted({key.rsplit("/", 1)[0] for key in golden.files if key.startswith("clip/")})
    assert cases
    for case in cases:
        a, c = (tf.constant(golden[f"{case}/{key}"]) for key in "ab")
        with tf.GradientTape() as tape:
            tape.watch((a, c))
            value = CLIP(float(golden[f"{case}/temperature"]))(a, c)
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        for got, key in zip(tape.gradient(value, (a, c)), "ab", strict=True):
            expected = golden[f"{case}/grad_{key}"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
def test_equals_the_paper_either_way_round(temperature):
    expected = oracle(A, C, temperature)
    loss = CLIP(temperature, reduction=None, dtype="float64")
    for y_true, y_pred in ((A, C), (C, A), (None, np.stack([A, C], 1)), ({"keys": A}, C)):
        np.testing.assert_allclose(loss(y_true, y_pred), expected, rtol=1e-10)


def test_gradient_by_finite_differences(check_gradient):
    check_gradient(CLIP(0.3, dtype="float64"), None, np.stack([A, C], axis=1))


def test_with_rules_walks_each_way_and_gives_the_same(value_and_gradient):
    stack = np.stack([A, C], axis=1)
    plain = value_and_gradient(CLIP(0.2, dtype="float64"), None, stack)
    rules = [ksm.negatives.ExcludeSameLabel()]
    ruled = CLIP(0.2, negatives=rules, dtype="float64")
    for got, expected in zip(value_and_gradient(ruled, np.arange(5), stack), plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
    # Samples 0 and 1 are the same: neither meets the other's text, nor its image.
    labels = np.array([0, 0, 2, 3, 4])
    a, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (A, C))
    terms = np.exp(a @ c.T / 0.2)
    terms[0, 1] = terms[1, 0] = 0
    both = (np.log(terms.sum(1)) + np.log(terms.sum(0))) / 2 - np.diag(a @ c.T) / 0.2
    np.testing.assert_allclose(ruled(labels, stack), both.mean(), rtol=1e-10)


@pytest.mark.slow
def test_a_learnt_scale_trains_both_towers_and_itself():
    keras.utils.set_random_seed(0)
    images, texts = keras.Input((6,)), keras.Input((6,))
    towers = [keras.layers.Dense(4)(x) for x in (images, texts)]
    scaled = ksm.layers.LogitScale()(towers)
    stack = keras.layers.Lambda(lambda x: tf.stack(x, axis=1), output_shape=(2, 4))(scaled)
    model = keras.Model([images, texts], stack)
    model.compile(keras.optimizers.Adam(0.05), loss=CLIP(temperature=1.0, normalize=False))
    before = [w.copy() for w in model.get_weights()]
    history = model.fit([A, A + 0.1 * C], np.zeros(5), epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    assert all(np.any(x != y) for x, y in zip(before[:3:2], model.get_weights()[:3:2], strict=True))


def test_closed_forms(value_and_gradient):
    np.testing.assert_allclose(CLIP()(None, np.ones((8, 2, 4), "float32")), math.log(8), rtol=1e-6)
    zero = np.zeros((4, 2, 4), "float32")
    value, got = value_and_gradient(CLIP(), None, zero)
    np.testing.assert_allclose(value, math.log(4), rtol=1e-6)
    np.testing.assert_array_equal(got, zero)
    large = tf.cast(np.stack([A, C], 1) * 1e4 / 3, "float16")
    value, got = value_and_gradient(CLIP(), None, large)
    exact = tf.cast(large, tf.float64).numpy()
    np.testing.assert_allclose(value, oracle(exact[:, 0], exact[:, 1], 0.07).mean(), rtol=1e-4)
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (None, A, "`y_true` must hold the keys"),
        (None, np.ones((4, 3, 6)), "without a memory or hard negatives"),
        ({"keys": A, "memory": A}, C, "without a memory or hard negatives"),
        (None, np.ones((1, 2, 6)), "A batch of one sample has no negatives"),
    ],
)
def test_refuses(y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        CLIP()(y_true, y_pred)
