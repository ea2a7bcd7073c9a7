import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.multi_similarity import MultiSimilarity
from keras_sslmeta.mechanisms import row_functions

LABELS = np.array([3, 1, 3, 2, 1, 3, 7, 2])  # One label, 7, has a single sample.


def embeddings(batch=8, dim=5, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, dim)).astype(dtype)


def oracle(labels, z, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1, normalize=True):
    """The paper's mining and weighting, pair by pair, in float64; one value a sample."""
    z = np.asarray(z, "float64")
    if normalize:
        norms = np.linalg.norm(z, axis=1, keepdims=True)
        z = z / np.where(norms, norms, 1)
    values = np.zeros(len(z))
    for a in range(len(z)):
        others = [j for j in range(len(z)) if j != a]
        positives = [z[a] @ z[j] for j in others if labels[j] == labels[a]]
        negatives = [z[a] @ z[j] for j in others if labels[j] != labels[a]]
        if not positives or not negatives:
            continue
        kept = [s for s in positives if s < max(negatives) + epsilon]
        pushed = [s for s in negatives if s > min(positives) - epsilon]
        values[a] = (
            math.log(1 + sum(math.exp(-alpha * (s - base)) for s in kept)) / alpha
            + math.log(1 + sum(math.exp(beta * (s - base)) for s in pushed)) / beta
        )
    return values


def gradient(loss, labels, z):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(labels, z)
    return value, tape.gradient(value, z)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"base": 1.0},
        {"alpha": 1.0, "beta": 10.0, "base": -0.2, "epsilon": 0.0},
        {"epsilon": 0.5},
        {"epsilon": 3.0},
        {"normalize": False, "beta": 5.0},
    ],
)
def test_equals_the_paper_sum_by_sum(settings):
    seen = set()
    for seed in range(4):
        z = embeddings(seed=seed)
        expected = oracle(LABELS, z, **settings)
        got = MultiSimilarity(reduction=None, **settings)(LABELS, z)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
        assert expected[6] == 0 and expected.max() > 0
        seen.add(round(oracle(LABELS, z, **{**settings, "epsilon": 3.0}).mean(), 9))
        mean = MultiSimilarity(**settings)(LABELS, z)
        np.testing.assert_allclose(mean, expected.mean(), rtol=1e-4)
    assert len(seen) == 4


def test_mining_matters_here():
    """Otherwise the tests above say nothing about it."""
    z = embeddings()
    mined, everything = oracle(LABELS, z), oracle(LABELS, z, epsilon=3.0)
    assert (mined < everything - 1e-3).any() and (mined > 0).any()


def test_defaults():
    loss = MultiSimilarity()
    assert (loss.alpha, loss.beta, loss.base, loss.epsilon) == (2.0, 50.0, 0.5, 0.1)
    assert loss.normalize and loss.gather


def test_well_separated_classes_cost_nothing():
    z = np.eye(2, 5, dtype="float32")[[0, 0, 1, 1]]
    value, got = gradient(MultiSimilarity(), np.array([0, 0, 1, 1]), z)
    assert value == 0
    np.testing.assert_array_equal(got, np.zeros_like(z))


def test_closed_form_of_equal_embeddings():
    """Duplicates are positives: a similarity of 1 is no sign of being the sample itself."""
    z = np.ones((4, 5), "float32")
    value, got = gradient(MultiSimilarity(), np.array([0, 0, 1, 1]), z)
    expected = math.log(1 + math.exp(-1)) / 2 + math.log(1 + 2 * math.exp(25)) / 50
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("epsilon", [0.1, 3.0])
def test_gradient_by_finite_differences(normalize, epsilon):
    z = embeddings(dtype="float64", seed=2)
    settings = {"epsilon": epsilon, "normalize": normalize, "beta": 10.0}
    value, got = gradient(MultiSimilarity(dtype="float64", **settings), LABELS, z)
    np.testing.assert_allclose(value, oracle(LABELS, z, **settings).mean(), rtol=1e-12)
    assert np.abs(got).max() > 1e-3
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        wanted = oracle(LABELS, up, **settings).mean() - oracle(LABELS, down, **settings).mean()
        np.testing.assert_allclose(got.numpy()[index], wanted / (2 * step), rtol=1e-5, atol=1e-8)


def test_large_exponents_do_not_overflow():
    z = embeddings()
    value, got = gradient(MultiSimilarity(alpha=500.0, beta=1000.0), LABELS, z)
    # Sums of exponentials are their largest here.
    expected = oracle(LABELS, z, alpha=500.0, beta=1000.0)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-4)
    assert np.isfinite(got).all()


@pytest.mark.first(1)
@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_of_rows_change_nothing(compiled, monkeypatch):
    z = embeddings()
    expected, slopes = gradient(MultiSimilarity(), LABELS, z)
    monkeypatch.setattr(row_functions, "PAIRS", 3 * len(z))
    step = tf.function(lambda z: gradient(MultiSimilarity(), LABELS, z), jit_compile=compiled)
    value, got = step(tf.constant(z))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(got, slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_batch_of_unknown_size_is_the_same():
    z = embeddings()
    expected, slopes = gradient(MultiSimilarity(), LABELS, z)
    step = tf.function(
        lambda y, z: gradient(MultiSimilarity(), y, z),
        input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 5])],
    )
    value, got = step(LABELS, z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(got, slopes, rtol=1e-4, atol=1e-6)
    for batch in (0, 1):
        value, got = step(LABELS[:batch], z[:batch])
        assert value == 0
        np.testing.assert_array_equal(got, np.zeros((batch, 5)))


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype("uint8"),
        LABELS + 2**53,
        np.array([f"kind {x}" for x in LABELS]),
        np.array([f"kind {x}" for x in LABELS], object),
        tf.constant([f"kind {x}" for x in LABELS]),
    ],
)
def test_labels_are_compared_exactly(labels):
    z = embeddings()
    expected = oracle(LABELS, z).mean()
    np.testing.assert_allclose(MultiSimilarity()(labels, z), expected, rtol=1e-4)


@pytest.mark.parametrize("labels", [np.zeros(8, int), np.arange(8)])
def test_one_label_only_or_no_positives(labels):
    value, got = gradient(MultiSimilarity(), labels, embeddings())
    assert value == 0
    np.testing.assert_array_equal(got, np.zeros((8, 5)))


def test_views_are_samples_of_one_label():
    z = embeddings(16)
    expected = oracle(np.repeat(LABELS, 2), z).reshape(8, 2).mean(1)
    got = MultiSimilarity(reduction=None)(LABELS, z.reshape(8, 2, 5))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_zero_embeddings_are_finite_and_get_no_gradient():
    z = embeddings()
    z[2] = 0
    value, got = gradient(MultiSimilarity(), LABELS, z)
    np.testing.assert_allclose(value, oracle(LABELS, z).mean(), rtol=1e-4)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[2], np.zeros(5))


@pytest.mark.parametrize("where", [0, 6])
def test_nan_gives_nan(where):
    z = embeddings()
    z[where, 0] = np.nan
    assert np.isnan(MultiSimilarity()(LABELS, z))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_half_precision_is_compared_in_float32(dtype, tolerance, scale):
    z = tf.cast(embeddings() * scale, dtype)
    expected = oracle(LABELS, tf.cast(z, tf.float64).numpy()).mean()
    np.testing.assert_allclose(MultiSimilarity()(LABELS, z), expected, rtol=1e-4)
    value, got = gradient(MultiSimilarity(dtype=dtype), LABELS, z)
    assert value.dtype == got.dtype == dtype
    np.testing.assert_allclose(tf.cast(value, tf.float32), expected, rtol=tolerance)
    assert np.isfinite(tf.cast(got, tf.float32)).all()


def test_sample_weights_weigh_anchors_and_local_is_global_on_one_device():
    z = embeddings()
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 0.2], "float32")
    expected = (oracle(LABELS, z) * weights).mean()
    for gather in (True, False):
        got = MultiSimilarity(gather=gather)(LABELS, z, sample_weight=weights)
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_fits():
    x, labels = embeddings(16), np.tile(LABELS, 2)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.05), loss=MultiSimilarity())
    first = oracle(labels, model.predict(x, verbose=0)).mean()
    losses = model.fit(x, labels, batch_size=16, epochs=5, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], first, rtol=1e-3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0),
        ("alpha", "2"),
        ("beta", -1.0),
        ("beta", math.nan),
        ("base", None),
        ("base", math.inf),
        ("base", True),
        ("epsilon", -0.1),
        ("epsilon", "small"),
    ],
)
def test_refuses_arguments(name, value):
    with pytest.raises(
        ValueError, match=rf"`{name}` must be a.*number.*Received: {name}="
    ) as error:
        MultiSimilarity(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("labels", "z", "message"),
    [
        (None, np.ones((4, 5)), "y_true=None"),
        (np.zeros(4), np.ones((4, 5)), "dtype=float64"),
        (np.zeros(3, int), np.ones((4, 5)), r"each of the 4 samples.*shape=\(3,\)"),
        (np.zeros(4, int), np.ones(4), r"\(batch, dim\).*shape=\(4,\)"),
        (np.zeros(4, int), np.ones((4, 5), int), "dtype=int64"),
    ],
)
def test_refuses_inputs(labels, z, message):
    with pytest.raises(ValueError, match=message):
        MultiSimilarity()(labels, z)


def test_config_is_complete():
    loss = MultiSimilarity(1.0, 40.0, 0.7, 0.2, False, False, "sum", "mine", "float64")
    again = MultiSimilarity.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    names = "alpha beta base epsilon normalize gather reduction name dtype"
    for name in names.split():
        assert getattr(again, name) == getattr(loss, name)
    assert (again.base, again.epsilon, again.gather, again.dtype) == (0.7, 0.2, False, "float64")
