import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers.logit_scale import LogitScale


def embeddings(batch=4, dim=6, seed=0, dtype="float32"):
    """Of two modalities, `(2, batch, dim)`."""
    return np.random.default_rng(seed).normal(size=(2, batch, dim)).astype(dtype)


def oracle(a, c, scale, bias):
    """t · cos + b, pair by pair."""
    logits = np.zeros((len(a), len(c)))
    for i, x in enumerate(a.astype("float64")):
        for j, y in enumerate(c.astype("float64")):
            logits[i, j] = scale * (x @ y) / np.linalg.norm(x) / np.linalg.norm(y) + bias
    return logits


@keras.saving.register_keras_serializable(package="logit_scale_test")
class LogitsOfPairs(keras.losses.Loss):
    """The pairs' own logits, with a sign: a gradient that never saturates."""

    def __init__(self, sign=-1.0, **kwargs):
        super().__init__(**kwargs)
        self.sign = sign

    def call(self, y_true, y_pred):
        return self.sign * tf.reduce_sum(y_pred[:, 0] * y_pred[:, 1], axis=-1)

    def get_config(self):
        return {**super().get_config(), "sign": self.sign}


@pytest.mark.parametrize("bias", [None, 0.0, -10.0])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0, 5.0])
def test_products_are_scaled_cosines(temperature, bias):
    a, c = embeddings()
    layer = LogitScale(temperature, initial_bias=bias)
    pair = layer([a, c])
    assert isinstance(pair, list)
    assert pair[0].shape == pair[1].shape == (4, 6 if bias is None else 7)
    expected = oracle(a, c, 1 / temperature, bias or 0.0)
    got = tf.matmul(pair[0], pair[1], transpose_b=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 / temperature)
    as_tuple, stack = layer((a, c)), layer(np.stack([a, c], axis=1))
    assert isinstance(as_tuple, tuple)
    for i in range(2):
        np.testing.assert_array_equal(as_tuple[i], pair[i])
        np.testing.assert_allclose(stack[:, i], pair[i], rtol=1e-6)


def test_clips_and_siglips_starts():
    layer = LogitScale()
    layer.build((None, 2, 3))
    np.testing.assert_allclose(layer.log_scale, math.log(1 / 0.07), rtol=1e-6)
    assert layer.bias is None and len(layer.trainable_variables) == 1
    layer = LogitScale(0.1, max_scale=None, initial_bias=-10.0)
    layer.build((None, 2, 3))
    np.testing.assert_allclose(layer.log_scale, math.log(10), rtol=1e-6)
    np.testing.assert_allclose(layer.bias, -10.0)
    assert len(layer.trainable_variables) == 2


def test_gradients_by_finite_differences():
    a, c = embeddings(batch=3, dtype="float64")
    layer = LogitScale(0.5, initial_bias=-1.0, dtype="float64")
    layer.build([a.shape, c.shape])
    weights = np.random.default_rng(1).normal(size=(3, 3))
    x = tf.constant(a)
    with tf.GradientTape() as tape:
        tape.watch(x)
        one, two = layer([x, tf.constant(c)])
        value = tf.reduce_sum(tf.matmul(one, two, transpose_b=True) * weights)
    sources = [x, layer.log_scale.value, layer.bias.value]
    by_x, by_scale, by_bias = tape.gradient(value, sources)

    start = math.log(2)

    def f(a=a, log_scale=start, bias=-1.0):
        return (oracle(a, c, math.exp(log_scale), bias) * weights).sum()

    e = 1e-6
    np.testing.assert_allclose(
        by_scale, (f(log_scale=start + e) - f(log_scale=start - e)) / 2 / e, rtol=1e-6
    )
    np.testing.assert_allclose(by_bias, (f(bias=-1 + e) - f(bias=-1 - e)) / 2 / e, rtol=1e-6)
    for index in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[index] += e
        down[index] -= e
        np.testing.assert_allclose(
            by_x.numpy()[index], (f(up) - f(down)) / 2 / e, rtol=1e-5, atol=1e-8
        )


def test_zeros_are_finite():
    a, c = embeddings()
    a[0] = 0
    layer = LogitScale(initial_bias=-3.0)
    x = tf.constant(a)
    with tf.GradientTape() as tape:
        tape.watch(x)
        one, two = layer([x, c])
        logits = tf.matmul(one, two, transpose_b=True)
    np.testing.assert_allclose(logits[0], np.full(4, -3.0), rtol=1e-6)
    by_x = tape.gradient(logits, x)
    assert np.isfinite(by_x).all()
    np.testing.assert_array_equal(by_x[0], np.zeros(6))


def model_with_scale(policy="float32", **kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, 6))
    hidden = keras.layers.Dense(6, kernel_initializer="identity", dtype=policy)(inputs)
    return keras.Model(inputs, LogitScale(name="scale", dtype=policy, **kwargs)(hidden))


def pairs(batch=8):
    """Pairs that match: their logits are the scale itself, and the bias."""
    return np.repeat(embeddings(batch)[0][:, None], 2, axis=1)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}, {}]
)
def test_the_limit_is_a_constraint_with_a_way_back(settings):
    model = model_with_scale(initial_temperature=0.02)
    layer, settings = model.get_layer("scale"), {"jit_compile": False, **settings}
    # A step far beyond the limit: the gradient is −50.
    model.compile(keras.optimizers.SGD(1.0), LogitsOfPairs(), **settings)
    model.fit(pairs(), np.zeros(8), batch_size=4, verbose=0)
    np.testing.assert_allclose(layer.log_scale, math.log(100), rtol=1e-6)
    model.compile(keras.optimizers.SGD(1e-3), LogitsOfPairs(sign=1.0), **settings)
    model.fit(pairs(), np.zeros(8), batch_size=4, verbose=0)
    # By −0.001 · 100, and then −0.001 · 100 e^{−0.1}.
    expected = math.log(100) - 0.1 - 0.1 * math.exp(-0.1)
    np.testing.assert_allclose(layer.log_scale, expected, rtol=1e-5)


def test_without_a_limit_it_grows():
    model = model_with_scale(initial_temperature=0.02, max_scale=None)
    model.compile(keras.optimizers.SGD(0.1), LogitsOfPairs())
    model.fit(pairs(4), np.zeros(4), batch_size=4, verbose=0)
    np.testing.assert_allclose(model.get_layer("scale").log_scale, math.log(50) + 5, rtol=1e-5)


def test_weight_decay_can_leave_it_out():
    model = model_with_scale(initial_bias=-10.0)
    layer = model.get_layer("scale")
    for excluded in (True, False):
        optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
        if excluded:
            optimizer.exclude_from_weight_decay(var_names=["log_scale", "bias"])
        before = [float(w) for w in (layer.log_scale, layer.bias)]
        optimizer.build(model.trainable_variables)
        zeros = [tf.zeros(w.shape) for w in model.trainable_variables]
        optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
        after = [float(w) for w in (layer.log_scale, layer.bias)]
        factor = 1.0 if excluded else 0.95
        np.testing.assert_allclose(after, np.multiply(before, factor), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [None, -10.0])
def test_saving(bias, tmp_path):
    model = model_with_scale(initial_bias=bias)
    model.compile(keras.optimizers.SGD(0.01), LogitsOfPairs())
    x, y = embeddings(8).transpose(1, 0, 2), np.zeros(8)
    model.fit(x, y, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    layer, other = model.get_layer("scale"), again.get_layer("scale")
    assert float(layer.log_scale) != np.float32(math.log(1 / 0.07))
    for one, two in zip(layer.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)
    # The limit comes back too.
    again.compile(keras.optimizers.SGD(9.0), LogitsOfPairs())
    again.fit(pairs(), y, batch_size=4, verbose=0)
    np.testing.assert_allclose(other.log_scale, math.log(100), rtol=1e-6)


@pytest.mark.parametrize(
    ("policy", "given", "kept"),
    [
        ("float64", "float64", "float64"),
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "float32"),
    ],
)
def test_dtypes(policy, given, kept):
    layer = LogitScale(0.01, initial_bias=-10.03, dtype=policy)
    a, c = (tf.cast(x * 1e4, given) for x in embeddings())
    one, two = layer([a, c])
    assert one.dtype == two.dtype == layer.log_scale.dtype == layer.bias.dtype == kept
    expected = oracle(*(tf.cast(x, tf.float64).numpy() for x in (a, c)), 100.0, -10.03)
    np.testing.assert_allclose(
        tf.matmul(one, two, transpose_b=True), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fit_in_mixed_precision(policy):
    model = model_with_scale(policy, initial_temperature=0.02, initial_bias=-1.0)
    assert model.output.dtype == "float32"
    model.compile(keras.optimizers.SGD(1.0), LogitsOfPairs())
    # The wrapper that scales the loss must not leave the constraint out.
    model.fit(pairs(), np.zeros(8), batch_size=4, verbose=0)
    np.testing.assert_allclose(model.get_layer("scale").log_scale, math.log(100), rtol=1e-6)


@pytest.mark.parametrize("bias", [None, -10.0])
def test_symbolic_outputs(bias):
    dim = 6 if bias is None else 7
    layer = LogitScale(initial_bias=bias, dtype="mixed_float16")
    stack = layer(keras.KerasTensor((None, 2, 6)))
    assert (stack.shape, stack.dtype) == ((None, 2, dim), "float32")
    inputs = [keras.Input((6,)), keras.Input((6,))]
    outputs = LogitScale(initial_bias=bias)(inputs)
    model = keras.Model(inputs, outputs)
    assert [x.shape for x in outputs] == [(None, dim)] * 2
    a, c = embeddings()
    assert [x.shape for x in model([a, c])] == [(4, dim)] * 2


def test_config():
    layer = LogitScale(np.float32(0.1), None, -10, name="scale", dtype="mixed_float16")
    again = LogitScale.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.max_scale, again.initial_bias, again.name) == (None, -10.0, "scale")


@pytest.mark.parametrize(
    ("name", "value", "required"),
    [
        ("initial_temperature", 0, "a positive number"),
        ("initial_temperature", "0.1", "a positive number"),
        ("initial_temperature", 0.005, "at least 1/max_scale"),
        ("max_scale", -1.0, "a positive number"),
        ("max_scale", 2.0, "at least 1/max_scale"),
        ("max_scale", True, "a positive number"),
        ("initial_bias", float("nan"), "a number or None"),
        ("initial_bias", "-10", "a number or None"),
    ],
)
def test_refused(name, value, required):
    with pytest.raises(ValueError, match=f"must be {required}") as error:
        LogitScale(**{name: value})
    assert f"{name}={value!r}" in str(error.value)


def test_the_limit_itself_is_a_start():
    assert LogitScale(0.01).max_scale == 100
    assert LogitScale(1 / 3, max_scale=3).max_scale == 3


def test_refused_inputs():
    x = embeddings()
    for bad in (x[0], x, [x[0]], [x[0]] * 3, [x, x], np.zeros((4, 3, 6), "float32")):
        with pytest.raises(ValueError, match="`inputs` must be a stack of two modalities"):
            LogitScale()(bad)
