import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.data import two_views

IMAGES = np.arange(10 * 2 * 3 * 1, dtype="uint8").reshape(10, 2, 3, 1)
LABELS = np.arange(10) * 11


def identity(samples):
    return samples


def all_of(dataset):
    """Views and labels of one pass."""
    batches = list(dataset.as_numpy_iterator())
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def order_of(dataset):
    return [int(label) for batch in dataset.as_numpy_iterator() for label in batch[1]]


def test_views_of_an_array():
    dataset = two_views(
        IMAGES, LABELS, augmentation=[identity, lambda x: -x], batch_size=4, shuffle=False
    )
    views, labels = all_of(dataset)
    np.testing.assert_array_equal(views[:, 0], IMAGES.astype("float32"))
    np.testing.assert_array_equal(views[:, 1], -IMAGES.astype("float32"))
    np.testing.assert_array_equal(labels, LABELS)
    assert views.dtype == np.float32 and labels.dtype == LABELS.dtype


@pytest.mark.first(8)
@pytest.mark.parametrize("source", ["array", "dataset"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("drop_remainder", [True, False])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_structure_and_cardinality(source, labelled, drop_remainder, views):
    x, y = IMAGES, LABELS if labelled else None
    if source == "dataset":
        x, y = tf.data.Dataset.from_tensor_slices((x, y) if labelled else x), None
    dataset = two_views(
        x,
        y,
        augmentation=identity,
        batch_size=4,
        views=views,
        drop_remainder=drop_remainder,
    )
    assert isinstance(dataset.element_spec, tuple) == labelled
    assert int(dataset.cardinality()) == (2 if drop_remainder else 3)
    batches = list(dataset)
    assert len(batches) == int(dataset.cardinality())
    spec = dataset.element_spec[0] if labelled else dataset.element_spec
    assert spec.shape.as_list() == [4 if drop_remainder else None, views, 2, 3, 1]
    assert spec.dtype == tf.float32
    seen = [batch[0] if labelled else batch for batch in batches]
    assert [len(batch) for batch in seen] == ([4, 4] if drop_remainder else [4, 4, 2])


def test_each_view_has_its_own_randomness_and_stays_beside_its_sample():
    noise = keras.layers.GaussianNoise(0.1, seed=3)  # Does nothing unless training=True.
    x = 100.0 * np.arange(10)[:, np.newaxis]
    views, labels = all_of(two_views(x, LABELS, augmentation=noise, batch_size=4, seed=1))
    residual = views[:, :, 0] - 100 * (labels / 11)[:, np.newaxis]
    assert np.abs(residual).max() < 1  # Labels and views moved together.
    assert len(np.unique(residual)) == 20


def test_shuffle_is_a_function_of_seed_and_pass():
    def passes(seed, global_seed, count=3):
        tf.random.set_seed(global_seed)
        dataset = two_views(IMAGES, LABELS, augmentation=identity, batch_size=4, seed=seed)
        return [order_of(dataset) for _ in range(count)]

    first = passes(5, 0)
    assert all(sorted(order) == list(LABELS) for order in first)
    assert len({tuple(order) for order in first}) == 3
    assert passes(5, 1) == first  # Whatever the global seed.
    assert passes(6, 0) != first
    # Batch size doesn't matter, nor who reads: (seed, pass) says it all.
    other = two_views(IMAGES, LABELS, augmentation=identity, batch_size=3, seed=5)
    assert [order_of(other) for _ in range(3)] == first


@pytest.mark.parametrize("source", ["array", "dataset"])
def test_set_random_seed_fixes_everything(source):
    def run():
        keras.utils.set_random_seed(7)
        x, y = IMAGES, LABELS
        if source == "dataset":
            x, y = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)), None
        augmentation = keras.Sequential([keras.layers.GaussianNoise(1.0)])
        dataset = two_views(x, y, augmentation=augmentation, batch_size=4)
        return [all_of(dataset) for _ in range(2)]

    first, second = run(), run()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    assert not np.array_equal(first[0][1], first[1][1])  # Another order in each pass.


def test_no_shuffle_keeps_the_order_in_every_pass():
    dataset = two_views(IMAGES, LABELS, augmentation=identity, batch_size=3, shuffle=False)
    assert order_of(dataset) == order_of(dataset) == list(LABELS)


def test_dataset_source_shuffles_and_passes_everything_on():
    weights = np.linspace(0, 1, 10)
    source = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, weights))
    dataset = two_views(source, augmentation=identity, batch_size=4, seed=1)
    views, labels, seen = all_of(dataset)
    assert sorted(labels) == list(LABELS) and list(labels) != list(LABELS)
    np.testing.assert_array_equal(views[:, 0], IMAGES[labels // 11])
    np.testing.assert_array_equal(seen, weights[labels // 11])
    nearly = two_views(source, augmentation=identity, batch_size=4, seed=1, shuffle=2)
    _, labels, _ = all_of(nearly)
    # A buffer of two takes nobody more than one place ahead.
    assert all(label // 11 <= place + 1 for place, label in enumerate(labels))


def test_nests():
    x = {"image": IMAGES, "size": np.arange(10)}
    dataset = two_views(
        x,
        augmentation=lambda s: {"image": s["image"] * 2, "size": s["size"] + 1},
        batch_size=4,
        shuffle=False,
    )
    batch = next(dataset.as_numpy_iterator())
    np.testing.assert_array_equal(batch["image"][:, 1], 2.0 * IMAGES[:4])
    np.testing.assert_array_equal(batch["size"], [[1, 1], [2, 2], [3, 3], [4, 4]])


def test_lists_and_strings():
    dataset = two_views(
        [[1.0, 2.0], [3.0, 4.0]],
        ["a", "b"],
        augmentation=identity,
        batch_size=2,
        shuffle=False,
    )
    views, labels = all_of(dataset)
    assert views.tolist() == [[[1, 2]] * 2, [[3, 4]] * 2] and labels.tolist() == [b"a", b"b"]


def test_half_precision_augmentation_comes_out_as_float32():
    crop = keras.layers.Rescaling(1 / 255, dtype="float16")
    dataset = two_views(IMAGES, augmentation=crop, batch_size=4)
    assert dataset.element_spec.dtype == tf.float32


class Spread(keras.losses.Loss):
    """A loss of two views that doesn't look at labels."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return keras.ops.mean(keras.ops.square(y_pred[:, 0] - y_pred[:, 1]))


@pytest.mark.parametrize("labelled", [True, False])
def test_plain_model_fits_without_warnings(labelled):
    model = keras.Sequential(
        [keras.Input((2, 2, 3, 1)), keras.layers.Reshape((2, 6)), keras.layers.Dense(3)]
    )
    model.compile(keras.optimizers.SGD(0.001), loss=Spread())
    dataset = two_views(
        IMAGES / 60,
        LABELS if labelled else None,
        augmentation=[identity, lambda x: -x],
        batch_size=4,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = model.fit(dataset, epochs=3, verbose=0, shuffle=False)
    losses = history.history["loss"]
    assert len(losses) == 3 and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive integer. Received: batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size` must be"),
        ({"batch_size": True}, "`batch_size` must be"),
        ({"views": 0}, "`views` must be a positive integer"),
        ({"shuffle": -1}, "`shuffle` must be a positive integer"),
        ({"seed": -1}, "`seed` must be"),
        ({"seed": "a"}, "`seed` must be"),
        ({"augmentation": None}, "`augmentation` must be a Keras layer.*Received: None"),
        ({"augmentation": [identity]}, "Received: 1 of them and views=2"),
        ({"augmentation": [identity, 3]}, "`augmentation` must be a Keras layer.*Received: 3"),
        ({"augmentation": [identity, lambda x: x[:, :1]]}, "one shape. Received: .*1, 3, 1"),
        ({"y": np.arange(9)}, "arrays of one length.*9"),
        ({"x": np.zeros((0, 2)), "y": None}, "a sample at least"),
        ({"x": np.array(["a", "b"]), "y": None}, "`x` must hold numbers"),
        ({"x": 3.0, "y": None}, "arrays of one length"),
        ({"x": tf.data.Dataset.range(3)}, "`y` must be None where `x` is a dataset"),
    ],
)
def test_bad_input(change, message):
    good = {"x": IMAGES, "y": LABELS, "augmentation": identity, "batch_size": 4}
    with pytest.raises(ValueError, match=message):
        two_views(**{**good, **change})
