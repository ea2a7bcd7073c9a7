"""The factors: one a series, or one a channel."""

import numpy as np
import pytest

from keras_sslmeta.layers import RandomScaling

COUNT = 4000


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_factors_are_normal_around_one(per_channel):
    inputs = np.random.default_rng(0).uniform(1.0, 2.0, (COUNT, 5, 3)).astype("float32")
    factor = RandomScaling(0.1, per_channel=per_channel, seed=1)(inputs).numpy() / inputs
    np.testing.assert_allclose(factor, np.repeat(factor[:, :1], 5, axis=1), rtol=1e-5)
    factor = factor[:, 0]
    if per_channel:
        correlation = np.corrcoef(factor.T)[~np.eye(3, dtype=bool)]
        assert np.abs(correlation).max() < 4 / np.sqrt(COUNT)
    else:
        np.testing.assert_allclose(factor, np.repeat(factor[:, :1], 3, axis=1), rtol=1e-5)
    assert np.abs(factor.mean(axis=0) - 1).max() < 4 * 0.1 / np.sqrt(COUNT)
    assert np.abs(factor.std(axis=0) - 0.1).max() < 4 * 0.1 / np.sqrt(2 * COUNT)


def test_rank_two_is_refused():
    with pytest.raises(ValueError, match=r"must be a batch \(batch, time, channels\)"):
        RandomScaling()(np.zeros((5, 3), "float32"))


@pytest.mark.parametrize("value", [-1.0, None])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match="`stddev` must be a number from 0. Received: stddev="):
        RandomScaling(value)
