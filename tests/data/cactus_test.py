import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.cluster import KMeans

from keras_sslmeta.data.cactus import cactus, cluster_labels
from keras_sslmeta.data.episodes import episodes
from keras_sslmeta.meta.maml import MAML

COUNT = 120
# Every sample is its own number, so that an episode says which it took.
IDS = np.arange(COUNT)
GENERATOR = np.random.default_rng(0)
CLASSES = GENERATOR.permutation(np.repeat(np.arange(6), 20))
FEATURES = (np.eye(6)[CLASSES] * 3 + GENERATOR.normal(size=(COUNT, 6))).astype("float32")
SIZES = {"ways": 3, "shots": 1, "queries": 3}
# Two partitions that don't share a cluster: by tens, and by the last digit, of other names.
LABELS = np.stack([IDS // 10, 100 + IDS % 10])


def drawn(x=IDS, count=300, **arguments):
    dataset = cactus(x, **{**SIZES, "seed": 0, "verbose": 0, **arguments}).take(count)
    ((inputs, query_y),) = dataset.batch(count).as_numpy_iterator()
    return inputs["support_x"], inputs["support_y"], inputs["query_x"], query_y


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def partitions_of(episode, labels, ways=3):
    """In which partitions the members, `(ways, m)`, are of `ways` clusters, one a class."""
    return [
        p
        for p, of_samples in enumerate(labels)
        if all(len(set(row)) == 1 for row in of_samples[episode])
        and len(set(of_samples[episode[:, 0]])) == ways
    ]


def members(support_x, query_x, ways=3):
    tasks = len(support_x)
    return np.concatenate(
        [support_x.reshape(tasks, ways, -1), query_x.reshape(tasks, ways, -1)], axis=-1
    )


@pytest.mark.parametrize("count", [None, 5])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64"])
def test_structure_is_that_of_labelled_episodes(count, dtype):
    x = np.zeros((COUNT, 4, 4, 3), dtype)
    ours = cactus(x, labels=LABELS, **SIZES, episodes=count)
    theirs = episodes((x, CLASSES), **SIZES, episodes=count)
    assert ours.element_spec == theirs.element_spec
    assert int(ours.cardinality()) == int(theirs.cardinality())
    for (a, query_a), (b, query_b) in zip(ours.take(2), theirs.take(2), strict=True):
        np.testing.assert_array_equal(a["support_y"], b["support_y"])
        np.testing.assert_array_equal(query_a, query_b)


def test_every_episode_is_of_one_partition():
    support_x, _, query_x, _ = drawn(labels=LABELS, count=2000)
    found = []
    for episode in members(support_x, query_x):
        assert len(set(episode.ravel())) == 12  # No sample twice.
        in_partitions = partitions_of(episode, LABELS)
        assert len(in_partitions) == 1
        found += in_partitions
    assert abs(np.mean(found) - 0.5) < 4 * 0.5 / 2000**0.5  # Both alike.
    counts = np.bincount(np.concatenate([support_x, query_x], axis=1).ravel(), minlength=COUNT)
    assert (np.abs(counts - 200) < 5 * 200**0.5).all()


def test_one_partition_draws_what_labels_say():
    support_x, _, query_x, _ = drawn(labels=CLASSES, ways=6, queries=19)
    for episode in members(support_x, query_x, ways=6):
        assert sorted(episode.ravel()) == list(IDS)
        assert (CLASSES[episode] == CLASSES[episode[:, :1]]).all()


def test_partitions_are_those_of_the_features():
    sizes = {"clusters": 8, "partitions": 3}
    labels = cluster_labels(FEATURES, **sizes, seed=0, verbose=0)
    support_x, _, query_x, _ = drawn(features=FEATURES, **sizes)
    assert all(partitions_of(episode, labels) for episode in members(support_x, query_x))
    kept = drawn(labels=labels)
    assert_same((support_x, query_x), (kept[0], kept[2]))


@pytest.mark.parametrize(
    "make", [lambda: keras.Sequential([keras.layers.Flatten()]), lambda: tf.abs]
)
def test_encoders_make_the_features(make):
    encoder = make()
    encoded = np.abs(FEATURES) if encoder is tf.abs else FEATURES
    sizes = {"clusters": 8, "partitions": 2, "queries": 2}
    assert_same(
        drawn(FEATURES, features=encoder, **sizes), drawn(FEATURES, features=encoded, **sizes)
    )


@pytest.mark.parametrize("start", [1, 256])
def test_an_episode_is_a_function_of_seed_and_number(start):
    sizes = {"features": FEATURES, "clusters": 8, "partitions": 2}
    whole = drawn(**sizes, count=300)
    expected = [array[start : start + 40] for array in whole]
    assert_same(drawn(**sizes, count=40, start=start), expected)
    assert_same(drawn(**sizes, count=40, start=start, episodes=40), expected)
    assert not np.array_equal(drawn(**sizes, seed=1)[0], whole[0])
    keras.utils.set_random_seed(5)
    first, second = drawn(**sizes, seed=None), drawn(**sizes, seed=None)
    keras.utils.set_random_seed(5)
    assert_same(drawn(**sizes, seed=None), first)
    assert not np.array_equal(first[0], second[0])


def test_passes_are_equal():
    dataset = cactus(IDS, labels=LABELS, **SIZES, episodes=30)
    passes = [[inputs["query_x"].numpy() for inputs, _ in dataset] for _ in range(2)]
    assert_same(*passes)


def test_small_clusters_are_left_out():
    # Of sizes 3, 4, 5, 48 and 60, where four are needed; and all in large ones.
    small = np.repeat([9, 2, 7, 4, 0], [3, 4, 5, 48, 60])
    labels = np.stack([small, IDS // 40])
    support_x, _, query_x, _ = drawn(labels=labels, count=500)
    taken = members(support_x, query_x)
    of_first = [
        t for t in taken if 0 in partitions_of(t, labels) and partitions_of(t, labels) != [1]
    ]
    assert {*small[np.unique(of_first)]} == {2, 7, 4, 0}
    with pytest.raises(
        ValueError,
        match="must have `ways` clusters, 3, of .* samples, 50, or more: ask for fewer.*"
        "Received: 2 of 2 partitions with fewer, such as partition 0 with 1",
    ):
        cactus(IDS, labels=labels, ways=3, shots=10, queries=40)
    with pytest.raises(
        ValueError, match="1 of 2 partitions with fewer, such as partition 0 with 2"
    ):
        cactus(IDS, labels=labels, ways=3, shots=10, queries=20)


def test_cluster_labels_are_k_means_of_scaled_features():
    labels = cluster_labels(FEATURES, clusters=6, partitions=3, seed=4, verbose=0)
    assert labels.shape == (3, COUNT)
    assert labels.dtype == "int64"
    assert all(set(row) == set(range(6)) for row in labels)
    for partition, row in enumerate(labels):
        generator = np.random.default_rng((4, partition))
        scale = generator.random(6, dtype="float32") if partition else 1
        state = int(generator.integers(2**31 - 1))
        # An oracle of its own: every sample is nearest to the mean of its own cluster.
        scaled = FEATURES * scale
        means = np.stack([scaled[row == k].mean(axis=0) for k in range(6)])
        nearest = ((scaled[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
        np.testing.assert_array_equal(nearest, row)
        expected = KMeans(6, n_init=1, random_state=state).fit_predict(scaled)
        np.testing.assert_array_equal(row, expected)
    # Partitions differ, and the first ones stay where more are asked for.
    assert len({tuple(row) for row in labels}) == 3
    fewer = cluster_labels(FEATURES, clusters=6, partitions=2, seed=4, verbose=0)
    np.testing.assert_array_equal(fewer, labels[:2])


def test_clusters_find_what_is_apart():
    features = np.eye(6)[CLASSES] + 0.01 * np.random.default_rng(1).normal(size=(COUNT, 6))
    labels = cluster_labels(features.reshape(COUNT, 2, 3), clusters=12, verbose=0)[0]
    assert all(len(set(CLASSES[labels == k])) == 1 for k in range(12))


def test_the_progress_bar_counts_partitions(capsys):
    cluster_labels(FEATURES, clusters=4, partitions=3)
    assert "3/3" in capsys.readouterr().out
    cactus(IDS, FEATURES, **SIZES, clusters=4, partitions=2)
    assert "2/2" in capsys.readouterr().out
    cactus(IDS, FEATURES, **SIZES, clusters=4, partitions=2, verbose=0)
    assert not capsys.readouterr().out


def test_maml_learns_clusters_without_warnings():
    keras.utils.set_random_seed(0)
    # From zero, so that one step makes it a comparison with the support samples.
    dense = keras.layers.Dense(3, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((6,)), dense])
    maml = MAML(model, inner_steps=1, inner_learning_rate=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    maml.compile("adam", loss, metrics=["accuracy"])
    dataset = cactus(FEATURES, FEATURES, **SIZES, clusters=8, partitions=2, verbose=0).batch(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = maml.fit(dataset, steps_per_epoch=20, epochs=2, verbose=0)
    assert history.history["accuracy"][-1] > 0.6  # A third by chance.


GOOD = {"x": IDS, "features": FEATURES, "clusters": 8, "partitions": 2, **SIZES, "verbose": 0}
BY_LABELS = {"features": None, "labels": LABELS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 0}, "`ways` must be a positive integer. Received: ways=0"),
        ({"ways": 9}, "`clusters` must be at least `ways`, 9. Received: clusters=8"),
        ({"shots": 0}, "`shots` must be a positive integer. Received: shots=0"),
        ({"queries": 1.5}, "`queries` must be a positive integer. Received: queries=1.5"),
        ({"clusters": 0}, "`clusters` must be a positive integer. Received: clusters=0"),
        ({"clusters": 121}, "`clusters` must be at most the number of samples, 120.*clusters=121"),
        ({"partitions": 0}, "`partitions` must be a positive integer. Received: partitions=0"),
        ({"verbose": 3}, '`verbose` must be "auto", 0, 1 or 2. Received: verbose=3'),
        ({"episodes": 0}, "`episodes` must be a positive integer. Received: episodes=0"),
        ({"seed": -1}, "`seed` must be None or an integer from 0. Received: seed=-1"),
        ({"start": -1}, "`start` must be an integer from 0. Received: start=-1"),
        ({"features": None}, "`features` or `labels` must be given, .* Received: neither"),
        ({"labels": LABELS}, "`features` or `labels` must be given, .* Received: both"),
        ({"features": FEATURES[1:]}, r"`features` must .* the 120 samples.*\(119, 6\)"),
        ({"features": FEATURES[:, 0]}, r"`features` must give features \(n, dim\).*\(120,\)"),
        ({"features": np.where(FEATURES > 3, np.nan, FEATURES)}, "`features` must be finite"),
        ({**BY_LABELS, "labels": LABELS[:, 1:]}, r"`labels` must .* 120 samples.*\(2, 119\)"),
        ({**BY_LABELS, "labels": LABELS / 2}, "`labels` must be integers.*dtype=float64"),
        ({**BY_LABELS, "labels": LABELS[None]}, r"`labels` must be integers.*\(1, 2, 120\)"),
        ({"x": np.zeros((0, 2))}, "with a sample at least"),
        ({"x": (IDS, IDS[1:])}, "of one length"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        cactus(**{**GOOD, **change})
