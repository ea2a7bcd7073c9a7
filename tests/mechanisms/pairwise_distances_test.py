import math

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import pairwise_distances

METRICS = pairwise_distances.METRICS


def data(n=4, m=6, dim=5, dtype="float64"):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, dim)).astype(dtype), rng.normal(size=(m, dim)).astype(dtype)


def oracle(metric, rows, keys):
    result = np.zeros((len(rows), len(keys)))
    for i, a in enumerate(np.asarray(rows, "float64")):
        for j, b in enumerate(np.asarray(keys, "float64")):
            if metric == "angular":
                norms = np.linalg.norm(a) * np.linalg.norm(b)
                result[i, j] = max(1 - (a @ b / norms if norms else 0), 0)
            else:
                squared = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
                result[i, j] = squared if metric == "squared-L2" else math.sqrt(squared)
    return result


def nowhere(rows, keys):
    return tf.zeros([len(rows), len(keys)], tf.bool)


def gradients(metric, rows, keys, is_self, weights=None):
    rows, keys = tf.convert_to_tensor(rows), tf.convert_to_tensor(keys)
    with tf.GradientTape() as tape:
        tape.watch((rows, keys))
        value = pairwise_distances.distances(metric, rows, keys, is_self)
        total = tf.reduce_sum(value if weights is None else value * weights)
    return tape.gradient(total, (rows, keys))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_equals_the_definition(metric, dtype, tolerance):
    rows, keys = data(dtype=dtype)
    got = pairwise_distances.distances(metric, rows, keys, nowhere(rows, keys))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, oracle(metric, rows, keys), rtol=tolerance)


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_by_finite_differences(metric):
    rows, keys = data()
    weights = np.random.default_rng(1).normal(size=(4, 6))
    got = gradients(metric, rows, keys, nowhere(rows, keys), weights)
    step = 1e-6
    for which, x in enumerate((rows, keys)):
        for index in np.ndindex(x.shape):
            before, ends = x[index], []
            for end in (before + step, before - step):
                x[index] = end
                ends.append((oracle(metric, rows, keys) * weights).sum())
            x[index] = before
            wanted = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(got[which].numpy()[index], wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_itself_and_zeros(metric, dtype):
    z = data(n=6, dtype=dtype)[0]
    z[2] = 0
    itself = tf.eye(6) > 0
    got = pairwise_distances.distances(metric, z, z, itself)
    np.testing.assert_allclose(got, oracle(metric, z, z), rtol=1e-5, atol=1e-6)
    if metric != "angular":
        np.testing.assert_array_equal(np.diag(got), np.zeros(6))
    for gradient in gradients(metric, z, z, itself):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_embeddings_have_no_gradient(metric):
    for z in (np.zeros((5, 3), "float32"), np.full((5, 3), 0.3, "float32")):
        for gradient in gradients(metric, z, z, tf.eye(5) > 0):
            np.testing.assert_allclose(gradient, np.zeros_like(z), atol=1e-6)


@pytest.mark.parametrize("metric", ["L2", "squared-L2"])
def test_far_from_the_origin(metric):
    """At norms of 1e4 float32 squares hold no differences of 1."""
    rows, keys = data()
    got = pairwise_distances.distances(
        metric, (rows + 1e4).astype("float32"), (keys + 1e4).astype("float32"), nowhere(rows, keys)
    )
    np.testing.assert_allclose(got, oracle(metric, rows, keys), rtol=2e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_never_negative(metric):
    """Near duplicates, whose squared distance rounds below 0."""
    z = data(1, dtype="float32")[0] * 30
    z = np.concatenate([z + 1e-5 * np.arange(200, dtype="float32")[:, None], -z])
    got = pairwise_distances.distances(metric, z, z, nowhere(z, z))
    assert np.min(got) >= 0 and np.isfinite(got).all()
    for gradient in gradients(metric, z, z, nowhere(z, z)):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("metric", METRICS)
def test_nan_stays_nan(metric):
    rows, keys = data()
    rows[1, 0] = np.nan
    got = pairwise_distances.distances(metric, rows, keys, nowhere(rows, keys))
    assert np.isnan(got[1]).all()


def test_checks_names():
    for metric in METRICS:
        assert pairwise_distances.check("metric", metric) == metric
    assert pairwise_distances.check("metric", len) is len
    for wrong in ("l2", "cosine", None, 2, ["L2"]):
        with pytest.raises(
            ValueError, match=r"`metric` must be one of 'L2', 'squared-L2'"
        ) as error:
            pairwise_distances.check("metric", wrong)
        assert repr(wrong) in str(error.value)
