"""Encoders of several inputs, and of strings, in everything that measures encoders."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import SimCLR
from keras_sslmeta.callbacks import KNNProbe, LinearProbe, RepresentationHealth
from keras_sslmeta.data import episodes
from keras_sslmeta.data.labelled_arrays import labelled_arrays
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


def test_inputs_by_key_by_name_and_in_any_order():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((3,), name="b"), keras.Input((2,), name="a")
    model = keras.Model({"a": a, "b": b}, keras.layers.Concatenate()([a, keras.layers.Dense(3)(b)]))
    x = {"b": TABLE[:, :2], "a": TABLE[:, 2:], "unused": TABLE}
    expected = few_shot(None, (np.asarray(model({"a": x["a"], "b": x["b"]})), Y), **EPISODES)
    assert few_shot(model, (x, Y), **EPISODES).accuracy == expected.accuracy
    listed = keras.Model([a, b], model.output)
    by_name = {"b": x["a"], "a": x["b"]}
    assert few_shot(listed, (by_name, Y), **EPISODES).accuracy == expected.accuracy
    sim_clr = SimCLR(listed)
    sim_clr.compile(keras.optimizers.SGD(0.0))
    views = {key: np.stack([value, value], axis=1) for key, value in by_name.items()}
    history = sim_clr.fit(views, verbose=0, callbacks=[KNNProbe((by_name, Y), (by_name, Y), k=3)])
    assert history.history["knn_accuracy"][0] > 0.25


@keras.saving.register_keras_serializable(package="several_inputs_test")
class Summed(keras.Model):
    """Of inputs that only a call tells."""

    def __init__(self):
        super().__init__()
        self.of_image, self.of_table = keras.layers.Dense(8), keras.layers.Dense(8)

    def call(self, x):
        flat = keras.ops.reshape(x["image"], (-1, 36)) / 255
        return self.of_image(flat) + self.of_table(x["table"])


@pytest.mark.slow
def test_subclassed_encoder():
    model = SimCLR(Summed(), augmentation=TableNoise())
    model.compile(keras.optimizers.SGD(0.0))
    health = RepresentationHealth(BY_NAME, alarm=False)
    train, test = halves(BY_NAME)
    assert list(BY_NAME) != sorted(BY_NAME)
    model.fit(BY_NAME, verbose=0)
    model.fit(BY_NAME, verbose=0, callbacks=[health, KNNProbe(train, test)])
    assert health.measure().shape == (80, 4, 8)
    views = keras.tree.map_structure(lambda a: np.stack([a, a, a], axis=1), BY_NAME)
    health = RepresentationHealth(views, alarm=False)
    model.fit(BY_NAME, verbose=0, callbacks=[health])
    assert health.measure().shape == (80, 3, 8)


def test_inputs_and_views_in_a_list():
    model = SimCLR(encoder("in order"), augmentation=lambda x: [x[0], x[1] + 0.5])
    model.compile(keras.optimizers.SGD(0.0))
    health = RepresentationHealth(IN_ORDER, alarm=False)
    model.fit(IN_ORDER, verbose=0, callbacks=[health])
    assert health.measure().shape == (80, 4, 8)


def test_columns():
    """Keras takes (n,) for (n, 1) and back."""
    inputs = {"a": keras.Input((1,)), "b": keras.Input(())}
    b = keras.layers.Reshape((1,))(inputs["b"])
    model = keras.Model(inputs, keras.layers.Concatenate()([inputs["a"], b]))
    x = {"a": TABLE[:, 0], "b": TABLE[:, 1:2]}
    expected = few_shot(None, (TABLE[:, :2], Y), **EPISODES).accuracy
    assert few_shot(model, (x, Y), **EPISODES).accuracy == expected


def test_model_whose_predict_resizes_and_one_with_a_shape_of_its_own():
    class Resizing(keras.Model):
        def predict_step(self, data):
            return self(data[..., :5], training=False)

    table = keras.Input((5,))
    model = Resizing(table, keras.layers.Identity()(table))
    wide = np.concatenate([TABLE, TABLE], axis=1)
    assert (
        few_shot(model, (wide, Y), **EPISODES).accuracy
        == few_shot(None, (TABLE, Y), **EPISODES).accuracy
    )

    class Shaped(keras.Model):
        input_shape = (None, 5)

        def call(self, x):
            return x

    model = Shaped()
    model(TABLE)
    assert few_shot(model, (TABLE, Y), **EPISODES).accuracy > 0.4


def text_encoder(shape=()):
    vectorize = keras.layers.TextVectorization(output_sequence_length=2)
    vectorize.adapt(WORDS)
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(shape, dtype="string"),
            vectorize,
            keras.layers.Embedding(vectorize.vocabulary_size(), 8),
            keras.layers.Flatten(),
        ]
    )


WORDS = np.array(["red apple", "blue sky", "green grass", "dark night"])[Y]


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["U", "S", object])
def test_strings(kind):
    words, model = WORDS.astype(kind), text_encoder()
    assert few_shot(model, (words, Y), **EPISODES).accuracy == 1
    assert few_shot(text_encoder((1,)), (words[:, np.newaxis], Y), **EPISODES).accuracy == 1
    train, test = halves(words)
    assert linear_probe(model, train, test, C=1.0).accuracy == 1
    datasets = [tf.data.Dataset.from_tensor_slices(part).batch(9) for part in (train, test)]
    assert linear_probe(model, *datasets, C=1.0).accuracy == 1
    given = episodes((WORDS, Y), **EPISODES)
    assert few_shot(model, given, verbose=0).accuracy == 1
    learner = PrototypicalNetwork(model)
    learner.compile(jit_compile=False)
    assert few_shot(learner, (words, Y), verbose=0, **EPISODES).accuracy == 1


def test_health_of_strings():
    model = SimCLR(text_encoder(), augmentation=tf.strings.upper)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    health = RepresentationHealth(WORDS, alarm=False)
    model.fit(WORDS.astype(object), verbose=0, callbacks=[health])
    assert health.measure().shape == (80, 4, 16)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({**BY_NAME, "table": TABLE[:, :, None]}, r"\(5,\) each for its input 'table'.*\(5, 1\)"),
        ({**BY_NAME, "image": IMAGES[..., 0]}, r"takes them, \(6, 6, 1\) each.*Received: \(6, 6\)"),
        ([IMAGES, TABLE], "for several inputs pass a dictionary or tuple"),
        ([TABLE, TABLE], "A list is one array; several inputs are a tuple"),
        (tuple(TABLE), r"samples \(5,\), \(5,\), \(5,\), \(5,\), … \(80 arrays\), labels \(80,\)"),
        (
            {**BY_NAME, "table": TABLE[1:]},
            r"one length.*\(80, 6, 6, 1\), \(79, 5\), labels \(80,\)",
        ),
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
    with pytest.raises(ValueError, match="one array of features, not a nest. Received: tuple"):
        few_shot(None, (IN_ORDER, Y), **EPISODES)
    with pytest.raises(ValueError, match="`samples` must be samples"):
        RepresentationHealth({"image": IMAGES, "table": TABLE[:3]})
    views = {"image": np.stack([IMAGES] * 2, axis=1), "table": np.stack([TABLE] * 3, axis=1)}
    model = SimCLR(encoder(), augmentation=TableNoise())
    model.compile("sgd")
    with pytest.raises(ValueError, match="`samples` must hold as many views of each input"):
        model.fit(BY_NAME, verbose=0, callbacks=[RepresentationHealth(views)])
    probe = KNNProbe(({**BY_NAME, "table": TABLE[:, :4]}, Y), (BY_NAME, Y))
    with pytest.raises(ValueError, match=r"Samples of `train` .*'table'.*\(4,\)"):
        model.fit(BY_NAME, verbose=0, callbacks=[probe])


def test_misspelt_episodes_are_told_as_such():
    inputs = {"suport_x": TABLE[None], "support_y": Y[None], "query_x": TABLE[None]}
    with pytest.raises(ValueError, match="support_x is missing"):
        few_shot(None, (inputs, Y[None]), verbose=0)


def test_lists_within_a_nest_are_arrays():
    nest = {"a": TABLE.tolist(), "b": (TABLE[:, 0].tolist(), TABLE)}
    x, _ = labelled_arrays((nest, Y))
    assert [a.shape for a in keras.tree.flatten(x)] == [(80, 5), (80,), (80, 5)]


@pytest.mark.parametrize("size", [4, 5])
def test_one_hot_labels_do_not_pass_for_batches(size):
    one_hot = np.eye(size, dtype=int)[Y]
    for x in (TABLE, IMAGES[:, :size], np.zeros((80, size))):
        with pytest.raises(ValueError, match="argmax"):
            labelled_arrays(tf.data.Dataset.from_tensor_slices((x, one_hot)))
    for batched in (
        tf.data.Dataset.from_tensor_slices((TABLE, Y % 2)).batch(size, drop_remainder=True),
        tf.data.Dataset.from_tensor_slices((TABLE, np.arange(80) % 2)).batch(
            2, drop_remainder=True
        ),
        tf.data.Dataset.from_tensors((TABLE, np.arange(80) == 3)),
    ):
        expected = np.concatenate([y for _, y in batched.as_numpy_iterator()])
        np.testing.assert_array_equal(labelled_arrays(batched)[1], expected)


def test_datasets_of_unknown_ranks():
    dataset = tf.data.Dataset.from_tensor_slices((TABLE, Y))
    unknown = dataset.map(lambda x, y: (tf.py_function(lambda a: 2 * a, [x], tf.float32), y))
    for source in (unknown.batch(7), unknown):
        np.testing.assert_array_equal(labelled_arrays(source)[0], 2 * TABLE)
