import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses import NTXent

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"


def embeddings(batch=5, views=2, dim=8, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, views, dim)).astype(dtype)


def oracle(z, temperature, normalize=True):
    """Equation 1 of the paper, sum by sum, in float64; one value a sample."""
    z = z.astype("float64")
    if normalize:
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    batch, views, _ = z.shape
    everyone = [(k, w) for k in range(batch) for w in range(views)]
    values = np.zeros(batch)
    for i, v in everyone:
        logits = {(k, w): z[i, v] @ z[k, w] / temperature for k, w in everyone if (k, w) != (i, v)}
        largest = max(logits.values())
        denominator = largest + math.log(sum(math.exp(s - largest) for s in logits.values()))
        positives = [logits[i, u] for u in range(views) if u != v]
        values[i] += (denominator - np.mean(positives)) / views
    return values


def gradient(loss, z):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(None, z)
    return value, tape.gradient(value, z)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values_of_lightly():
    golden = np.load(GOLDEN)
    cases = sorted({key.rsplit("/", 1)[0] for key in golden.files if key.startswith("nt_xent/")})
    assert cases
    for case in cases:
        value, got = gradient(NTXent(float(golden[f"{case}/temperature"])), golden[f"{case}/z"])
        expected = golden[f"{case}/grad_z"]
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.03, 0.1, 0.5, 10.0])
@pytest.mark.parametrize("views", [2, 3])
def test_equals_the_paper_sum_by_sum(temperature, views):
    z = embeddings(views=views)
    got = NTXent(temperature, reduction=None)(None, z)
    np.testing.assert_allclose(got, oracle(z, temperature), rtol=2e-5, atol=1e-5)
    mean = NTXent(temperature)(None, z)
    np.testing.assert_allclose(mean, oracle(z, temperature).mean(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_gradient_by_finite_differences(temperature, normalize):
    z = embeddings(dtype="float64")
    loss = NTXent(temperature, normalize=normalize, dtype="float64")
    value, got = gradient(loss, z)
    np.testing.assert_allclose(value, oracle(z, temperature, normalize).mean(), rtol=1e-12)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected = (
            oracle(up, temperature, normalize).mean() - oracle(down, temperature, normalize).mean()
        )
        np.testing.assert_allclose(got.numpy()[index], expected / (2 * step), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.1])
def test_the_gradient_survives_convergence(temperature, views):
    """Nearly equal views at a low temperature: losses of 1e-6, whose gradient rounding must not drown."""
    z = embeddings(batch=100, views=views, dim=128, dtype="float64")
    z[:, 1:] = z[:, :1] + 1e-3 * z[:, 1:]
    value, got = gradient(NTXent(temperature), z.astype("float32"))
    wide = tf.constant(z.astype("float32").astype("float64"))
    with tf.GradientTape() as tape:
        tape.watch(wide)
        unit = tf.reshape(tf.math.l2_normalize(wide, -1), [100 * views, 128])
        logits = unit @ tf.transpose(unit) / temperature
        logits = tf.linalg.set_diag(logits, np.full(100 * views, -np.inf))
        own = np.kron(np.eye(100), np.ones((views, views)) - np.eye(views))
        positive = tf.reduce_sum(tf.where(own > 0, logits, 0.0), axis=1) / (views - 1)
        expected = tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - positive)
    wanted = tape.gradient(expected, wide)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    if (
        views == 2
    ):  # With more, the positives compete, and the gradient is as small as its terms' rounding.
        assert value > 0
        error = np.linalg.norm(got.numpy() - wanted.numpy()) / np.linalg.norm(wanted)
        assert error < 1e-4, error


def test_a_mask_says_nothing_about_samples():
    inputs = keras.Input((2, 8))
    masked = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Masking()(inputs)))
    masked.compile(loss=NTXent())
    x = embeddings(batch=12)
    got = masked.evaluate(x, batch_size=12, verbose=0)
    np.testing.assert_allclose(got, oracle(masked.predict(x, verbose=0), 0.1).mean(), rtol=1e-4)


def test_closed_forms():
    same = np.ones((8, 2, 4), "float32")
    np.testing.assert_allclose(NTXent()(None, same), math.log(15), rtol=1e-6)
    # Orthogonal samples with equal views: −1/T + log(e^{1/T} + 2B − 2).
    orthogonal = np.repeat(np.eye(4, dtype="float32")[:, None], 2, axis=1)
    for temperature in (0.1, 0.5):
        expected = -1 / temperature + math.log(math.exp(1 / temperature) + 6)
        got = NTXent(temperature)(None, orthogonal)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_compared_in_float32(dtype, tolerance):
    z = tf.cast(embeddings(batch=16, dim=32), dtype)
    expected = oracle(tf.cast(z, tf.float64).numpy(), 0.1).mean()
    # What Keras casts to the loss's float32 is exact up to float32.
    np.testing.assert_allclose(NTXent()(None, z), expected, rtol=1e-5)
    value = NTXent(dtype=dtype)(None, z)
    assert value.dtype == dtype
    np.testing.assert_allclose(tf.cast(value, tf.float32), expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradient_is_that_of_float32(dtype):
    """At a temperature where similarities in half precision would be off by whole units."""
    z = tf.cast(embeddings(batch=16, dim=32), dtype)
    _, got = gradient(NTXent(0.01, dtype=dtype), z)
    _, expected = gradient(NTXent(0.01), tf.cast(z, tf.float32))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(tf.cast(got, tf.float32), expected, rtol=2e-2, atol=2e-2 * scale)


@pytest.mark.parametrize("temperature", [0.005, 0.05])
def test_several_tiles_at_a_low_temperature_near_convergence(temperature):
    """2,200 rows are three blocks; value and gradient against the dense formula in float64."""
    near = embeddings(batch=1100, views=1, dim=16)
    z = np.concatenate([near, near + 0.01 * embeddings(1100, 1, 16, seed=1)], axis=1)
    value, got = gradient(NTXent(temperature), z)

    def dense(_, z):
        flat = tf.reshape(tf.math.l2_normalize(z, axis=-1), [-1, 16]) / temperature**0.5
        logits = tf.matmul(flat, flat, transpose_b=True)
        logits = tf.linalg.set_diag(logits, tf.fill([2200], tf.constant(-np.inf, tf.float64)))
        positives = tf.gather(logits, tf.bitwise.bitwise_xor(tf.range(2200), 1), batch_dims=1)
        return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - positives)

    expected, exact = gradient(dense, z.astype("float64"))
    np.testing.assert_allclose(value, expected, rtol=1e-2)  # Down to 2e-14.
    np.testing.assert_allclose(got, exact, atol=1e-4 * np.abs(exact).max())


def test_large_half_precision_embeddings_do_not_overflow():
    z = tf.cast(embeddings() * 1e4, tf.float16)
    value, got = gradient(NTXent(), z)
    np.testing.assert_allclose(value, oracle(z.numpy(), 0.1).mean(), rtol=1e-4)
    assert np.isfinite(got).all()


def test_zero_embeddings_are_finite_and_get_no_gradient():
    z = embeddings()
    z[2, 1] = 0
    value, got = gradient(NTXent(), z)
    assert np.isfinite(value) and np.isfinite(got).all()
    np.testing.assert_array_equal(got.numpy()[2, 1], np.zeros(8))
    assert np.abs(got.numpy()[2, 0]).max() > 0


def test_nan_gives_nan():
    z = embeddings()
    z[0, 0, 0] = np.nan
    assert np.isnan(NTXent()(None, z))


def test_sample_weights_weigh_samples_and_leave_them_as_negatives():
    z, weights = embeddings(), np.array([0.0, 1.0, 2.0, 0.5, 0.0], "float32")
    values = oracle(z, 0.1)
    np.testing.assert_allclose(
        NTXent()(None, z, sample_weight=weights), (values * weights).sum() / 5, rtol=1e-5
    )
    np.testing.assert_allclose(
        NTXent(reduction="mean_with_sample_weight")(None, z, sample_weight=weights),
        (values * weights).sum() / weights.sum(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(NTXent(reduction="sum")(None, z), values.sum(), rtol=1e-5)


@pytest.mark.first(2)
@pytest.mark.parametrize("settings", [{}, {"run_eagerly": True}, {"jit_compile": True}])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_every_way_of_training_a_plain_model_is_the_same(settings, temperature):
    """A step of gradient descent on the embeddings themselves, against the oracle's gradient."""
    start = embeddings(batch=6, seed=1)
    weights = np.linspace(0.5, 1.5, 6).astype("float32")

    def train(loss, **compile_settings):
        inputs = keras.Input((1,), dtype="int32")
        table = keras.layers.Embedding(
            6, 16, embeddings_initializer=lambda *_, **__: start.reshape(6, 16)
        )
        outputs = keras.layers.Reshape((2, 8))(table(inputs))
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(1.0), loss=loss, **compile_settings)
        ids = np.arange(6)[:, None]
        history = model.fit(
            ids, np.zeros(6), sample_weight=weights, batch_size=6, shuffle=False, verbose=0
        )
        return history.history["loss"][0], table.get_weights()[0].reshape(6, 2, 8)

    value, after = train(NTXent(temperature), **settings)
    np.testing.assert_allclose(value, (oracle(start, temperature) * weights).mean(), rtol=1e-5)
    wide = tf.constant(start, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(wide)
        z = tf.reshape(tf.math.l2_normalize(wide, -1), [12, 8])
        logits = tf.linalg.set_diag(z @ tf.transpose(z) / temperature, np.full(12, -np.inf))
        own = tf.reduce_sum(z * tf.reshape(tf.reverse(tf.reshape(z, [6, 2, 8]), [1]), [12, 8]), 1)
        losses = tf.reduce_logsumexp(logits, 1) - own / temperature
        total = tf.reduce_mean(tf.reduce_mean(tf.reshape(losses, [6, 2]), 1) * weights)
    np.testing.assert_allclose(start - after, tape.gradient(total, wide), rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_fits_without_labels_with_labels_and_from_datasets():
    x = embeddings(batch=20)

    def history(*data, **kwargs):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2, 8)), keras.layers.Dense(4)])
        model.compile("sgd", loss=NTXent(), jit_compile=False)  # XLA takes no strings.
        return model.fit(*data, shuffle=False, verbose=0, **kwargs).history["loss"]

    expected = history(x, batch_size=8)
    assert history(x, np.arange(20), batch_size=8) == expected
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8)
    assert history(dataset) == expected
    strings = tf.data.Dataset.from_tensor_slices((x, np.array(["a"] * 20))).batch(8)
    assert history(strings) == expected


@pytest.mark.slow
def test_a_batch_that_turns_out_to_hold_one_sample_costs_nothing():
    @tf.function(input_signature=[tf.TensorSpec([None, 2, 8])])
    def step(z):
        return gradient(NTXent(), z)

    value, got = step(embeddings(batch=1))
    assert value == 0
    np.testing.assert_array_equal(got, np.zeros((1, 2, 8)))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "0.1", None, True])
def test_refuses_temperatures(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be a positive number\. Received"):
        NTXent(temperature)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 8), r"of shape \(batch, views, dim\).*\(4, 8\)"),
        ((4, 2, 3, 8), r"of shape \(batch, views, dim\).*\(4, 2, 3, 8\)"),
        ((4, 1, 8), r"at least two views.*\(4, 1, 8\)"),
        ((1, 2, 8), r"no negatives.*\(1, 2, 8\)"),
    ],
)
def test_refuses_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        NTXent()(None, np.ones(shape, "float32"))


def test_refuses_integers():
    with pytest.raises(ValueError, match=r"NTXent needs floating-point.*int64"):
        NTXent()(None, np.ones((4, 2, 8), "int64"))


@pytest.mark.slow
def test_a_large_batch_in_half_precision_does_not_overflow():
    z = tf.cast(embeddings(batch=8192, dim=4), "float16")
    value = NTXent(dtype="float16")(None, z)
    np.testing.assert_allclose(tf.cast(value, tf.float32), NTXent()(None, z), rtol=1e-3)


@pytest.mark.parametrize("y_pred", [None, [embeddings()[:, 0], embeddings()[:, 1]]])
def test_refuses_what_is_not_one_tensor(y_pred):
    with pytest.raises(ValueError, match="needs one tensor of embeddings as `y_pred`"):
        NTXent()(None, y_pred)


def test_config_is_complete():
    loss = NTXent(0.2, normalize=False, gather=False, reduction="sum", name="mine", dtype="float64")
    again = NTXent.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    assert (again.temperature, again.normalize, again.gather, again.dtype) == (
        0.2,
        False,
        False,
        "float64",
    )
