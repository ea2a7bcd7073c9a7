import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from keras_sslmeta.losses.sig_reg import SIGReg
from keras_sslmeta.mechanisms import row_functions


def embeddings(shape=(7, 2, 4), seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def trapezoid(values, points):
    return sum(
        (values[k] + values[k + 1]) / 2 * (points[k + 1] - points[k])
        for k in range(len(points) - 1)
    )


def oracle(z, directions, knots=17, limit=5.0):
    """Algorithm 1 of the paper with complex exponentials, direction by direction, in complex128."""
    z = z.astype("float64")
    z = z[:, None] if z.ndim == 2 else z
    t = np.linspace(-limit, limit, knots)
    normal = np.exp(-0.5 * t**2)
    values = []
    for v in range(z.shape[1]):
        for direction in np.asarray(directions):
            projections = z[:, v] @ direction
            empirical = np.mean(np.exp(1j * projections[:, None] * t), axis=0)
            integrand = np.abs(empirical - normal) ** 2 * normal
            values.append(len(z) * trapezoid(integrand, t))
    return np.mean(values)


def gradient(loss, z, step=None):
    z = tf.convert_to_tensor(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(step, z)
    return value, tape.gradient(value, z)


@pytest.mark.parametrize("shape", [(7, 4), (7, 1, 4), (7, 2, 4), (7, 3, 4), (1, 2, 4)])
@pytest.mark.parametrize(("knots", "limit"), [(17, 5.0), (33, 3.0), (4, 2.0)])
def test_equals_the_paper_direction_by_direction(shape, knots, limit):
    z, loss = embeddings(shape), SIGReg(9, knots, limit)
    expected = oracle(z, loss.draw_directions(4), knots, limit)
    np.testing.assert_allclose(loss(None, z), expected, rtol=1e-5)
    values = SIGReg(9, knots, limit, reduction=None)(None, z)
    np.testing.assert_allclose(values, np.full(len(z), expected), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3)])
def test_gradient_by_finite_differences(shape):
    z = embeddings(shape, dtype="float64")
    loss = SIGReg(5, dtype="float64")
    directions = loss.draw_directions(3, 11)
    value, got = gradient(loss, z, step=11)
    np.testing.assert_allclose(value, oracle(z, directions), rtol=1e-12)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected = (oracle(up, directions) - oracle(down, directions)) / (2 * step)
        np.testing.assert_allclose(got.numpy()[index], expected, rtol=1e-4, atol=1e-7)


def test_blocks_of_directions_change_nothing(monkeypatch):
    z = embeddings((6, 2, 4), dtype="float64")
    loss = SIGReg(23, dtype="float64")
    expected_value, expected = gradient(loss, z)
    monkeypatch.setattr(row_functions, "PAIRS", 30)  # 5 directions at a time
    value, got = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_second_derivative():
    z = embeddings((3, 2), dtype="float64")
    loss = SIGReg(4, dtype="float64")

    def slope(z):
        """A function of the gradient, and its own gradient."""
        z = tf.constant(z)
        with tf.GradientTape() as outer:
            outer.watch(z)
            _, first = gradient(loss, z)
            value = tf.reduce_sum(first**2)
        return value.numpy(), outer.gradient(value, z).numpy()

    _, got = slope(z)
    step = 1e-6
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected = (slope(up)[0] - slope(down)[0]) / (2 * step)
        np.testing.assert_allclose(got[index], expected, rtol=1e-4, atol=1e-7)


def test_directions():
    loss = SIGReg(4000)
    directions = loss.draw_directions(3).numpy()
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-12)
    # Isotropic: no mean, and a third of the square in each dimension.
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(directions.T @ directions / 4000, np.eye(3) / 3, atol=0.03)
    np.testing.assert_array_equal(directions, SIGReg(4000).draw_directions(3, 0))
    others = (loss.draw_directions(3, 1), SIGReg(4000, seed=1).draw_directions(3))
    for other in others:
        np.testing.assert_allclose(np.mean(np.sum(directions * other, axis=1)), 0, atol=0.05)
    assert np.abs(others[0] - others[1]).max() > 0.1


def test_steps():
    z, loss = embeddings(), SIGReg(8)
    values = [float(loss(step, z)) for step in (0, 1, 2, 2**31 - 1)]
    assert len(set(values)) == 4
    assert loss(None, z) == values[0]
    iterations = keras.Variable(2, dtype="int64")
    for step in (np.int32(2), np.array(2), tf.constant(2), tf.Variable(2), iterations):
        assert loss(step, z) == values[2]
    in_graph = tf.function(lambda step: loss(step, z))
    np.testing.assert_allclose(in_graph(tf.constant(2)), values[2], rtol=1e-5)
    # Labels are no step.
    for labels in (np.arange(7), np.array(["a"] * 7), z, np.ones((7, 1), "int64")):
        assert loss(labels, z) == values[0]
    for bad in (2.0, tf.constant(2.0), True):
        with pytest.raises(ValueError, match="`y_true` must be None or the step"):
            loss(bad, z)


def test_normal_embeddings_have_the_expected_value_of_the_statistic():
    """E B |φ_a − φ|² = 1 − φ², whatever B."""
    t = np.linspace(-5, 5, 17)
    normal = np.exp(-0.5 * t**2)
    expected = trapezoid((1 - normal**2) * normal, t)
    values = [SIGReg(256, seed=s)(None, embeddings((64, 8), seed=s)) for s in range(20)]
    np.testing.assert_allclose(np.mean(values), expected, rtol=0.1)


@pytest.mark.parametrize("batch", [1, 5])
def test_collapsed_embeddings(batch):
    t = np.linspace(-5, 5, 17)
    normal = np.exp(-0.5 * t**2)
    value, got = gradient(SIGReg(8), np.zeros((batch, 4), "float32"))
    np.testing.assert_allclose(value, batch * trapezoid((1 - normal) ** 2 * normal, t), rtol=1e-5)
    np.testing.assert_array_equal(got, np.zeros((batch, 4)))
    value, got = gradient(SIGReg(8), np.ones((batch, 2, 4), "float32"))
    assert np.isfinite(value) and np.isfinite(got).all() and np.abs(got).max() > 0


def test_steps_make_embeddings_standard():
    z = tf.constant(embeddings((48, 2)) * np.array([2.0, 0.3], "float32") + 0.5)
    loss = SIGReg(16)
    for step in range(40):
        z -= 2 * gradient(loss, z, step)[1]
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=0.2)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=0.4)


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_half_precision(dtype, rtol):
    z, loss = embeddings(), SIGReg(32)
    expected = oracle(z, loss.draw_directions(4))
    np.testing.assert_allclose(loss(None, tf.cast(z, dtype)), expected, rtol=rtol)
    half = SIGReg(32, dtype=dtype)(None, z)
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, "float32"), expected, rtol=2 * rtol)
    large = tf.cast(1e4 * z / np.abs(z).max(), dtype)
    value, got = gradient(loss, large)
    assert np.isfinite(value) and np.isfinite(tf.cast(got, "float32")).all()


def test_nan_stays_nan():
    z = embeddings()
    z[0, 0, 0] = np.nan
    assert np.isnan(SIGReg(8)(None, z))


def test_unknown_batch_and_empty_batch():
    loss = SIGReg(8, gather=False)
    function = tf.function(
        lambda z: gradient(loss, z), input_signature=[tf.TensorSpec([None, 2, 4])]
    )
    z = embeddings()
    value, got = function(z)
    expected_value, expected = gradient(loss, z)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    value, got = function(z[:0])
    assert value == 0 and got.shape == (0, 2, 4)


def test_config():
    loss = SIGReg(8, 9, 3.0, seed=4, gather=False, reduction="sum", name="mine", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.directions, again.knots, again.limit, again.seed) == (8, 9, 3.0, 4)
    z = embeddings(dtype="float64")
    assert again(3, z) == loss(3, z)


@pytest.mark.parametrize(
    ("name", "value", "required"),
    [
        ("directions", 0, "a positive integer"),
        ("directions", 1.5, "a positive integer"),
        ("knots", 2, "an integer from 3"),
        ("limit", 0, "a positive number"),
        ("seed", -1, "an integer from 0"),
        ("seed", None, "an integer from 0"),
    ],
)
def test_refused_arguments(name, value, required):
    with pytest.raises(ValueError, match=f"`{name}` must be {required}") as error:
        SIGReg(**{name: value})
    assert repr(value) in str(error.value)


def test_refused_inputs():
    loss, z = SIGReg(8), embeddings()
    for bad, message in (
        (z[0, 0], r"\(batch, dim\) or \(batch, views, dim\)"),
        (z[None], r"\(batch, dim\) or \(batch, views, dim\)"),
        (z.astype("int32"), "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(None, bad)
    with pytest.raises(ValueError, match="sample_weight"):
        loss(None, z, sample_weight=np.ones(7))


@pytest.mark.parametrize("step", [0, 1, 2**31 + 5])
def test_xla_draws_the_same_directions(step):
    loss = SIGReg(64)
    compiled = tf.function(loss.draw_directions, jit_compile=True, autograph=False)
    expected = loss.draw_directions(5, tf.constant(step, tf.int64))
    np.testing.assert_allclose(compiled(5, tf.constant(step, tf.int64)), expected, atol=1e-12)


def test_directions_are_uniform_on_the_sphere():
    directions = np.asarray(SIGReg(20_000).draw_directions(3))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=5 / np.sqrt(3 * 20_000))
    covariance = directions.T @ directions / len(directions)
    np.testing.assert_allclose(covariance, np.eye(3) / 3, atol=0.02)
    # On a sphere in three dimensions each coordinate is uniform on [−1, 1].
    assert scipy.stats.kstest(directions[:, 0], "uniform", args=(-1, 2)).pvalue > 1e-3
