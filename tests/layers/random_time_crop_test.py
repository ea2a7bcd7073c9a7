"""Crops of time: their size and place, and the interpolation."""

import numpy as np
import pytest

from keras_sslmeta.layers import RandomTimeCrop

COUNT = 3000


def stretches(scale, time=11):
    """First moment and length of the crops, read off a straight line."""
    line = np.repeat(np.arange(time, dtype="float32")[None, :, None], COUNT, axis=0)
    outputs = RandomTimeCrop(scale, seed=1)(line).numpy()[..., 0]
    steps = np.diff(outputs, axis=1)
    np.testing.assert_allclose(steps, np.repeat(steps[:, :1], time - 1, axis=1), atol=1e-5)
    return outputs[:, 0], (outputs[:, -1] - outputs[:, 0]) / (time - 1)


def test_size_and_place_are_uniform():
    start, fraction = stretches((0.2, 0.7))
    limit = 1.95 / np.sqrt(COUNT)  # Kolmogorov and Smirnov's, at one in a thousand
    grid = np.linspace(0, 1, COUNT)
    assert np.abs((np.sort(fraction) - 0.2) / 0.5 - grid).max() < limit
    place = start / (10 * (1 - fraction))
    assert np.abs(np.sort(place) - grid).max() < limit
    assert abs(np.corrcoef(place, fraction)[0, 1]) < 4 / np.sqrt(COUNT)


def test_values_are_interpolated_as_numpy_does():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(11, 3)).astype("float32")
    start, fraction = stretches((0.2, 1.0))
    outputs = RandomTimeCrop((0.2, 1.0), seed=1)(np.repeat(series[None], COUNT, axis=0)).numpy()
    for index in rng.integers(0, COUNT, 50):
        moments = start[index] + fraction[index] * np.arange(11)
        expected = np.stack([np.interp(moments, np.arange(11), column) for column in series.T], 1)
        np.testing.assert_allclose(outputs[index], expected, atol=1e-4)


@pytest.mark.parametrize("time", [1, 2, 9])
def test_the_whole_is_the_series_itself(time):
    series = np.random.default_rng(0).normal(size=(4, time, 2)).astype("float32")
    np.testing.assert_allclose(RandomTimeCrop((1.0, 1.0))(series), series, atol=1e-5)


@pytest.mark.parametrize("value", [(0.0, 1.0), (0.5, 1.5), (0.9, 0.1), 0.5])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match="`scale` must be a pair of positive numbers"):
        RandomTimeCrop(value)
