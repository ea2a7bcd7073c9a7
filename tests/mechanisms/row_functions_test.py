import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import row_functions


def data(n=7, m=5, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), rng.normal(size=(m, dim))


def value_and_gradients(function, rows, keys, *per_row, shape=(), direct=False):
    rows, keys = tf.convert_to_tensor(rows), tf.convert_to_tensor(keys)
    with tf.GradientTape() as tape:
        tape.watch((rows, keys))
        if direct:
            value = function(rows, keys, *per_row)
        else:
            value = row_functions.of_rows(function, rows, keys, *per_row, shape=shape)
        weights = tf.reshape(
            tf.range(1.0, tf.cast(tf.size(value), tf.float64) + 1), tf.shape(value)
        )
        total = tf.reduce_sum(tf.cast(weights, value.dtype) * value)
    slopes = tape.gradient(total, (rows, keys), unconnected_gradients="zero")
    return value, *map(tf.convert_to_tensor, slopes)


def softmax_of_chosen(rows, keys, weights, number, chosen):
    """Depends on everything; the other arguments are of three types."""
    products = tf.matmul(rows, keys, transpose_b=True)
    products = tf.where(chosen[:, None] & (products > 0), products, products / 2)
    return (
        weights * tf.reduce_logsumexp(products, axis=1) + tf.cast(number, rows.dtype) * rows[:, 0]
    )


def per_row(n=7):
    rng = np.random.default_rng(1)
    return rng.normal(size=n), np.arange(n, dtype="int32"), rng.normal(size=n) > 0


def check(got, expected, rtol=1e-12):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14)


@pytest.mark.first(7)
@pytest.mark.parametrize("pairs", [1, 4, 5, 11, 20, 35, 1000])
@pytest.mark.parametrize("mode", ["eager", "graph", "compiled", "unknown"])
def test_equals_the_function_at_once(pairs, mode, monkeypatch):
    """From a block for each row, also where a row has more keys than pairs are allowed, to one block."""
    rows, keys = data()
    expected = value_and_gradients(softmax_of_chosen, rows, keys, *per_row(), direct=True)
    monkeypatch.setattr(row_functions, "PAIRS", pairs)
    sizes = []

    def function(rows, keys, *others):
        sizes.append(rows.shape[0])
        return softmax_of_chosen(rows, keys, *others)

    def step(rows, keys, *others):
        return value_and_gradients(function, rows, keys, *others)

    arguments = [tf.convert_to_tensor(x) for x in (rows, keys, *per_row())]
    if mode == "graph":
        step = tf.function(step)
    elif mode == "compiled":
        step = tf.function(step, jit_compile=True)
    elif mode == "unknown":
        specs = [tf.TensorSpec([None, 3], tf.float64)] * 2
        specs += [tf.TensorSpec([None], x.dtype) for x in arguments[2:]]
        step = tf.function(step, input_signature=specs)
    check(step(*arguments), expected)
    if mode != "unknown":
        assert max(sizes) == min(7, max(1, pairs // 5))


@pytest.mark.first(2)
@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("pairs", [2, 1000])
def test_few_rows_of_an_unknown_number(n, pairs, monkeypatch):
    monkeypatch.setattr(row_functions, "PAIRS", pairs)
    rows, keys = data(n)
    specs = [tf.TensorSpec([None, 3], tf.float64)] * 2
    specs += [tf.TensorSpec([None], dtype) for dtype in ("float64", "int32", "bool")]
    step = tf.function(lambda *x: value_and_gradients(softmax_of_chosen, *x), input_signature=specs)
    got = step(*map(tf.convert_to_tensor, (rows, keys, *per_row(n))))
    check(got, value_and_gradients(softmax_of_chosen, rows, keys, *per_row(n), direct=True))
    assert got[0].shape == (n,) and got[1].shape == (n, 3)


def test_no_rows_and_no_keys():
    step = tf.function(
        lambda *x: value_and_gradients(
            lambda rows, keys: tf.reduce_sum(rows @ tf.transpose(keys), 1), *x
        ),
        input_signature=[tf.TensorSpec([None, 3], tf.float64)] * 2,
    )
    value, for_rows, for_keys = step(np.zeros((0, 3)), np.zeros((0, 3)))
    assert value.shape == (0,) and for_rows.shape == for_keys.shape == (0, 3)


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_results_of_any_shape(shape, monkeypatch):
    def function(rows, keys):
        products = tf.reduce_max(tf.matmul(rows, keys, transpose_b=True), axis=1)
        result = tf.stack([products, products**2], axis=1)
        return result if shape == (2,) else result[:, :, None] * rows[:, None]

    rows, keys = data()
    expected = value_and_gradients(function, rows, keys, direct=True)
    monkeypatch.setattr(row_functions, "PAIRS", 10)
    check(value_and_gradients(function, rows, keys, shape=shape), expected)
    assert expected[0].shape == (7, *shape)


def test_rows_that_are_the_keys(monkeypatch):
    def loss(z):
        return tf.reduce_sum(
            row_functions.of_rows(lambda r, k: tf.reduce_logsumexp(r @ tf.transpose(k), 1), z, z)
        )

    z, grads = tf.constant(data()[0]), []
    for pairs in (1000, 14):
        monkeypatch.setattr(row_functions, "PAIRS", pairs)
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(z)
        grads.append((value, tape.gradient(value, z)))
    check(grads[1], grads[0])


def test_gathered_keys_and_ignored_arguments(monkeypatch):
    """Gradients of gathering come as slices; of what a function ignores there is none."""
    rows, keys = data()
    monkeypatch.setattr(row_functions, "PAIRS", 10)

    def nearest(rows, keys):
        best = tf.argmax(tf.matmul(rows, keys, transpose_b=True), axis=1)
        return tf.reduce_sum(rows * tf.gather(keys, best), axis=1)

    def of_rows_alone(rows, keys):
        return tf.reduce_sum(rows**2, axis=1)

    for function in (nearest, of_rows_alone):
        expected = value_and_gradients(function, rows, keys, direct=True)
        for step in (value_and_gradients, tf.function(value_and_gradients)):
            check(step(function, tf.constant(rows), tf.constant(keys)), expected)


def test_float32_stays_float32(monkeypatch):
    monkeypatch.setattr(row_functions, "PAIRS", 10)
    rows, keys = (x.astype("float32") for x in data())
    got = value_and_gradients(lambda r, k: tf.reduce_max(r @ tf.transpose(k), 1), rows, keys)
    assert all(x.dtype == tf.float32 for x in got)


def test_padding_reaches_neither_value_nor_gradient(monkeypatch):
    """Rows of zeros pad the last block: their share of the keys' gradient must be nothing."""
    monkeypatch.setattr(row_functions, "PAIRS", 4 * 5)  # 7 rows are blocks of 4 and 3.
    rows, keys = data()

    def function(rows, keys):
        return tf.reduce_sum(tf.exp(tf.matmul(rows, keys, transpose_b=True)) + keys[:, 0], axis=1)

    got = value_and_gradients(function, rows, keys)
    check(got, value_and_gradients(function, rows, keys, direct=True))


def test_static_shapes_survive(monkeypatch):
    monkeypatch.setattr(row_functions, "PAIRS", 10)

    @tf.function
    def step(rows, keys):
        value = row_functions.of_rows(
            lambda r, k: tf.reduce_max(r @ tf.transpose(k), 1), rows, keys
        )
        assert value.shape == (7,)
        return value

    step(*map(tf.constant, data()))
