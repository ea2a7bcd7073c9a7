import math

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from keras_sslmeta.data import sinusoids


def drawn(count=600, **arguments):
    """Support x and y, query x and y of `count` episodes in float64, each `(count, points)`."""
    dataset = sinusoids(**{"seed": 0, **arguments}).take(count).batch(count)
    ((inputs, query_y),) = dataset.as_numpy_iterator()
    arrays = [inputs["support_x"], inputs["support_y"], inputs["query_x"], query_y]
    assert all(array.dtype == np.float32 and array.shape[2] == 1 for array in arrays)
    return [array[..., 0].astype("float64") for array in arrays]


def recovered(x, y):
    """A and φ of curves through points: A sin(x − φ) = A cos(φ) sin(x) − A sin(φ) cos(x)."""
    solved = [
        np.linalg.lstsq(np.stack([np.sin(row), np.cos(row)], axis=1), values, rcond=None)[0]
        for row, values in zip(x, y, strict=True)
    ]
    sine, cosine = np.transpose(solved)
    return np.hypot(sine, cosine), np.arctan2(-cosine, sine)


def test_support_and_queries_lie_on_one_curve_with_uniform_parameters():
    support_x, support_y, query_x, query_y = drawn(2000)
    a, phi = recovered(support_x, support_y)
    curve = a[:, np.newaxis] * np.sin(query_x - phi[:, np.newaxis])
    assert np.abs(curve - query_y).max() < 1e-4
    for values, low, high in [
        (a, 0.1, 5.0),
        (phi, 0.0, math.pi),
        (support_x.ravel(), -5.0, 5.0),
        (query_x.ravel(), -5.0, 5.0),
    ]:
        assert values.min() > low - 1e-4 and values.max() < high + 1e-4
        uniform = scipy.stats.uniform(low, high - low)
        assert scipy.stats.kstest(values, uniform.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(a, phi)[0, 1]) < 0.08  # Drawn apart: 3.5 standard errors.
    assert len(np.unique(a.round(4))) > 1900


def test_ranges():
    ranges = {"amplitude": (2.0, 2.0), "phase": (-1, 1), "x_range": np.array([0.0, 10.0])}
    support_x, support_y, query_x, _ = drawn(300, **ranges)
    a, phi = recovered(support_x, support_y)
    np.testing.assert_allclose(a, 2, atol=1e-4)
    assert -1 <= phi.min() < -0.9 and 0.9 < phi.max() <= 1
    x = np.concatenate([support_x, query_x])
    assert 0 <= x.min() < 0.1 and 9.9 < x.max() <= 10


def test_shapes_are_known():
    dataset = sinusoids(shots=3, queries=7)
    inputs, query_y = dataset.element_spec
    assert inputs == {
        "support_x": tf.TensorSpec((3, 1), tf.float32),
        "support_y": tf.TensorSpec((3, 1), tf.float32),
        "query_x": tf.TensorSpec((7, 1), tf.float32),
    }
    assert query_y == tf.TensorSpec((7, 1), tf.float32)


def test_cardinality_and_passes():
    assert int(sinusoids().cardinality()) == tf.data.INFINITE_CARDINALITY
    dataset = sinusoids(episodes=300)
    assert int(dataset.cardinality()) == 300 and int(dataset.batch(25).cardinality()) == 12
    passes = [[y for _, y in dataset.as_numpy_iterator()] for _ in range(2)]
    assert len(passes[0]) == 300
    np.testing.assert_array_equal(*passes)


@pytest.mark.parametrize("start", [1, 255, 256, 300])
def test_an_episode_is_a_function_of_seed_and_number(start):
    whole = drawn(600)
    for part in (drawn(300, start=start), drawn(300, start=start, episodes=300)):
        for values, expected in zip(part, whole, strict=True):
            np.testing.assert_array_equal(values, expected[start : start + 300])
    assert not np.array_equal(drawn(600, seed=1)[0], whole[0])


def test_the_curve_depends_on_neither_points_nor_noise():
    a, phi = recovered(*drawn(100)[:2])
    for change in ({"shots": 5}, {"queries": 3}, {"query_grid": True}, {"noise": 0.01}):
        a_again, phi_again = recovered(*drawn(100, **change)[:2])
        far = 0.3 if "noise" in change else 1e-3
        assert np.abs(a_again - a).max() < far
        if "noise" not in change:
            np.testing.assert_allclose(phi_again, phi, atol=far)
    for change in ({"queries": 3}, {"query_grid": True}):
        np.testing.assert_array_equal(drawn(100, **change)[1], drawn(100)[1])


def test_set_random_seed_fixes_the_draw():
    def run():
        return drawn(20, seed=None)[0]

    keras.utils.set_random_seed(5)
    first, second = run(), run()
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(run(), first)
    assert not np.array_equal(first, second)


def test_grid_is_even_and_on_the_curve_without_noise():
    for noise in (0.0, 0.5):
        support_x, support_y, query_x, query_y = drawn(
            50, shots=40, queries=101, query_grid=True, noise=noise
        )
        np.testing.assert_allclose(query_x, np.tile(np.linspace(-5, 5, 101), (50, 1)), atol=1e-6)
        a, phi = recovered(query_x, query_y)
        clean = a[:, np.newaxis] * np.sin(support_x - phi[:, np.newaxis])
        assert abs(np.std(support_y - clean) - noise) < 0.03
        grid = a[:, np.newaxis] * np.sin(query_x - phi[:, np.newaxis])
        assert np.abs(query_y - grid).max() < 1e-4


def test_noise_is_normal_and_falls_on_queries_too():
    clean = drawn(500)
    noisy = drawn(500, noise=0.2)
    np.testing.assert_array_equal(noisy[0], clean[0])
    np.testing.assert_array_equal(noisy[2], clean[2])
    for i in (1, 3):
        residual = (noisy[i] - clean[i]).ravel()
        assert scipy.stats.kstest(residual, scipy.stats.norm(0, 0.2).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 0}, "`shots` must be a positive integer. Received: shots=0"),
        ({"queries": 2.0}, "`queries` must be a positive integer. Received: queries=2.0"),
        ({"episodes": 0}, "`episodes` must be a positive integer. Received: episodes=0"),
        ({"seed": -1}, "`seed` must be None or an integer from 0. Received: seed=-1"),
        ({"start": -1}, "`start` must be an integer from 0. Received: start=-1"),
        ({"start": None}, "`start` must be"),
        ({"amplitude": (5.0, 0.1)}, r"`amplitude` must be a pair .* lowest first. .*\(5.0, 0.1\)"),
        ({"amplitude": 3.0}, "`amplitude` must be a pair"),
        ({"phase": (0.0, float("nan"))}, "`phase` must be a pair of finite"),
        ({"x_range": (0.0, 1.0, 2.0)}, "`x_range` must be a pair"),
        ({"x_range": ("a", "b")}, "`x_range` must be a pair"),
        ({"noise": -0.1}, "`noise` must be a number from 0. Received: noise=-0.1"),
        ({"noise": float("inf")}, "`noise` must be"),
        ({"query_grid": 1}, "`query_grid` must be True or False. Received: query_grid=1"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        sinusoids(**change)
