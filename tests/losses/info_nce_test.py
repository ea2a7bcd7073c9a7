import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses import InfoNCE

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"
RNG = np.random.default_rng(0)
BATCH, DIM, HARD, MEMORY = 5, 6, 2, 7
QUERIES, KEYS = RNG.normal(size=(2, BATCH, DIM))
HARD_ONES = RNG.normal(size=(BATCH, HARD, DIM))
HELD = RNG.normal(size=(MEMORY, DIM))


def oracle(queries, keys, temperature, hard=None, memory=None, in_batch=True):
    """Equation by equation, one logit at a time."""

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    values = []
    for i, query in enumerate(queries):
        positive = math.exp(cosine(query, keys[i]) / temperature)
        negatives = []
        if in_batch:
            negatives += [key for j, key in enumerate(keys) if j != i]
        if hard is not None:
            negatives += [h for j in range(len(keys)) if in_batch or j == i for h in hard[j]]
        if memory is not None:
            negatives += list(memory)
        total = sum(math.exp(cosine(query, key) / temperature) for key in negatives)
        values.append(-math.log(positive / (positive + total)))
    return np.array(values)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values_of_lightly(value_and_gradient):
    golden = np.load(GOLDEN)
    cases = sorted({k.rsplit("/", 1)[0] for k in golden.files if k.startswith("info_nce_queue/")})
    assert cases
    for case in cases:
        part = {key: golden[f"{case}/{key}"] for key in ("query", "key", "queue", "grad_query")}
        loss = InfoNCE(float(golden[f"{case}/temperature"]), in_batch_negatives=False)
        target = {"keys": part["key"], "memory": part["queue"]}
        value, got = value_and_gradient(loss, target, part["query"])
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        scale = np.abs(part["grad_query"]).max()
        np.testing.assert_allclose(got, part["grad_query"], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("has_memory", [True, False])
@pytest.mark.parametrize("has_hard", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_equals_the_paper_in_every_form(in_batch, has_memory, has_hard, temperature):
    if not (in_batch or has_memory or has_hard):
        return
    hard, memory = HARD_ONES if has_hard else None, HELD if has_memory else None
    expected = oracle(QUERIES, KEYS, temperature, hard, memory, in_batch)
    loss = InfoNCE(temperature, in_batch, reduction=None, dtype="float64")
    keys = np.concatenate([KEYS[:, None], *([HARD_ONES] if has_hard else [])], axis=1)
    keys = keys if has_hard else KEYS
    held = {"memory": HELD} if has_memory else {}
    np.testing.assert_allclose(loss({"keys": keys, **held}, QUERIES), expected, rtol=1e-10)
    stack = np.concatenate([QUERIES[:, None], keys.reshape(BATCH, -1, DIM)], axis=1)
    np.testing.assert_allclose(loss(held or None, stack), expected, rtol=1e-10)
    if not has_memory:
        np.testing.assert_allclose(loss(keys, QUERIES), expected, rtol=1e-10)


def test_gradients_reach_what_they_should(check_gradient, value_and_gradient):
    loss = InfoNCE(0.3, dtype="float64")
    stack = np.concatenate([QUERIES[:, None], KEYS[:, None], HARD_ONES], axis=1)
    check_gradient(loss, {"memory": HELD}, stack)
    keys, memory = tf.constant(KEYS), tf.constant(HELD)
    with tf.GradientTape() as tape:
        tape.watch((keys, memory))
        value = loss({"keys": keys, "memory": memory}, QUERIES)
    assert tape.gradient(value, (keys, memory)) == (None, None)
    check_gradient(loss, {"keys": KEYS, "memory": HELD}, QUERIES)


def test_closed_forms(value_and_gradient):
    ones = np.ones((8, 2, 4), "float32")
    np.testing.assert_allclose(InfoNCE()(None, ones), math.log(8), rtol=1e-6)
    eye = np.eye(4, dtype="float32")
    expected = math.log(1 + 3 * math.exp(-2))
    np.testing.assert_allclose(InfoNCE(0.5)(eye, eye), expected, rtol=1e-5)
    zero = np.zeros((4, 2, 4), "float32")
    value, got = value_and_gradient(InfoNCE(), None, zero)
    np.testing.assert_allclose(value, math.log(4), rtol=1e-6)
    np.testing.assert_array_equal(got, zero)
    # The dot product, with `normalize=False`.
    value = InfoNCE(1.0, normalize=False)(2 * eye, eye)
    np.testing.assert_allclose(value, math.log(1 + 3 * math.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.005, 0.02, 10.0])
def test_extreme_temperatures_and_half_precision(temperature, value_and_gradient):
    stack = tf.cast(np.stack([QUERIES, KEYS], 1) * 1e4 / 8, "float16")
    exact = tf.cast(stack, tf.float64).numpy()
    largest = oracle(exact[:, 0], exact[:, 1], max(temperature, 0.02))
    if temperature >= 0.02:
        value, got = value_and_gradient(InfoNCE(temperature), None, stack)
        np.testing.assert_allclose(value, largest.mean(), rtol=1e-4)
        assert np.isfinite(got).all()
    value, got = value_and_gradient(InfoNCE(temperature), None, tf.cast(stack, tf.float32))
    wide = value_and_gradient(InfoNCE(temperature, dtype="float64"), None, exact)
    np.testing.assert_allclose(value, wide[0], rtol=1e-4)
    np.testing.assert_allclose(got, wide[1], rtol=1e-3, atol=1e-4 * np.abs(wide[1]).max())


def test_simcse_by_compile_and_fit():
    """Two towers in one model, by way of a stack of their outputs."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, DIM))
    model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    model.compile(keras.optimizers.SGD(0.5), loss=InfoNCE(0.1))
    x = np.stack([QUERIES, QUERIES + 0.1 * KEYS], axis=1)
    history = model.fit(x, batch_size=5, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (None, QUERIES, r"`y_true` must hold the keys"),
        ({"memory": HELD}, QUERIES, r"`y_true` must hold the keys"),
        (KEYS[:, :3], QUERIES, r"`y_true` must hold the keys.*\(5, 3\)"),
        (KEYS[:3], QUERIES, r"`y_true` must hold the keys.*\(3, 6\)"),
        (KEYS.astype(int), QUERIES, r"`y_true` must hold the keys.*int64"),
        (None, QUERIES[:, None], r"`y_pred` must be a stack of anchors and keys.*\(5, 1, 6\)"),
        (None, np.ones((1, 2, 4)), "A batch of one sample has no negatives"),
        ({"keys": KEYS}, np.stack([QUERIES, KEYS], 1), "Keys came twice"),
        (
            {"keys": KEYS, "memory": HELD[:, :2]},
            QUERIES,
            r"`memory` must hold embeddings.*\(7, 2\)",
        ),
    ],
)
def test_refuses(y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        InfoNCE()(y_true, y_pred)


def test_refuses_a_loss_without_negatives():
    with pytest.raises(ValueError, match="`in_batch_negatives=False` leaves no negatives"):
        InfoNCE(in_batch_negatives=False)(KEYS, QUERIES)
