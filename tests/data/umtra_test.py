import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.data.episodes import episodes
from keras_sslmeta.data.umtra import umtra
from keras_sslmeta.layers import SimCLRAugmentation
from keras_sslmeta.meta.maml import MAML

# Every image is its own number in both channels, so that an episode says which it took.
COUNT = 40
IDS = np.broadcast_to(np.arange(COUNT)[:, None, None, None], (COUNT, 4, 4, 2)).astype("float32")


def tenths(images, seed):
    """Adds less than a half, and so tells the image and the draw: one number an image."""
    return images + 0.45 * tf.random.stateless_uniform([len(images), 1, 1, 1], seed)


class Tenths(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generators = [keras.random.SeedGenerator(7) for _ in range(2)]

    def call(self, images, training=False):
        if not training:
            return images
        shape = (images.shape[0], 1, 1, 1)
        a, b = (0.45 * keras.random.uniform(shape, seed=g) for g in self.generators)
        return images + keras.ops.concatenate([a, b], axis=-1)


def drawn(augmentation=tenths, count=300, x=IDS, **arguments):
    dataset = umtra(x, augmentation, **{"ways": 3, "seed": 0, **arguments}).take(count)
    ((inputs, query_y),) = dataset.batch(count).as_numpy_iterator()
    return inputs["support_x"], inputs["support_y"], inputs["query_x"], query_y


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


AUGMENTATIONS = pytest.mark.parametrize(
    "make", [lambda: tenths, Tenths, lambda: keras.Sequential([Tenths()])]
)


@pytest.mark.first(2)
@pytest.mark.parametrize("count", [None, 5])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_structure_is_that_of_labelled_episodes(count, dtype):
    x = np.zeros((60, 4, 4, 3), dtype)
    sizes = {"ways": 3, "shots": 2, "queries": 4, "episodes": count}
    ours = umtra(x, keras.layers.RandomFlip(), **sizes)
    theirs = episodes((x, np.repeat(np.arange(6), 10)), **sizes)
    assert ours.element_spec == theirs.element_spec
    assert int(ours.cardinality()) == int(theirs.cardinality())
    for (a, query_a), (b, query_b) in zip(ours.take(2), theirs.take(2), strict=True):
        np.testing.assert_array_equal(a["support_y"], b["support_y"])
        np.testing.assert_array_equal(query_a, query_b)


@pytest.mark.first(2)
@AUGMENTATIONS
@pytest.mark.parametrize("augment_support", [False, True])
def test_queries_are_augmentations_of_their_support(make, augment_support):
    sizes = {"ways": 3, "shots": 2, "queries": 4, "augment_support": augment_support}
    support_x, support_y, query_x, query_y = drawn(make(), **sizes)
    assert (support_y == [0, 0, 1, 1, 2, 2]).all()
    assert (query_y == [0] * 4 + [1] * 4 + [2] * 4).all()
    support, query = (
        part.reshape(300, 3, -1, 4, 4, 2)[:, :, :, 0, 0, :] for part in (support_x, query_x)
    )
    members = np.concatenate([support, query], axis=2)  # (episodes, ways, shots + queries, 2)
    images = np.floor(members)
    assert (images == images[:, :, :1, :1]).all()
    assert all(len(set(row)) == 3 for row in images[:, :, 0, 0])
    amounts = members - images
    assert (amounts[:, :, 1:] > 0).mean() > 0.99
    assert (amounts[:, :, 0] > 0).mean() > 0.99 if augment_support else not amounts[:, :, 0].any()
    # Every augmentation of every image has a draw of its own.
    of_augmented = amounts[:, :, 0 if augment_support else 1 :, 0]
    assert len(np.unique(of_augmented)) > 0.99 * of_augmented.size
    counts = np.bincount(images[:, :, 0, 0].astype(int).ravel(), minlength=COUNT)
    assert ((counts - 22.5) ** 2 / 22.5).sum() < 82  # 99.99% of 39 degrees.


def test_generators_of_one_layer_draw_apart():
    query_x = drawn(Tenths())[2]
    assert (query_x[..., 0] != query_x[..., 1]).mean() > 0.99  # Though of one seed.


@pytest.mark.first(2)
@AUGMENTATIONS
@pytest.mark.parametrize("start", [1, 256])
def test_an_episode_is_a_function_of_seed_and_number(make, start):
    whole = drawn(make(), count=300)
    expected = [array[start : start + 40] for array in whole]
    assert_same(drawn(make(), count=40, start=start), expected)
    assert_same(drawn(make(), count=40, start=start, episodes=40), expected)
    other = drawn(make(), seed=1)
    assert not np.array_equal(other[0], whole[0])
    assert not np.intersect1d(other[2] % 1, whole[2] % 1).size > 0.01 * whole[2].size


@AUGMENTATIONS
def test_passes_are_equal(make):
    dataset = umtra(IDS, make(), ways=3, episodes=30)
    passes = [[inputs["query_x"].numpy() for inputs, _ in dataset] for _ in range(2)]
    assert_same(*passes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: SimCLRAugmentation(16, seed=3),
        lambda: keras.layers.RandomRotation(0.5, seed=4),
        lambda: keras.layers.Pipeline(
            [keras.layers.RandomFlip(), keras.layers.RandomTranslation(0.3, 0.3)]
        ),
    ],
)
def test_layers_of_images_neither_lend_nor_take_their_state(make):
    x = np.random.default_rng(0).uniform(0, 255, (20, 16, 16, 3)).astype("float32")
    layer = make()
    first = drawn(layer, 20, x)
    before = [variable.numpy() for variable in layer.variables]
    second = drawn(layer, 20, x)
    assert_same([variable.numpy() for variable in layer.variables], before)
    layer(x)  # Its state moves on, and changes nothing.
    assert_same(second, first)
    assert_same(drawn(layer, 20, x), first)
    queries = first[2].reshape(60, -1)
    assert (np.abs(queries - first[0].reshape(60, -1)).max(axis=1) > 1).mean() > 0.8


def test_functions_without_a_seed_run_in_order():
    generator = tf.random.Generator.from_seed(0)

    def augment(images):
        return images + 0.45 * generator.uniform([3, 1, 1, 1])

    made = []
    for _ in range(2):
        dataset = umtra(IDS, augment, ways=3, seed=0, episodes=50)
        generator.reset_from_seed(0)
        made.append(np.stack([inputs["query_x"] for inputs, _ in dataset]))
    np.testing.assert_array_equal(*made)
    # The images are a function of the seed all the same.
    np.testing.assert_array_equal(np.floor(made[0]), np.floor(drawn(count=50)[2]))


def test_nests_reach_the_augmentation_whole():
    def augment(samples):
        return {"image": samples["image"] + samples["amount"][:, None, None, None] / 100}

    def both(samples):
        return {**augment(samples), "amount": samples["amount"]}

    x = {"image": IDS, "amount": np.arange(COUNT)}
    support_x, _, query_x, _ = drawn(both, x=x)
    np.testing.assert_array_equal(query_x["amount"], support_x["amount"])
    np.testing.assert_allclose(query_x["image"], 1.01 * support_x["image"], rtol=1e-6)
    assert query_x["amount"].dtype == "float32"


def test_an_augmentation_may_resize_where_every_sample_is_augmented():
    support_x, _, query_x, _ = drawn(
        lambda images: images[:, :2], augment_support=True, count=5, shots=2
    )
    assert support_x.shape == (5, 6, 2, 4, 2)
    assert query_x.shape == (5, 3, 2, 4, 2)


def test_set_random_seed_fixes_the_draw():
    keras.utils.set_random_seed(5)
    first, second = drawn(seed=None), drawn(seed=None)
    keras.utils.set_random_seed(5)
    assert_same(drawn(seed=None), first)
    assert not np.array_equal(first[0], second[0])


def test_the_probability_of_classes_that_differ():
    """The docstring's formula, against how often samples of four classes of ten all differ."""
    support_x, *_ = drawn(count=4000)
    met = [len({int(image) // 10 for image in row}) == 3 for row in support_x[..., 0, 0, 0]]
    expected = math.prod(10 * (4 - j) / (40 - j) for j in range(3))
    assert abs(np.mean(met) - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_maml_learns_to_tell_images_apart():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(30, 6, 6, 1)).astype("float32")
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    maml = MAML(model, inner_steps=1, inner_learning_rate=0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    maml.compile("adam", loss, metrics=["accuracy"])
    dataset = umtra(x, keras.layers.GaussianNoise(0.5), ways=3, queries=2).batch(8)
    history = maml.fit(dataset, steps_per_epoch=20, epochs=2, verbose=0)
    assert history.history["accuracy"][-1] > 0.6  # A third by chance.


class Unowned(keras.layers.Layer):
    def call(self, images):
        return images + keras.random.uniform(keras.ops.shape(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 0}, "`ways` must be a positive integer. Received: ways=0"),
        ({"ways": 41}, "`ways` must be at most the number of samples, 40. Received: ways=41"),
        ({"shots": 0}, "`shots` must be a positive integer. Received: shots=0"),
        ({"queries": 1.5}, "`queries` must be a positive integer. Received: queries=1.5"),
        ({"episodes": 0}, "`episodes` must be a positive integer. Received: episodes=0"),
        ({"seed": -1}, "`seed` must be None or an integer from 0. Received: seed=-1"),
        ({"start": -1}, "`start` must be an integer from 0. Received: start=-1"),
        ({"augment_support": 1}, "`augment_support` must be True or False.*augment_support=1"),
        ({"augmentation": None}, "`augmentation` must be a Keras layer.*Received: None"),
        ({"augmentation": [tenths, tenths]}, "`augmentation` must be one callable"),
        ({"augmentation": lambda x: x[:, :2]}, r"must keep the shape.*\(2, 4, 2\)"),
        ({"augmentation": lambda x: x[:, 0]}, "of the same rank"),
        ({"augmentation": Unowned()}, "seed generators of its own"),
        ({"x": np.zeros((0, 4, 4, 1))}, "with a sample at least"),
        ({"x": (IDS, IDS[1:])}, r"of one length.*\(40, 4, 4, 2\), \(39, 4, 4, 2\)"),
        ({"x": np.array(["a"] * 9)}, "`x` must be an array of numbers.*dtypes <U1"),
        ({"x": tf.data.Dataset.range(9)}, "`x` must be an array of numbers"),
    ],
)
def test_bad_input(change, message):
    good = {"x": IDS, "augmentation": tenths, "ways": 3}
    with pytest.raises(ValueError, match=message):
        umtra(**{**good, **change})


def test_partials_and_bound_methods_take_seeds():
    partial = functools.partial(tf.image.stateless_random_brightness, max_delta=0.4)
    whole = drawn(lambda images, seed: partial(images, seed=seed), count=20)
    assert_same(drawn(partial, count=20), whole)
    assert_same(drawn(partial, count=5, start=15), [array[15:] for array in whole])
