"""Bands: their number, width and place, and what fills them."""

import numpy as np
import pytest

from keras_sslmeta.layers import SpecAugment

COUNT = 4000
NOTHING = {"time_masks": 0, "frequency_masks": 0}


def masked(size=(12, 9), count=COUNT, **arguments):
    layer = SpecAugment(**{**NOTHING, **arguments}, seed=1)
    return layer(np.ones((count, *size), "float32")).numpy() == 0.0


def near(fraction, probability, count=COUNT):
    deviation = np.sqrt(np.maximum(probability * (1 - probability), 1e-9) / count)
    return (np.abs(fraction - probability) <= 4.5 * deviation).all()


def band_law(size, widest):
    """Probability of each width, and of each place to be masked, by listing all bands."""
    widths = np.full(widest + 1, 1 / (widest + 1))
    covered = np.zeros(size)
    for width in range(widest + 1):
        places = size - width + 1
        for first in range(places):
            covered[first : first + width] += widths[width] / places
    return widths, covered


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_one_band_has_the_stated_law(axis):
    name = {
        "time": ("time_masks", "time_width"),
        "frequency": ("frequency_masks", "frequency_width"),
    }
    outputs = masked(**dict(zip(name[axis], (1, 4), strict=True)))
    across, along = (2, 1) if axis == "time" else (1, 2)
    assert (outputs.all(axis=across) == outputs.any(axis=across)).all()  # whole lines
    lines = outputs.any(axis=across)
    edges = np.diff(lines.astype(int), axis=1, prepend=0, append=0)
    assert ((edges == 1).sum(axis=1) <= 1).all()  # one band, of neighbours
    widths, covered = band_law(outputs.shape[along], 4)
    assert near(np.bincount(lines.sum(axis=1), minlength=5) / COUNT, widths)
    assert near(lines.mean(axis=0), covered)


def test_two_bands_are_independent():
    lines = masked(time_masks=2, time_width=4).any(axis=2)
    _, covered = band_law(12, 4)
    assert near(lines.mean(axis=0), 1 - (1 - covered) ** 2)


def test_bands_of_time_and_of_frequency_are_independent():
    outputs = masked(time_masks=1, time_width=4, frequency_masks=1, frequency_width=3)
    times, frequencies = outputs.all(axis=2), outputs.all(axis=1)
    assert (outputs == (times[:, :, None] | frequencies[:, None, :])).all()
    correlation = np.corrcoef(times.sum(axis=1), frequencies.sum(axis=1))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(COUNT)


@pytest.mark.parametrize(("fraction", "widest"), [(0.25, 3), (0.0, 0), (1.0, 10)])
def test_the_fraction_bounds_bands_of_time(fraction, widest):
    lines = masked(time_masks=1, time_width=10, time_fraction=fraction).any(axis=2)
    assert lines.sum(axis=1).max() == widest


def test_bands_wider_than_the_spectrogram_cover_it_at_most():
    lines = masked(time_masks=1, time_width=100, frequency_masks=0).any(axis=2)
    assert near(np.bincount(lines.sum(axis=1), minlength=13) / COUNT, np.full(13, 1 / 13))


def test_no_bands_change_nothing():
    assert not masked().any()


@pytest.mark.parametrize("shape", [(12, 9), (12, 9, 2)])
def test_the_mean_fills_bands_of_each_spectrogram_and_channel(shape):
    inputs = np.random.default_rng(0).normal(size=(50, *shape)).astype("float32")
    outputs = SpecAugment(2, 4, 1, 3, fill="mean", seed=1)(inputs).numpy()
    numbers = SpecAugment(2, 4, 1, 3, fill=-7.0, seed=1)(inputs).numpy()
    is_masked = numbers == -7.0
    assert 0.1 < is_masked.mean() < 0.9
    if len(shape) == 3:
        assert (is_masked[..., 0] == is_masked[..., 1]).all()
    np.testing.assert_array_equal(outputs[~is_masked], inputs[~is_masked])
    means = np.broadcast_to(inputs.mean(axis=(1, 2), keepdims=True), inputs.shape)
    np.testing.assert_allclose(outputs[is_masked], means[is_masked], atol=1e-5)


def test_the_defaults_are_policy_ld():
    config = SpecAugment().get_config()
    assert (config["frequency_width"], config["frequency_masks"]) == (27, 2)
    assert (config["time_width"], config["time_masks"], config["time_fraction"]) == (100, 2, 1.0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("time_masks", -1),
        ("time_width", 2.5),
        ("frequency_masks", True),
        ("frequency_width", None),
        ("time_fraction", 1.5),
        ("fill", "zero"),
        ("fill", float("nan")),
    ],
)
def test_bad_arguments_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .* Received: "):
        SpecAugment(**{argument: value})
