import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import nearest


@pytest.mark.parametrize("products", [1, 20, 33, 10**6])
@pytest.mark.parametrize("known", [True, False])
def test_is_the_candidate_of_the_largest_product(products, known, monkeypatch):
    monkeypatch.setattr(nearest, "PRODUCTS", products)
    rng = np.random.default_rng(0)
    rows, candidates = rng.normal(size=(7, 3)), rng.normal(size=(10, 3))
    spec = tf.TensorSpec([7 if known else None, 3], tf.float64)
    among = tf.function(lambda rows: nearest.among(rows, tf.constant(candidates)), [spec])
    expected = candidates[np.argmax(rows @ candidates.T, axis=1)]
    np.testing.assert_array_equal(among(rows), expected)


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_of_several_nearest_the_first(xla, dtype, count):
    rng = np.random.default_rng(0)
    rows, candidates = rng.integers(-2, 3, (count, 3)), rng.integers(-2, 3, (10, 3))
    expected = candidates[np.argmax(rows @ candidates.T, axis=1)]
    spec = tf.TensorSpec([count if xla else None, 3], dtype)
    among = tf.function(
        lambda rows: nearest.among(rows, tf.constant(candidates, dtype)), [spec], jit_compile=xla
    )
    found = among(rows.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_has_no_gradient():
    rows, candidates = tf.random.normal((4, 3), seed=1), tf.random.normal((5, 3), seed=2)
    with tf.GradientTape() as tape:
        tape.watch((rows, candidates))
        found = nearest.among(rows, candidates)
    assert tape.gradient(found, (rows, candidates)) == (None, None)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_few_rows_of_an_unknown_number_are_not_padded_to_a_full_block(count, monkeypatch):
    """With a small queue a block of the largest size would be half a million rows."""
    seen = []

    def counted(rows, candidates):
        tf.numpy_function(lambda n: seen.append(int(n)), [tf.shape(rows)[0]], [])
        return of_block(rows, candidates)

    of_block = nearest._nearest
    monkeypatch.setattr(nearest, "_nearest", counted)
    among = tf.function(nearest.among, [tf.TensorSpec([None, 3]), tf.TensorSpec([32, 3])])
    among(tf.ones((count, 3)), tf.ones((32, 3)))
    assert seen == [count]
