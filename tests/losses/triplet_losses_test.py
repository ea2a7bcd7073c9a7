import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.triplet_all import TripletAll
from keras_sslmeta.losses.triplet_hard import TripletHard
from keras_sslmeta.losses.triplet_semi_hard import TripletSemiHard
from keras_sslmeta.mechanisms import row_functions

LABELS = np.array([3, 1, 3, 2, 1, 3, 7, 2])  # One label, 7, has a single sample.
METRICS = ["L2", "squared-L2", "angular"]
LOSSES = [
    TripletSemiHard,
    TripletHard,
    TripletAll,
    lambda **kwargs: TripletHard(soft=True, **kwargs),
    lambda **kwargs: TripletAll(soft=True, **kwargs),
    lambda **kwargs: TripletAll(nonzero_only=True, **kwargs),
]
each_loss = pytest.mark.parametrize(
    "make", LOSSES, ids=["semi_hard", "hard", "all", "hard-soft", "all-soft", "all-nonzero"]
)


def embeddings(batch=8, dim=5, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, dim)).astype(dtype)


def distance(a, b, metric):
    if metric == "angular":
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return max(1 - (a @ b / norms if norms else 0.0), 0.0)
    squared = float(((a - b) ** 2).sum())
    return squared if metric == "squared-L2" else math.sqrt(squared)


def matrix_of(z, metric):
    z = np.asarray(z, "float64")
    return np.array([[distance(a, b, metric) for b in z] for a in z])


def split(labels, a):
    """The positives and the negatives of sample a."""
    others = [j for j in range(len(labels)) if j != a]
    return (
        [j for j in others if labels[j] == labels[a]],
        [j for j in others if labels[j] != labels[a]],
    )


def semi_hard_oracle(labels, d, margin=1.0):
    """TensorFlow Addons' algorithm; the sum of each anchor and the number of its pairs."""
    sums, counts = np.zeros(len(labels)), np.zeros(len(labels))
    for a in range(len(labels)):
        positives, negatives = split(labels, a)
        for p in positives:
            farther = [d[a, n] for n in negatives if d[a, n] > d[a, p]]
            if farther:
                chosen = min(farther)
            else:
                chosen = max((d[a, n] for n in negatives), default=d[a].min())
            sums[a] += max(d[a, p] - chosen + margin, 0)
            counts[a] += 1
    return sums, counts


def hard_oracle(labels, d, margin=1.0, soft=False):
    """TensorFlow Addons' algorithm, with what it takes for a missing positive or negative."""
    values = np.zeros(len(labels))
    for a in range(len(labels)):
        positives, negatives = split(labels, a)
        farthest = max((d[a, p] for p in positives), default=d[a].min())
        closest = min((d[a, n] for n in negatives), default=d[a].max())
        excess = farthest - closest
        values[a] = math.log1p(math.exp(excess)) if soft else max(excess + margin, 0)
    return values, np.ones(len(labels))


def all_oracle(labels, d, margin=1.0, soft=False, nonzero_only=False):
    sums, counts = np.zeros(len(labels)), np.zeros(len(labels))
    for a in range(len(labels)):
        positives, negatives = split(labels, a)
        for p in positives:
            for n in negatives:
                excess = d[a, p] - d[a, n]
                term = math.log1p(math.exp(excess)) if soft else max(excess + margin, 0)
                sums[a] += term
                counts[a] += term > 0 or not nonzero_only
    return sums, counts


def oracle(loss, labels, z):
    """One value a sample, in float64; their mean is the loss."""
    z = np.asarray(z, "float64")
    if loss.normalize:
        norms = np.linalg.norm(z, axis=-1, keepdims=True)
        z = z / np.where(norms, norms, 1)
    d = matrix_of(z, loss.distance_metric)
    if isinstance(loss, TripletSemiHard):
        sums, counts = semi_hard_oracle(labels, d, loss.margin)
    elif isinstance(loss, TripletHard):
        sums, counts = hard_oracle(labels, d, loss.margin, loss.soft)
    else:
        sums, counts = all_oracle(labels, d, loss.margin, loss.soft, loss.nonzero_only)
    return sums * len(labels) / max(counts.sum(), 1)


def gradient(loss, labels, z):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(labels, z)
    return value, tape.gradient(value, z)


@each_loss
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("margin", "normalize"), [(0.0, False), (0.2, True), (1.0, False)])
def test_equals_the_definition_sum_by_sum(make, metric, margin, normalize):
    loss = make(margin=margin, distance_metric=metric, normalize=normalize, reduction=None)
    for seed in range(3):
        z = embeddings(seed=seed)
        expected = oracle(loss, LABELS, z)
        assert expected.sum() > 0 or margin < 1
        np.testing.assert_allclose(loss(LABELS, z), expected, rtol=1e-4, atol=1e-5)


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_by_finite_differences(make, metric):
    z = embeddings(dtype="float64", seed=4)
    loss = make(margin=0.7, distance_metric=metric, dtype="float64")
    value, got = gradient(loss, LABELS, z)
    np.testing.assert_allclose(value, oracle(loss, LABELS, z).mean(), rtol=1e-10)
    assert np.abs(got).max() > 1e-2
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        wanted = (oracle(loss, LABELS, up).mean() - oracle(loss, LABELS, down).mean()) / (2 * step)
        np.testing.assert_allclose(got.numpy()[index], wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.first(2)
@each_loss
@pytest.mark.parametrize(("metric", "compiled"), [("L2", False), ("angular", False), ("L2", True)])
def test_blocks_of_rows_change_nothing(make, metric, compiled, monkeypatch):
    """Blocks of three rows, the last one padded."""
    z, loss = embeddings(), make(margin=0.7, distance_metric=metric)
    expected, slopes = gradient(loss, LABELS, z)
    monkeypatch.setattr(row_functions, "PAIRS", 3 * len(z))
    step = tf.function(lambda z: gradient(loss, LABELS, z), jit_compile=compiled)
    value, got = step(tf.constant(z))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(got, slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.first(1)
@each_loss
def test_a_batch_of_unknown_size_is_the_same(make):
    z, loss = embeddings(), make(margin=0.7)
    expected, slopes = gradient(loss, LABELS, z)
    step = tf.function(
        lambda y, z: gradient(loss, y, z),
        input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 5])],
    )
    value, got = step(LABELS, z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(got, slopes, rtol=1e-4, atol=1e-6)
    for batch in (0, 1):
        _, got = step(LABELS[:batch], z[:batch])
        np.testing.assert_array_equal(got, np.zeros((batch, 5)))


@pytest.mark.parametrize("kind", ["uint8", "int32", "uint64", "strings", "objects", "bytes"])
def test_labels_of_any_kind(kind):
    z, loss = embeddings(), TripletAll()
    if kind == "strings":
        labels = np.array([f"kind {x}" for x in LABELS])
    elif kind == "objects":
        labels = np.array([f"kind {x}" for x in LABELS], object)
    elif kind == "bytes":
        labels = tf.constant([f"kind {x}" for x in LABELS])
    else:
        labels = LABELS.astype(kind)
    expected = oracle(loss, LABELS, z).mean()
    np.testing.assert_allclose(loss(labels, z), expected, rtol=1e-4)
    np.testing.assert_allclose(loss(labels[:, None], z), expected, rtol=1e-4)


@each_loss
def test_labels_that_collide_as_floats(make):
    z, loss = embeddings(), make()
    expected = oracle(loss, LABELS, z).mean()
    assert abs(expected - oracle(loss, np.zeros(8), z).mean()) > 0.1
    np.testing.assert_allclose(loss(2**53 + LABELS, z), expected, rtol=1e-4)


@each_loss
def test_views_are_samples_of_one_label(make):
    z = embeddings(16).reshape(8, 2, 5)
    loss = make(reduction=None)
    flat = oracle(loss, np.repeat(LABELS, 2), z.reshape(16, 5))
    np.testing.assert_allclose(loss(LABELS, z), flat.reshape(8, 2).mean(1), rtol=1e-4)


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_one_label_only(make, metric):
    z, labels = embeddings(), np.zeros(8, "int64")
    loss = make(distance_metric=metric)
    value, got = gradient(loss, labels, z)
    np.testing.assert_allclose(value, oracle(loss, labels, z).mean(), rtol=1e-4, atol=1e-5)
    assert np.isfinite(got).all()
    if isinstance(loss, TripletHard):
        np.testing.assert_allclose(value, math.log(2) if loss.soft else 1.0, rtol=1e-6)
    if not isinstance(loss, TripletSemiHard):
        np.testing.assert_allclose(got, np.zeros_like(z), atol=1e-7)


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_no_sample_has_a_positive(make, metric):
    z, labels = embeddings(), np.arange(8)
    loss = make(distance_metric=metric)
    value, got = gradient(loss, labels, z)
    expected = oracle(loss, labels, z).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(got).all()
    if not isinstance(loss, TripletHard):
        assert value == 0
        np.testing.assert_array_equal(got, np.zeros_like(z))


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_zeros_and_duplicates(make, metric):
    z = embeddings()
    z[0] = z[3] = 0  # Of different labels.
    z[4] = z[1]  # Of one label.
    z[6] = z[5]  # Of different labels.
    loss = make(margin=0.5, distance_metric=metric)
    value, got = gradient(loss, LABELS, z)
    assert np.isfinite(got).all()
    assert np.abs(got).max() < 100
    if metric == "angular":
        # Cosines of duplicates are 1 up to rounding, which may tell which negative is farther.
        np.testing.assert_allclose(value, oracle(loss, LABELS, z).mean(), rtol=0.05)
    else:
        np.testing.assert_allclose(value, oracle(loss, LABELS, z).mean(), rtol=1e-3)


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_everything_equal(make, metric):
    loss = make(margin=0.5, distance_metric=metric)
    for z in (np.zeros((8, 5), "float32"), np.full((8, 5), 3.3, "float32")):
        value, got = gradient(loss, LABELS, z)
        soft = getattr(loss, "soft", False)
        np.testing.assert_allclose(value, math.log(2) if soft else 0.5, rtol=1e-5)
        np.testing.assert_allclose(got, np.zeros_like(z), atol=1e-6)


@each_loss
def test_far_from_the_origin(make):
    """Distances of 1 at norms of 1e4: half of the digits of a squared norm would be lost."""
    z, loss = embeddings(), make(margin=0.7)
    expected, slopes = gradient(loss, LABELS, z)
    value, got = gradient(loss, LABELS, z + 1e4)
    np.testing.assert_allclose(value, expected, rtol=1e-2)
    np.testing.assert_allclose(got, slopes, atol=2e-2 * np.abs(slopes).max())


@each_loss
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_compared_in_float32(make, dtype, tolerance):
    z = tf.cast(embeddings(), dtype)
    loss = make()
    expected = oracle(loss, LABELS, tf.cast(z, tf.float64).numpy()).mean()
    np.testing.assert_allclose(loss(LABELS, z), expected, rtol=1e-4)
    value, got = gradient(make(dtype=dtype), LABELS, z)
    assert value.dtype == got.dtype == dtype
    np.testing.assert_allclose(tf.cast(value, tf.float32), expected, rtol=tolerance)


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_large_half_precision_embeddings_do_not_overflow(make, metric):
    z = tf.cast(embeddings() * 1e4, tf.float16)
    loss = make(distance_metric=metric)
    value, got = gradient(loss, LABELS, z)
    with np.errstate(over="ignore"):
        expected = (
            oracle(loss, LABELS, z.numpy())
            if not getattr(loss, "soft", False) or metric == "angular"
            # log(1 + e^x) is max(x, 0) at these distances.
            else oracle(type(loss)(margin=0, distance_metric=metric), LABELS, z.numpy())
        )
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-3)
    assert np.isfinite(tf.cast(got, tf.float32)).all()


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_nan_gives_nan(make, metric):
    z = embeddings()
    z[6, 0] = np.nan
    assert np.isnan(make(distance_metric=metric)(LABELS, z))


@each_loss
def test_sample_weights_weigh_anchors(make):
    z, loss = embeddings(), make()
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 0.2], "float32")
    values = oracle(loss, LABELS, z)
    got = loss(LABELS, z, sample_weight=weights)
    np.testing.assert_allclose(got, (values * weights).mean(), rtol=1e-4)
    got = make(reduction="sum")(LABELS, z)
    np.testing.assert_allclose(got, values.sum(), rtol=1e-4)


@each_loss
def test_local_and_global_are_the_same_on_one_device(make):
    z = embeddings()
    np.testing.assert_array_equal(make(gather=False)(LABELS, z), make()(LABELS, z))


def taxicab(z):
    return tf.reduce_sum(tf.abs(z[:, None] - z), axis=-1)


@pytest.mark.parametrize("kind", ["semi_hard", "hard", "all"])
def test_a_function_as_distance(kind):
    z = embeddings()
    d = np.abs(z[:, None] - z).sum(-1)
    cls, reference = {
        "semi_hard": (TripletSemiHard, semi_hard_oracle),
        "hard": (TripletHard, hard_oracle),
        "all": (TripletAll, all_oracle),
    }[kind]
    sums, counts = reference(LABELS, d)
    value, got = gradient(cls(distance_metric=taxicab), LABELS, z)
    np.testing.assert_allclose(value, sums.sum() / counts.sum(), rtol=1e-5)
    step, moved = 1e-2, z.astype("float64")
    moved[2, 1] += step
    sums_up, _ = reference(LABELS, np.abs(moved[:, None] - moved).sum(-1))
    moved[2, 1] -= 2 * step
    sums_down, _ = reference(LABELS, np.abs(moved[:, None] - moved).sum(-1))
    wanted = (sums_up - sums_down).sum() / counts.sum() / (2 * step)
    np.testing.assert_allclose(got[2, 1], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("settings", [{}, {"run_eagerly": True}, {"jit_compile": True}])
@pytest.mark.parametrize("cls", [TripletSemiHard, TripletHard, TripletAll])
def test_fits(cls, settings):
    x, labels = embeddings(16), np.tile(LABELS, 2)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.05), loss=cls(), **settings)
    first = oracle(cls(), labels, model.predict(x, verbose=0)).mean()
    losses = model.fit(x, labels, batch_size=16, epochs=5, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], first, rtol=1e-3)
    assert losses[-1] < losses[0]
