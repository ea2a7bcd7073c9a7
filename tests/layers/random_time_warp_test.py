"""Warps of time: the law of the speeds, the ends, and the interpolation."""

import numpy as np
import pytest

from keras_sslmeta.layers import RandomTimeWarp

COUNT = 3000


def moments(time, *arguments):
    """Which moment each step shows, read off a straight line: `(COUNT, time)`."""
    line = np.repeat(np.arange(time, dtype="float64")[None, :, None], COUNT, axis=0)
    return RandomTimeWarp(*arguments, seed=1, dtype="float64")(line).numpy()[..., 0]


def test_ends_stay_and_time_runs_forwards():
    shown = moments(30, 1.0, 3)
    assert (shown[:, 0] == 0).all() and np.diff(shown, axis=1).min() > 0
    np.testing.assert_allclose(shown[:, -1], 29, atol=1e-9)


def test_speeds_are_log_normal_at_the_knots_and_linear_between():
    # With one knot and five steps the speeds at the ends and in the middle are drawn, a, c and e; of the
    # others each is the mean of two of them. A step takes the mean of the speeds at its ends.
    steps = np.diff(moments(5, 0.4, 1), axis=1)
    # In units of the whole: 3a + c, a + 3c, 3c + e, c + 3e, each over 4, of a sum of a + 2c + e.
    first, second, third, fourth = steps.T
    a, e = 3 * first - second, 3 * fourth - third
    c, also_c = 3 * second - first, 3 * third - fourth
    np.testing.assert_allclose(c, also_c, atol=1e-9)
    for ratio, variance in ((np.log(a / e), 2), (np.log(c / a), 2), (np.log(a * e / c**2), 6)):
        # Differences of independent N(0, 0.4²).
        assert abs(ratio.mean()) < 4 * 0.4 * np.sqrt(variance / COUNT)
        assert abs(ratio.var() / (0.16 * variance) - 1) < 4 * np.sqrt(2 / COUNT)


def test_values_are_interpolated_as_numpy_does():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(11, 3))
    shown = moments(11, 0.7, 2)
    layer = RandomTimeWarp(0.7, 2, seed=1, dtype="float64")
    outputs = layer(np.repeat(series[None], COUNT, axis=0)).numpy()
    for index in rng.integers(0, COUNT, 50):
        columns = [np.interp(shown[index], np.arange(11), column) for column in series.T]
        np.testing.assert_allclose(outputs[index], np.stack(columns, 1), atol=1e-9)


def test_all_bands_of_a_spectrogram_are_warped_alike():
    series = np.random.default_rng(0).normal(size=(7, 12, 6)).astype("float32")
    flat = RandomTimeWarp(0.5, seed=1)(series).numpy()
    bands = RandomTimeWarp(0.5, seed=1)(series.reshape(7, 12, 3, 2)).numpy()
    np.testing.assert_array_equal(bands.reshape(7, 12, 6), flat)


@pytest.mark.parametrize("time", [1, 2, 9])
def test_an_even_speed_changes_nothing(time):
    series = np.random.default_rng(0).normal(size=(4, time, 2)).astype("float32")
    np.testing.assert_allclose(RandomTimeWarp(0.0)(series), series, atol=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`stddev` must be a number"):
        RandomTimeWarp(-0.1)
    with pytest.raises(ValueError, match="`knots` must be"):
        RandomTimeWarp(0.1, knots=1.5)
