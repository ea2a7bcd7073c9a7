"""The gain in decibels."""

import numpy as np
import pytest

from keras_sslmeta.layers import RandomGain

COUNT = 4000


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 3)])
def test_one_gain_a_sample_uniform_in_decibels(shape):
    inputs = np.random.default_rng(0).uniform(1.0, 2.0, (COUNT, *shape)).astype("float32")
    ratio = (RandomGain(12.0, seed=1)(inputs).numpy() / inputs).reshape(COUNT, -1)
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], ratio.shape[1], axis=1), rtol=1e-5)
    decibels = np.sort(20 * np.log10(ratio[:, 0]))
    # Kolmogorov and Smirnov's distance from the uniform law, at one in a thousand.
    assert np.abs(decibels - np.linspace(-12, 12, COUNT)).max() / 24 < 1.95 / np.sqrt(COUNT)


def test_no_decibels_change_nothing():
    inputs = np.random.default_rng(0).normal(size=(4, 9)).astype("float32")
    np.testing.assert_array_equal(RandomGain(0.0)(inputs), inputs)


@pytest.mark.parametrize("value", [-1.0, float("inf"), "loud", None])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match="`max_db` must be a number from 0. Received: max_db="):
        RandomGain(value)
