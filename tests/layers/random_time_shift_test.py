"""Shifts: how far, how often, and what moves in."""

import numpy as np
import pytest

from keras_sslmeta.layers import RandomTimeShift

COUNT = 4000


def rolled(series, shift, wrap):
    """By NumPy: `series` later by `shift` steps."""
    out = np.roll(series, shift, axis=0)
    if not wrap:
        moved_in = slice(0, shift) if shift >= 0 else slice(len(series) + shift, None)
        out[moved_in] = 0.0
    return out


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shape", [(10,), (10, 3), (10, 3, 2)])
def test_every_shift_is_as_likely(wrap, shape):
    series = np.random.default_rng(0).uniform(1.0, 2.0, shape).astype("float32")
    candidates = {rolled(series, shift, wrap).tobytes(): shift for shift in range(-4, 5)}
    inputs = np.repeat(series[None], COUNT, axis=0)
    outputs = RandomTimeShift(0.45, wrap=wrap, seed=1)(inputs).numpy()
    shifts = np.array([candidates[output.tobytes()] for output in outputs])
    frequencies = np.bincount(shifts + 4, minlength=9) / COUNT
    assert np.abs(frequencies - 1 / 9).max() < 4 * np.sqrt(1 / 9 * 8 / 9 / COUNT)


def test_all_may_leave():
    outputs = RandomTimeShift(1.0, seed=1)(np.ones((500, 3), "float32")).numpy()
    assert set(outputs.sum(axis=1)) == {0.0, 1.0, 2.0, 3.0}


def test_no_shift_changes_nothing():
    inputs = np.random.default_rng(0).normal(size=(4, 9)).astype("float32")
    np.testing.assert_array_equal(RandomTimeShift(0.1)(inputs), inputs)  # less than a step


@pytest.mark.parametrize("value", [-0.1, 1.1, "far"])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match="`max_shift` must be a number in"):
        RandomTimeShift(value)
