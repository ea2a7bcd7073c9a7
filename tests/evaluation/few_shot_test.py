import importlib
import math

import keras
import numpy as np
import pytest
from sklearn import linear_model

from keras_sslmeta.data import episode_indices
from keras_sslmeta.evaluation import few_shot, heads
from keras_sslmeta.meta.maml import MAML
from keras_sslmeta.meta.prototypical_network import PrototypicalNetwork

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
        (
            {"data": (np.zeros((4, 2)), np.zeros(3, int))},
            r"of one length.*\(4, 2\), labels \(3,\)",
        ),
        ({"data": np.zeros((4, 2))}, r"`data` must be a pair, \(x, y\), or a tf.data"),
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


# ------------------------------------------------------------------------------------ heads


def scikit_accuracies(make, x, y, ways, shots, queries, episodes, seed):
    """Accuracy of each episode of a scikit-learn classifier on unit features."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    drawn = episode_indices(
        y, ways=ways, shots=shots, queries=queries, episodes=episodes, seed=seed
    )
    accuracies = []
    for support, query in zip(*drawn, strict=True):
        model = make().fit(x[support.ravel()], np.repeat(np.arange(ways), shots))
        right = model.predict(x[query.ravel()]) == np.repeat(np.arange(ways), queries)
        accuracies.append(right.mean())
    return accuracies


@pytest.mark.parametrize(
    ("head", "make"),
    [
        (heads.Logistic(C=3.0), lambda: linear_model.LogisticRegression(C=3.0, max_iter=1000)),
        (heads.Ridge(alpha=0.2), lambda: linear_model.RidgeClassifier(alpha=0.2)),
    ],
)
def test_heads_equal_scikit_learn(blobs, head, make):
    result = few_shot(None, blobs, head=head, verbose=0, **SETTINGS)
    np.testing.assert_allclose(
        result.per_episode, scikit_accuracies(make, *blobs, **SETTINGS), atol=1e-12
    )
    prototypes = few_shot(None, blobs, **SETTINGS)
    assert result.episodes_key == prototypes.episodes_key
    assert not np.array_equal(result.per_episode, prototypes.per_episode)


def test_prototype_is_the_default(blobs):
    default = few_shot(None, blobs, **SETTINGS)
    given = few_shot(None, blobs, head=heads.Prototype(), verbose=0, **SETTINGS)
    np.testing.assert_array_equal(given.per_episode, default.per_episode)


@pytest.mark.parametrize("normalize", [True, False])
def test_what_a_head_of_ones_own_gets(blobs, normalize):
    x, y = blobs
    seen = []

    def head(support, labels, query):
        seen.append((support, labels, query))
        # Knows the answer: queries stand in the order of their classes.
        return np.tile(np.eye(3)[np.repeat(np.arange(3), 4)], (len(support), 1, 1))

    result = few_shot(None, blobs, head=head, normalize=normalize, verbose=0, **SETTINGS)
    assert result.accuracy == 1
    support, labels, query = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    drawn = episode_indices(y, **SETTINGS)
    features = x / np.linalg.norm(x, axis=1, keepdims=True) if normalize else x
    for array, indices in zip((support, query), drawn, strict=True):
        np.testing.assert_allclose(array, features[indices.reshape(25, -1)], rtol=1e-5)
    np.testing.assert_array_equal(labels, [[0, 0, 1, 1, 2, 2]] * 25)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_count_as_wrong(blobs, bad):
    def head(support, labels, query):
        scores = np.tile(np.eye(3)[np.repeat(np.arange(3), 4)], (len(support), 1, 1))
        scores[:, 0] = bad  # The first of class 0, and of all classes.
        scores[:, 4, 1] = bad if np.isnan(bad) else 1
        return scores

    wrong = 2 if np.isnan(bad) else 1
    result = few_shot(None, blobs, head=head, verbose=0, **SETTINGS)
    np.testing.assert_allclose(result.per_episode, 1 - wrong / 12)


# ----------------------------------------------------------------------------- meta-learners


def maml(ways=3, **kwargs):
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(ways)])
    return MAML(network, inner_learning_rate=0.5, **kwargs)


def accuracies_by_hand(model, x, y):
    accuracies = []
    for support, query in zip(*episode_indices(y, **SETTINGS), strict=True):
        specialist = model.adapt(x[support.ravel()], np.repeat(np.arange(3), 2))
        logits = np.asarray(specialist(x[query.ravel()]))
        accuracies.append(np.mean(logits.argmax(-1) == np.repeat(np.arange(3), 4)))
    return accuracies


def compiled(model):
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_meta_learner_on_the_same_episodes(blobs):
    x, y = blobs[0].astype("float32"), blobs[1]
    model = compiled(maml())
    result = few_shot(model, (x, y), verbose=0, **SETTINGS)
    np.testing.assert_allclose(result.per_episode, accuracies_by_hand(model, x, y))
    assert 0.34 < result.accuracy < 1
    # Paired with an encoder's.
    encoder = few_shot(None, (x, y), **SETTINGS)
    difference, half = result.paired_difference(encoder)
    assert difference == pytest.approx(result.accuracy - encoder.accuracy) and half > 0


def test_a_prototypical_network_is_its_encoder_with_prototypes(blobs):
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    network = few_shot(PrototypicalNetwork(encoder), blobs, verbose=0, **SETTINGS)
    features = few_shot(encoder, blobs, normalize=False, **SETTINGS)
    np.testing.assert_allclose(network.per_episode, features.per_episode)
    assert network.episodes_key == features.episodes_key and 0.4 < network.accuracy < 1


def test_meta_learner_gets_images_of_bytes_as_floats_32_episodes_at_a_time(blobs, monkeypatch):
    x, y = (np.abs(blobs[0]) * 9).astype("uint8"), blobs[1]
    model, seen = compiled(maml()), []
    monkeypatch.setattr(
        model,
        "predict",
        lambda inputs, batch_size, verbose: (
            seen.append(inputs) or np.zeros((*inputs["query_x"].shape[:2], 3))
        ),
    )
    settings = {**SETTINGS, "episodes": 70}
    result = few_shot(model, (x, y), verbose=0, **settings)
    np.testing.assert_allclose(result.per_episode, 1 / 3)  # Of equal scores the first.
    assert [len(inputs["support_x"]) for inputs in seen] == [32, 32, 6]
    support, query = episode_indices(y, **settings)
    for name, indices in (("support_x", support), ("query_x", query)):
        got = np.concatenate([inputs[name] for inputs in seen])
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, x[indices.reshape(70, -1)])


def test_bad_meta_learners(blobs, monkeypatch):
    model = compiled(maml())
    with pytest.raises(ValueError, match="`head` must be None for a meta-learner"):
        few_shot(model, blobs, head=heads.Ridge(), **SETTINGS)
    monkeypatch.setattr(model, "predict", lambda x, **_: np.zeros((25, 12, 2)))
    with pytest.raises(ValueError, match=r"here \(25, 12, 3\). Received: shape=\(25, 12, 2\)"):
        few_shot(model, blobs, verbose=0, **SETTINGS)
    monkeypatch.setattr(model, "predict", lambda x, **_: [np.zeros((25, 12, 3))] * 2)
    with pytest.raises(ValueError, match="one array of scores"):
        few_shot(model, blobs, verbose=0, **SETTINGS)


# ---------------------------------------------------------------------------------- progress


def test_progress(blobs, capsys):
    few_shot(None, blobs, **SETTINGS)
    few_shot(None, blobs, head=heads.Ridge(), verbose=0, **SETTINGS)
    assert capsys.readouterr().out == ""
    result = few_shot(None, blobs, head=heads.Ridge(), **SETTINGS)
    shown = capsys.readouterr().out
    assert "1/1" in shown and f"accuracy: {result.accuracy:.4f}" in shown
    few_shot(compiled(maml()), blobs, **SETTINGS)
    assert "1/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "ridge"}, "`head` must be a function .* Received: head='ridge'"),
        ({"head": heads.Ridge}, r"such as heads.Ridge\(\)"),
        ({"verbose": 3}, '`verbose` must be "auto", 0, 1 or 2. Received: verbose=3'),
        ({"head": lambda s, y, q: np.zeros((len(q), 12))}, r"shape=\(25, 12\)"),
        ({"head": lambda s, y, q: np.zeros((len(q), 12, 3), "complex64")}, "real numbers"),
        ({"data": ([[1.0]], [0], [0])}, "`data` must be a pair"),
    ],
)
def test_bad_new_arguments(blobs, change, message):
    with pytest.raises(ValueError, match=message):
        few_shot(**{"encoder": None, "data": blobs, "verbose": 0, **SETTINGS, **change})
