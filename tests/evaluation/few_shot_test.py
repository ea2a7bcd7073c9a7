import importlib
import math

import keras
import numpy as np
import pytest

from keras_sslmeta.data import episode_indices
from keras_sslmeta.evaluation import few_shot

SETTINGS = {"ways": 3, "shots": 2, "queries": 4, "episodes": 25, "seed": 5}


@pytest.fixture
def blobs():
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 12)
    x = random.normal(size=(5, 6))[y] + random.normal(size=(60, 6))
    order = random.permutation(60)
    return x[order] * random.uniform(0.2, 5, (60, 1)), y[order]


def loop(x, y, normalize, ways, shots, queries, episodes, seed):
    """Accuracy of each episode, one query at a time."""
    x = x.astype("float64")
    if normalize:
        x = np.array([row / math.sqrt(sum(row**2)) for row in x])
    drawn = episode_indices(
        y, ways=ways, shots=shots, queries=queries, episodes=episodes, seed=seed
    )
    accuracies = []
    for support, query in zip(*drawn, strict=True):
        prototypes = [sum(x[i] for i in members) / shots for members in support]
        right = 0
        for way, members in enumerate(query):
            for i in members:
                distances = [math.dist(x[i], prototype) for prototype in prototypes]
                right += distances.index(min(distances)) == way
        accuracies.append(right / (ways * queries))
    return accuracies


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("block", [1, 10_000])
def test_equals_a_loop(blobs, normalize, block, monkeypatch):
    module = importlib.import_module("keras_sslmeta.evaluation.few_shot")
    monkeypatch.setattr(module, "_BLOCK", block)
    result = few_shot(None, blobs, normalize=normalize, **SETTINGS)
    expected = loop(*blobs, normalize, **SETTINGS)
    np.testing.assert_allclose(result.per_episode, expected, atol=1e-12)
    assert result.accuracy == pytest.approx(np.mean(expected))
    deviation = math.sqrt(sum((a - np.mean(expected)) ** 2 for a in expected) / 24)
    assert result.half_interval == pytest.approx(1.96 * deviation / math.sqrt(25))


def test_large_common_mean_costs_no_accuracy(blobs):
    x, y = blobs
    shifted = (x + 1000).astype("float32").astype("float64")
    result = few_shot(None, (shifted, y), normalize=False, **SETTINGS)
    np.testing.assert_allclose(result.per_episode, loop(shifted, y, False, **SETTINGS), atol=1e-12)


def test_encoders_of_every_kind(blobs):
    x, y = blobs
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    features = model.predict(x, verbose=0)
    expected = few_shot(None, (features, y), **SETTINGS).per_episode
    for encoder in (model, model.call, lambda batch: np.asarray(model(batch))):
        result = few_shot(encoder, blobs, batch_size=7, **SETTINGS)
        np.testing.assert_array_equal(result.per_episode, expected)


def test_each_sample_is_encoded_once(blobs):
    seen = []
    few_shot(lambda x: seen.append(len(x)) or x, blobs, **SETTINGS)
    assert sum(seen) == 60


def test_images_are_flattened_and_labels_may_be_strings(blobs):
    x, y = blobs
    images = x.reshape(60, 1, 2, 3)
    result = few_shot(None, (images, np.array(list("abcde"))[y]), **SETTINGS)
    expected = few_shot(None, (x, y[:, np.newaxis]), **SETTINGS)
    np.testing.assert_array_equal(result.per_episode, expected.per_episode)


def test_random_features_are_near_chance():
    random = np.random.default_rng(3)
    x, y = random.normal(size=(1000, 32)), np.repeat(np.arange(20), 50)
    result = few_shot(None, (x, y), ways=5, shots=5)
    assert abs(result.accuracy - 0.2) < 2 * result.half_interval
    # A leak of queries into the support set would show as far more than chance.
    assert result.accuracy < 0.23


def test_collapsed_features_are_at_chance(blobs):
    result = few_shot(lambda x: np.ones((len(x), 4)), blobs, **SETTINGS)
    np.testing.assert_allclose(result.per_episode, 1 / 3)


@pytest.mark.parametrize("normalize", [True, False])
def test_features_that_are_not_finite_count_as_wrong(blobs, normalize):
    x, y = blobs
    assert few_shot(None, (x * np.nan, y), normalize=normalize, **SETTINGS).accuracy == 0
    spoilt = x.copy()
    spoilt[::6, 0] = np.nan
    whole = few_shot(None, (x, y), normalize=normalize, **SETTINGS)
    result = few_shot(None, (spoilt, y), normalize=normalize, **SETTINGS)
    assert 0 < result.accuracy < whole.accuracy


def test_same_seed_pairs_encoders(blobs):
    x, y = blobs
    good = few_shot(None, (np.eye(5)[y], y), **SETTINGS)
    raw = few_shot(None, (x, y), **SETTINGS)
    assert good.episodes_key == raw.episodes_key
    difference, half = good.paired_difference(raw)
    assert difference == pytest.approx(1 - raw.accuracy) and half == pytest.approx(
        raw.half_interval
    )
    other = few_shot(None, (x, y), **{**SETTINGS, "seed": 6})
    with pytest.raises(ValueError, match="`other` must be a result on the same episodes"):
        good.paired_difference(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 6}, "`ways` must be at most the number of classes, 5. Received: ways=6"),
        ({"shots": 9}, r"13, and too few samples in 5 classes: 0 \(12\)"),
        ({"shots": 0}, "`shots` must be a positive integer"),
        ({"episodes": 0}, "`episodes` must be a positive integer"),
        ({"data": (np.zeros((4, 2)), np.zeros(3, int))}, "3 labels for 4 samples"),
        ({"data": np.zeros((4, 2))}, r"`data` must be a pair, \(x, y\). Received: ndarray"),
        ({"encoder": "vgg"}, "`encoder` must be a keras.Model"),
    ],
)
def test_bad_input(blobs, change, message):
    with pytest.raises(ValueError, match=message):
        few_shot(**{"encoder": None, "data": blobs, **SETTINGS, **change})


def test_arguments_are_checked_before_encoding(blobs):
    def encoder(x):
        raise AssertionError("encoded")

    with pytest.raises(ValueError, match="`ways`"):
        few_shot(encoder, blobs, ways=9)
