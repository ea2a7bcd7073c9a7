"""The noise: centred, of the stated deviation, independent everywhere."""

import numpy as np
import pytest

from keras_sslmeta.layers import RandomJitter


@pytest.mark.parametrize("stddev", [0.05, 300.0])
def test_the_noise_has_the_stated_deviation_everywhere(stddev):
    inputs = np.random.default_rng(0).normal(size=(2000, 4, 3)).astype("float32")
    noise = (RandomJitter(stddev, seed=1)(inputs).numpy() - inputs).reshape(2000, 12) / stddev
    assert np.abs(noise.mean(axis=0)).max() < 4 / np.sqrt(2000)
    assert np.abs(noise.var(axis=0) - 1).max() < 4 * np.sqrt(2 / 2000)
    correlation = np.corrcoef(noise.T)[~np.eye(12, dtype=bool)]
    assert np.abs(correlation).max() < 4 / np.sqrt(2000)


def test_no_noise_changes_nothing():
    inputs = np.random.default_rng(0).normal(size=(4, 9)).astype("float32")
    np.testing.assert_array_equal(RandomJitter(0.0)(inputs), inputs)


@pytest.mark.parametrize("value", [-1.0, float("nan"), "much"])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match="`stddev` must be a number from 0. Received: stddev="):
        RandomJitter(value)
