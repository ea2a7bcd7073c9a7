import collections
import itertools

import numpy as np
import pytest

from keras_sslmeta.data import episode_indices


def labels_of(*sizes, seed=0):
    labels = np.repeat(np.arange(len(sizes)) * 10, sizes)
    return np.random.default_rng(seed).permutation(labels)


@pytest.mark.parametrize("sizes", [(5, 6, 9, 30), (5,) * 12])
@pytest.mark.parametrize(("ways", "shots", "queries"), [(1, 1, 1), (3, 2, 3), (4, 1, 4)])
def test_every_episode_is_sound(sizes, ways, shots, queries):
    labels = labels_of(*sizes)
    support, query = episode_indices(
        labels, ways=ways, shots=shots, queries=queries, episodes=200, seed=3
    )
    assert support.shape == (200, ways, shots) and query.shape == (200, ways, queries)
    for s, q in zip(support, query, strict=True):
        classes = labels[s[:, 0]]
        assert len(set(classes)) == ways
        for way in range(ways):
            members = [*s[way], *q[way]]
            assert len(set(members)) == shots + queries  # No sample twice: support never leaks.
            assert set(labels[members]) == {classes[way]}


def test_same_seed_same_episodes():
    def draw(seed, labels):
        return np.concatenate(
            episode_indices(labels, ways=2, shots=1, queries=2, episodes=50, seed=seed), axis=-1
        )

    labels = labels_of(4, 4, 5)
    np.testing.assert_array_equal(draw(1, labels), draw(1, labels))
    assert not np.array_equal(draw(1, labels), draw(2, labels))
    assert not np.array_equal(draw((1, 0), labels), draw((1, 1), labels))
    np.testing.assert_array_equal(draw(1, labels), draw(1, labels.astype(str)))


def test_draw_is_uniform():
    # Four samples a class, so 12 ordered (support, query) pairs in each of 3 classes: all 36 alike.
    labels = labels_of(4, 4, 4)
    support, query = episode_indices(labels, ways=1, shots=1, queries=1, episodes=36_000, seed=0)
    pairs = collections.Counter(zip(support.ravel().tolist(), query.ravel().tolist(), strict=True))
    assert len(pairs) == 36
    expected = 1000
    chi_square = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert chi_square < 76  # The 99.99% point for 35 degrees of freedom is 75.9.


def test_ways_come_in_random_order():
    labels = labels_of(2, 2, 2)
    support, _ = episode_indices(labels, ways=3, shots=1, queries=1, episodes=6000, seed=0)
    orders = collections.Counter(map(tuple, labels[support[..., 0]].tolist()))
    assert set(orders) == set(itertools.permutations([0, 10, 20]))
    assert all(900 < count < 1100 for count in orders.values())


def test_takes_all_of_a_class_where_it_must():
    support, query = episode_indices(labels_of(5, 5), ways=2, shots=2, queries=3, episodes=20)
    taken = np.concatenate([support, query], axis=-1).reshape(20, -1)
    assert all(sorted(episode) == list(range(10)) for episode in taken.tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 0}, "`ways` must be a positive integer. Received: ways=0"),
        ({"shots": 0}, "`shots` must be"),
        ({"queries": -1}, "`queries` must be"),
        ({"episodes": 0}, "`episodes` must be"),
        ({"shots": 1.5}, "`shots` must be"),
        ({"ways": 4}, "number of classes, 3. Received: ways=4"),
        ({"queries": 4}, r"6, and too few samples in 2 classes: 0 \(5\), 20 \(4\)"),
    ],
)
def test_bad_input(change, message):
    good = {"ways": 2, "shots": 2, "queries": 2, "episodes": 3}
    with pytest.raises(ValueError, match=message):
        episode_indices(labels_of(5, 6, 4), **{**good, **change})
