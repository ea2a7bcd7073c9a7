"""Segments in a random order, against the list of all orders."""

import collections
import itertools

import numpy as np
import pytest

from keras_sslmeta.layers import RandomPermutation

COUNT = 6000


def law(time, max_segments):
    """Probability of each order of the steps, by listing numbers of segments and their orders."""
    probabilities: collections.Counter = collections.Counter()
    for number in range(1, max_segments + 1):
        edges = [k * time // number for k in range(number + 1)]
        segments = [range(*pair) for pair in itertools.pairwise(edges)]
        orders = list(itertools.permutations(segments))
        for order in orders:
            steps = tuple(itertools.chain(*order))
            probabilities[steps] += 1 / (max_segments * len(orders))
    return probabilities


@pytest.mark.parametrize(("time", "max_segments"), [(7, 3), (12, 4), (2, 4)])
def test_every_order_has_its_probability(time, max_segments):
    inputs = np.repeat(np.arange(time, dtype="float32")[None, :, None], COUNT, axis=0)
    outputs = RandomPermutation(max_segments, seed=1)(inputs).numpy()[..., 0].astype(int)
    counts = collections.Counter(map(tuple, outputs))
    expected = law(time, max_segments)
    assert set(counts) == set(expected)
    for steps, probability in expected.items():
        deviation = np.sqrt(probability * (1 - probability) / COUNT)
        assert abs(counts[steps] / COUNT - probability) < 4.5 * deviation


def test_no_value_is_lost_and_channels_stay_together():
    series = np.random.default_rng(0).normal(size=(200, 23, 3)).astype("float32")
    outputs = RandomPermutation(5, seed=1)(series).numpy()
    for before, after in zip(series, outputs, strict=True):
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))


def test_one_segment_changes_nothing():
    series = np.random.default_rng(0).normal(size=(4, 9, 2)).astype("float32")
    np.testing.assert_array_equal(RandomPermutation(1)(series), series)


@pytest.mark.parametrize("value", [0, 2.5, True])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match="`max_segments` must be a positive integer. Received"):
        RandomPermutation(value)
