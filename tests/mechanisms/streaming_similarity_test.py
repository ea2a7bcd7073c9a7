"""The tiled log-sum-exp against NumPy, with tiles so small that every kind of tile occurs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import row_blocks, streaming_similarity, tile_walks

DIM = 6
TOLERANCE = {"float32": 5e-6, "float64": 1e-12}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(row_blocks, "TILE", 16)
    # Four kept tiles, so that larger cases keep some and compute the others again.
    monkeypatch.setattr(tile_walks, "KEPT_BYTES", 4 * 16 * 16 * 4)
    monkeypatch.setattr(streaming_similarity, "DENSE_PAIRS", 0)


def vectors(count, dtype, seed, squared_norm=10.0):
    x = np.random.default_rng(seed).normal(size=(count, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(squared_norm)).astype(dtype)


def oracle(rows, keys, left_out):
    """Log-sum-exps, and their gradients weighted by 1, 2, …, row by row in float64."""
    rows, keys = rows.astype("float64"), keys.astype("float64")
    values = np.zeros(len(rows))
    for_rows, for_keys = np.zeros_like(rows), np.zeros_like(keys)
    for i, row in enumerate(rows):
        used = [j for j in range(len(keys)) if j != left_out(i)]
        similarities = np.array([row @ keys[j] for j in used])
        largest = similarities.max()
        values[i] = largest + np.log(np.exp(similarities - largest).sum())
        for j, similarity in zip(used, similarities, strict=True):
            weight = (i + 1) * np.exp(similarity - values[i])
            for_rows[i] += weight * keys[j]
            for_keys[j] += weight * row
    return values, for_rows, for_keys


def value_and_gradients(function, *inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function(*inputs)
        weights = tf.cast(tf.range(1, tf.shape(value)[0] + 1), value.dtype)
        total = tf.reduce_sum(value * weights)
    return value, *tape.gradient(total, inputs)


def run(mode, function, *inputs):
    """In eager mode, in a graph of known or unknown sizes, or compiled by XLA."""
    inputs = [tf.constant(x) for x in inputs]
    if mode == "eager":
        return value_and_gradients(function, *inputs)
    unknown = [tf.TensorSpec([None, DIM], x.dtype) for x in inputs]
    known = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]

    def step(*inputs):
        return value_and_gradients(function, *inputs)

    if mode == "tape outside the graph":
        return value_and_gradients(tf.function(function, input_signature=unknown), *inputs)
    signature = known if "known sizes" in mode else unknown
    return tf.function(step, input_signature=signature, jit_compile="XLA" in mode)(*inputs)


def assert_close(got, expected, dtype):
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(
            x, y, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.abs(y).max()
        )


FEW_MODES = ["eager", "unknown"]
MODES = ["eager", "known sizes", "unknown", "tape outside the graph", "XLA, known sizes", "XLA"]


@pytest.mark.first(2)
@pytest.mark.parametrize("bound", [None, 10.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [2, 16, 17, 50])
def test_self_similarity(count, dtype, bound):
    rows = vectors(count, dtype, seed=count)
    value, for_rows, for_keys = oracle(rows, rows, left_out=lambda i: i)
    for mode in MODES if count == 50 and bound else FEW_MODES:
        got = run(mode, lambda z: streaming_similarity.log_sum_exp(z, bound=bound), rows)
        assert_close(got, (value, for_rows + for_keys), dtype)


@pytest.mark.first(2)
@pytest.mark.parametrize("bound", [None, 10.0])
@pytest.mark.parametrize("own_key", [None, 0, 20])
@pytest.mark.parametrize("sizes", [(3, 50), (50, 40), (17, 16)])
def test_rows_against_keys(sizes, own_key, bound):
    rows, keys = (vectors(count, "float32", seed) for seed, count in enumerate(sizes))
    expected = oracle(rows, keys, left_out=lambda i: None if own_key is None else own_key + i)
    for mode in MODES if sizes == (50, 40) and own_key == 20 else FEW_MODES:
        got = run(
            mode,
            lambda rows, keys: streaming_similarity.log_sum_exp(rows, keys, own_key, bound),
            rows,
            keys,
        )
        assert_close(got, expected, "float32")


@pytest.mark.first(1)
@pytest.mark.parametrize("bound", [None, 10.0])
@pytest.mark.parametrize("group", [2, 3, 7])
def test_groups_are_left_out_together(group, bound):
    """Of rows against themselves and against keys, also where tiles end within a group."""
    rows = vectors(6 * group, "float64", 1)
    keys = vectors(9 * group, "float64", 2)
    for operands, offset in (((rows,), 0), ((rows, keys), 2 * group)):
        others = operands[-1]
        similarity = rows @ others.T
        own = (offset + np.arange(len(rows)))[:, None] // group == np.arange(len(others)) // group
        expected = np.log(np.where(own, 0, np.exp(similarity)).sum(1))

        def walk(*x, offset=offset):
            own_key = offset if len(x) == 2 else None
            return streaming_similarity.log_sum_exp(*x, own_key=own_key, bound=bound, group=group)

        def dense(*x, offset=offset):
            own_key = offset if len(x) == 2 else None
            return streaming_similarity.dense_log_sum_exp(*x, own_key=own_key, group=group)

        wanted = run("eager", dense, *operands)
        np.testing.assert_allclose(wanted[0], expected, rtol=1e-12)
        for mode in FEW_MODES:
            assert_close(run(mode, walk, *operands), wanted, "float64")


@pytest.mark.first(1)
@pytest.mark.parametrize("bound", [None, 10.0])
def test_second_derivative_of_rows_against_keys(bound):
    rows, keys = (tf.constant(vectors(n, "float64", n)) for n in (21, 50))

    def second(function):
        with tf.GradientTape() as outer:
            outer.watch((rows, keys))
            with tf.GradientTape() as inner:
                inner.watch((rows, keys))
                value = tf.reduce_sum(function(rows, keys) ** 2)
            total = tf.add_n(
                [tf.reduce_sum(tf.sin(x)) for x in inner.gradient(value, (rows, keys))]
            )
        return outer.gradient(total, (rows, keys))

    def walk(rows, keys):
        return streaming_similarity.log_sum_exp(rows, keys, 3, bound)

    expected = second(lambda rows, keys: streaming_similarity.dense_log_sum_exp(rows, keys, 3))
    for function in (walk, tf.function(walk, autograph=False)):
        for x, y in zip(second(function), expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)


def test_own_key_may_be_a_tensor():
    rows, keys = vectors(20, "float32", 0), vectors(50, "float32", 1)
    expected, _, _ = oracle(rows, keys, left_out=lambda i: 20 + i)
    got = streaming_similarity.log_sum_exp(rows, keys, own_key=tf.constant(20))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_dense_formula_is_the_same():
    rows, keys = vectors(20, "float64", 0), vectors(50, "float64", 1)
    np.testing.assert_allclose(
        streaming_similarity.dense_log_sum_exp(rows, keys, 20),
        oracle(rows, keys, left_out=lambda i: 20 + i)[0],
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        streaming_similarity.dense_log_sum_exp(rows),
        oracle(rows, rows, left_out=lambda i: i)[0],
        rtol=1e-12,
    )


@pytest.mark.first(1)
@pytest.mark.parametrize("pairs", [0, 10**6])
def test_few_pairs_take_the_dense_formula_and_agree(monkeypatch, pairs):
    monkeypatch.setattr(streaming_similarity, "DENSE_PAIRS", pairs)
    rows = vectors(40, "float32", 3)
    value, for_rows, for_keys = oracle(rows, rows, left_out=lambda i: i)
    for mode in ("eager", "unknown", "XLA"):
        got = run(mode, lambda z: streaming_similarity.log_sum_exp(z, bound=10.0), rows)
        assert_close(got, (value, for_rows + for_keys), "float32")


@pytest.mark.first(1)
@pytest.mark.parametrize("bound", [None, 10.0])
@pytest.mark.parametrize("in_graph", [False, True])
def test_second_derivative(bound, in_graph):
    """Along a direction, against central differences of the gradient."""
    rows = tf.constant(vectors(40, "float64", 5))
    direction = tf.constant(vectors(40, "float64", 6))

    def function(z):
        return tf.reduce_sum(streaming_similarity.log_sum_exp(z, bound=bound) ** 2)

    if in_graph:
        function = tf.function(function)

    def gradient(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = function(z)
        return tape.gradient(value, z)

    with tf.GradientTape() as tape:
        tape.watch(rows)
        along = tf.reduce_sum(gradient(rows) * direction)
    second = tape.gradient(along, rows)
    step = 1e-5
    expected = (gradient(rows + step * direction) - gradient(rows - step * direction)) / (2 * step)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("size", [1.0, 30.0, 39.0, 45.0, 60.0, 100.0])
def test_a_row_far_below_the_bound_does_not_underflow(size):
    """The only key of each row is opposite: log-sum-exp is −size, 2 · size below the bound."""
    rows = vectors(1, "float32", 2, squared_norm=size)
    value, gradient = run(
        "eager",
        lambda z: streaming_similarity.log_sum_exp(z, bound=size),
        np.concatenate([rows, -rows]),
    )
    np.testing.assert_allclose(value, [-size, -size], rtol=1e-5)
    np.testing.assert_allclose(gradient, np.concatenate([-3 * rows, 3 * rows]), rtol=1e-4)


@pytest.mark.slow
def test_second_derivative_with_only_the_walk_in_the_graph():
    """The padding's −inf must not meet the zero cotangents that TensorFlow sends there."""
    rows = tf.constant(vectors(41, "float64", 5))

    def second(function):
        with tf.GradientTape() as outer:
            outer.watch(rows)
            with tf.GradientTape() as inner:
                inner.watch(rows)
                value = tf.reduce_sum(function(rows) ** 2)
            first = inner.gradient(value, rows)
            total = tf.reduce_sum(tf.sin(first))
        return outer.gradient(total, rows)

    walk = tf.function(streaming_similarity.log_sum_exp, autograph=False)
    expected = second(streaming_similarity.dense_log_sum_exp)
    np.testing.assert_allclose(second(walk), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [1e-3, 40.0, 41.0, 2e3, 1e6])
def test_similarities_of_any_size(size):
    """Without a bound nothing over- or underflows, however large the similarities."""
    rows = vectors(50, "float32", 7, squared_norm=size)
    value, for_rows, for_keys = oracle(rows, rows, left_out=lambda i: i)
    got = run("eager", streaming_similarity.log_sum_exp, rows)
    # Rounding of a similarity of this size, which the exponential then magnifies.
    tolerance = max(5e-6, 4e-7 * size)
    np.testing.assert_allclose(got[0], value, rtol=1e-5, atol=1e-5)
    if tolerance < 0.1:
        expected = for_rows + for_keys
        np.testing.assert_allclose(got[1], expected, atol=tolerance * np.abs(expected).max())
    assert np.isfinite(got[1]).all()


@pytest.mark.first(1)
@pytest.mark.parametrize("bound", [None, 10.0])
def test_a_row_without_keys_and_no_rows_at_all(bound):
    value, gradient = run(
        "eager",
        lambda z: streaming_similarity.log_sum_exp(z, bound=bound),
        vectors(1, "float32", 0),
    )
    assert value.numpy() == [-np.inf]
    np.testing.assert_array_equal(gradient, np.zeros((1, DIM)))
    nothing = np.zeros((0, DIM), "float32")
    value, gradient = run(
        "unknown", lambda z: streaming_similarity.log_sum_exp(z, bound=bound), nothing
    )
    assert value.shape == (0,) and gradient.shape == (0, DIM)
    keys = vectors(20, "float32", 1)
    value, for_rows, for_keys = run(
        "unknown",
        lambda rows, keys: streaming_similarity.log_sum_exp(rows, keys, 0, bound),
        nothing,
        keys,
    )
    assert value.shape == (0,) and for_rows.shape == (0, DIM)
    np.testing.assert_array_equal(for_keys, np.zeros_like(keys))


@pytest.mark.parametrize("bound", [None, 10.0])
def test_nan_stays_nan(bound):
    rows = vectors(40, "float32", 0)
    rows[3, 2] = np.nan
    value = streaming_similarity.log_sum_exp(tf.constant(rows), bound=bound)
    assert np.isnan(value).all()
