"""Encoders of several inputs, and of strings, in everything that measures encoders."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import SimCLR
from keras_sslmeta.callbacks import KNNProbe, LinearProbe, RepresentationHealth
from keras_sslmeta.data import episodes
from keras_sslmeta.evaluation import few_shot, heads, linear_probe
from keras_sslmeta.meta.prototypical_network import PrototypicalNetwork

RANDOM = np.random.default_rng(0)
Y = np.repeat(np.arange(4), 20)
IMAGES = RANDOM.integers(0, 256, (80, 6, 6, 1), dtype="uint8")
TABLE = (RANDOM.normal(size=(4, 5))[Y] + RANDOM.normal(size=(80, 5))).astype("float32")
BY_NAME = {"table": TABLE, "image": IMAGES}
IN_ORDER = (IMAGES, TABLE)
EPISODES = {"ways": 3, "shots": 2, "queries": 5, "episodes": 20, "seed": 3}


def encoder(nest="by name"):
    keras.utils.set_random_seed(0)
    image, table = keras.Input((6, 6, 1), name="image"), keras.Input((5,), name="table")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    both = keras.layers.Concatenate()([keras.layers.Dense(3)(flat), keras.layers.Dense(5)(table)])
    inputs = {"image": image, "table": table} if nest == "by name" else (image, table)
    return keras.Model(inputs, both)


def features_of(model):
    """By one plain call."""
    x = BY_NAME if isinstance(model.input, dict) else IN_ORDER
    return np.asarray(model(keras.tree.map_structure(lambda a: tf.cast(a, "float32"), x)))


def halves(x):
    first, second = (keras.tree.map_structure(lambda a, s=s: a[s::2], x) for s in (0, 1))
    return (first, Y[::2]), (second, Y[1::2])


class TableNoise(keras.layers.Layer):
    """An augmentation of one of the inputs."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        noise = keras.random.normal(keras.ops.shape(x["table"]), seed=self.seed_generator)
        return {**x, "table": x["table"] + noise}


@pytest.mark.parametrize(("nest", "x"), [("by name", BY_NAME), ("in order", IN_ORDER)])
def test_few_shot_and_linear_probe_measure_the_features(nest, x):
    model = encoder(nest)
    features = features_of(model)
    np.testing.assert_array_equal(
        few_shot(model, (x, Y), **EPISODES).per_episode,
        few_shot(None, (features, Y), **EPISODES).per_episode,
    )
    train, test = halves(x)
    dataset = tf.data.Dataset.from_tensor_slices(train).batch(7)
    expected = linear_probe(None, *halves(features), C=1.0, fraction=0.5).accuracy
    assert 0.5 < expected < 1
    for source in (train, dataset):
        assert linear_probe(model, source, test, C=1.0, fraction=0.5).accuracy == expected


def test_given_episodes_of_several_inputs():
    model = encoder()
    given = episodes((BY_NAME, Y), **EPISODES)
    bare = episodes((features_of(model), Y), **EPISODES)
    for head in (None, heads.Ridge()):
        np.testing.assert_array_equal(
            few_shot(model, given, head=head, verbose=0).per_episode,
            few_shot(None, bare, head=head, verbose=0).per_episode,
        )


def test_meta_learner_draws_episodes_of_several_inputs():
    model = PrototypicalNetwork(encoder())
    model.compile()
    measured = few_shot(model, (BY_NAME, Y), verbose=0, **EPISODES)
    expected = few_shot(None, (features_of(model.encoder), Y), normalize=False, **EPISODES)
    np.testing.assert_array_equal(measured.per_episode, expected.per_episode)
    assert measured.accuracy > 0.4


def test_callbacks_within_fit():
    model = SimCLR(encoder(), augmentation=TableNoise())
    model.compile(keras.optimizers.SGD(0.0))
    train, test = halves(BY_NAME)
    health = RepresentationHealth(BY_NAME, views=3, alarm=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        history = model.fit(
            BY_NAME,
            batch_size=20,
            verbose=0,
            callbacks=[KNNProbe(train, test, k=5), LinearProbe(train, test), health],
        ).history
    features = features_of(model.encoder)
    bare = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    bare.compile("sgd", "mse")
    settings = {"encoder": lambda x: x}
    train, test = halves(features)
    expected = bare.fit(
        features,
        features,
        verbose=0,
        callbacks=[KNNProbe(train, test, k=5, **settings), LinearProbe(train, test, **settings)],
    ).history
    assert history["knn_accuracy"] == expected["knn_accuracy"]
    assert history["linear_accuracy"] == expected["linear_accuracy"]
    measured = health.measure()
    assert measured.shape == (80, 3, 8)
    assert measured.rankme == pytest.approx(history["rankme"][0])
    assert measured.alignment > 0.01  # The views differ.


def test_ready_made_views_of_several_inputs():
    views = keras.tree.map_structure(lambda a: np.stack([a, a], axis=1), BY_NAME)
    model = SimCLR(encoder())
    model.compile(keras.optimizers.SGD(0.0))
    health = RepresentationHealth(views, alarm=False)
    model.fit(views, verbose=0, callbacks=[health])
    assert health.measure().shape == (80, 2, 8)
    assert health.measure().alignment == pytest.approx(0, abs=1e-6)


def test_strings():
    words = np.array(["red apple", "blue sky", "green grass", "dark night"])[Y]
    vectorize = keras.layers.TextVectorization(output_sequence_length=2)
    vectorize.adapt(words)
    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            vectorize,
            keras.layers.Embedding(vectorize.vocabulary_size(), 8),
            keras.layers.Flatten(),
        ]
    )
    assert few_shot(model, (words, Y), **EPISODES).accuracy == 1
    assert linear_probe(model, *halves(words.astype(object)), C=1.0).accuracy == 1


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({**BY_NAME, "table": TABLE[:, :4]}, r"takes them, \(5,\) each.*Received: \(4,\)"),
        ({**BY_NAME, "image": IMAGES[..., 0]}, r"takes them, \(6, 6, 1\) each.*Received: \(6, 6\)"),
        ({**BY_NAME, "table": TABLE[1:]}, r"one length.*\(80, 6, 6, 1\), \(79, 5\), \(80,\)"),
    ],
)
def test_bad_samples(x, message):
    with pytest.raises(ValueError, match=message):
        few_shot(encoder(), (x, Y), **EPISODES)
    model = SimCLR(encoder(), augmentation=TableNoise())
    model.compile("sgd")
    with pytest.raises(ValueError, match=message):
        model.fit(BY_NAME, verbose=0, callbacks=[KNNProbe((x, Y), (BY_NAME, Y))])


def test_a_nest_is_no_array_of_features():
    with pytest.raises(ValueError, match="one array of features, not a nest. Received: dict"):
        few_shot(None, (BY_NAME, Y), **EPISODES)
    with pytest.raises(ValueError, match="`samples` must be samples"):
        RepresentationHealth({"image": IMAGES, "table": TABLE[:3]})
