import collections
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.data import episodes

ROOT = Path(__file__).parents[2]
SIZES = {"ways": 3, "shots": 2, "queries": 4}
LABELS = np.random.default_rng(0).permutation(np.repeat([2, 3, 5, 7, 11], [6, 7, 8, 9, 30]))
# Every sample is its own number, so that an episode says which it took.
IDS = np.arange(len(LABELS))


def drawn(data=(IDS, LABELS), count=600, **arguments):
    """Support x and y, query x and y of the first episodes, each `(count, …)`."""
    dataset = episodes(data, **{**SIZES, "seed": 0, **arguments}).take(count).batch(count)
    ((inputs, query_y),) = dataset.as_numpy_iterator()
    assert inputs.keys() == {"support_x", "support_y", "query_x"}
    return inputs["support_x"], inputs["support_y"], inputs["query_x"], query_y


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("ways", "shots", "queries"), [(3, 2, 4), (5, 1, 1), (1, 5, 1), (2, 1, 5), (5, 3, 3)]
)
def test_every_episode_is_sound(ways, shots, queries):
    support_x, support_y, query_x, query_y = drawn(ways=ways, shots=shots, queries=queries)
    assert (support_y == [k for k in range(ways) for _ in range(shots)]).all()
    assert (query_y == [k for k in range(ways) for _ in range(queries)]).all()
    for support, query in zip(support_x, query_x, strict=True):
        assert len({*support, *query}) == ways * (shots + queries)  # No sample twice.
        classes = [
            {*LABELS[support[support_y[0] == k]], *LABELS[query[query_y[0] == k]]}
            for k in range(ways)
        ]
        assert all(len(of_k) == 1 for of_k in classes)
        assert len(set.union(*classes)) == ways


def test_classes_and_their_numbers_are_uniform():
    support_x, _, query_x, _ = drawn(count=6000, ways=2, shots=1, queries=1)
    pairs = collections.Counter(map(tuple, LABELS[support_x].tolist()))
    assert len(pairs) == 20  # Ordered pairs of 5 classes, all alike.
    assert sum((n - 300) ** 2 / 300 for n in pairs.values()) < 51  # 99.99% of 19 degrees: 50.8.
    # Within a class all samples are alike, in support and among the queries.
    for taken in (support_x, query_x):
        large = taken[LABELS[taken] == 11]
        counts = np.bincount(large, minlength=len(IDS))[LABELS == 11]
        expected = len(large) / 30
        assert ((counts - expected) ** 2 / expected).sum() < 67  # 29 degrees: 66.2.


@pytest.mark.parametrize("start", [1, 255, 256, 300])
def test_an_episode_is_a_function_of_seed_and_number(start):
    whole = drawn(count=600)
    expected = [array[start : start + 300] for array in whole]
    assert_same(drawn(count=300, start=start), expected)
    assert_same(drawn(count=300, start=start, episodes=300), expected)
    assert not np.array_equal(drawn(seed=1)[0], whole[0])
    # Nothing comes again after a block.
    assert len({tuple(row) for row in whole[0].tolist()}) > 590


def test_finite_passes_are_equal_and_counted():
    dataset = episodes((IDS, LABELS), **SIZES, episodes=300)
    assert int(dataset.cardinality()) == 300
    assert int(dataset.batch(32).cardinality()) == 10
    passes = [list(dataset.as_numpy_iterator()) for _ in range(2)]
    assert len(passes[0]) == 300
    assert_same(*([inputs["query_x"] for inputs, _ in one] for one in passes))


def test_endless_passes_are_equal():
    dataset = episodes((IDS, LABELS), **SIZES)
    assert int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY
    assert int(dataset.batch(32).cardinality()) == tf.data.INFINITE_CARDINALITY
    passes = [list(dataset.take(20).as_numpy_iterator()) for _ in range(2)]
    assert_same(*([inputs["query_x"] for inputs, _ in one] for one in passes))


def test_set_random_seed_fixes_the_draw():
    keras.utils.set_random_seed(5)
    first, second = drawn(seed=None), drawn(seed=None)
    keras.utils.set_random_seed(5)
    assert_same(drawn(seed=None), first)
    assert not np.array_equal(first[0], second[0])


def test_neither_order_nor_names_of_labels_need_be_integers():
    names = np.array(["b", "c", "e", "g", "k"])[np.searchsorted([2, 3, 5, 7, 11], LABELS)]
    expected = drawn()
    for y in (names, names.tolist(), names.astype(object), names.astype("S"), LABELS[:, None]):
        assert_same(drawn((IDS, y)), expected)
    assert_same(drawn([IDS.tolist(), tf.constant(LABELS)]), expected)


@pytest.mark.first(1)
@pytest.mark.parametrize("rotations", [False, True])
def test_a_dataset_gives_what_its_arrays_give(rotations):
    images = np.random.default_rng(1).integers(0, 256, (len(IDS), 3, 3, 2), dtype="uint8")
    names = LABELS.astype(str)
    for source in (
        tf.data.Dataset.from_tensor_slices((images, names)),
        tf.data.Dataset.from_generator(
            lambda: zip(images, names, strict=True),
            output_signature=(tf.TensorSpec((3, 3, 2), tf.uint8), tf.TensorSpec((), tf.string)),
        ),
    ):
        for dataset in (source, source.batch(7), source.batch(6, drop_remainder=True)):
            assert_same(
                drawn(dataset, 40, rotations=rotations),
                drawn((images, names), 40, rotations=rotations),
            )


def test_nests_keep_their_structure():
    x = {"id": IDS, "both": (IDS * 2, np.stack([IDS, -IDS], axis=1))}
    support_x, _, query_x, _ = drawn(x_and_y := (x, LABELS), 50)
    expected = drawn(count=50)
    for part, ids in ((support_x, expected[0]), (query_x, expected[2])):
        np.testing.assert_array_equal(part["id"], ids)
        np.testing.assert_array_equal(part["both"][0], 2 * ids)
        np.testing.assert_array_equal(part["both"][1], np.stack([ids, -ids], axis=-1))
    read = drawn(tf.data.Dataset.from_tensor_slices(x_and_y), 50)
    np.testing.assert_array_equal(read[0]["both"][1], support_x["both"][1])


@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        ("uint8", "float32"),
        ("int8", "int8"),
        ("int64", "int64"),
        ("float16", "float16"),
        ("float64", "float64"),
        ("bool", "bool"),
        ("str", "string"),
    ],
)
def test_values_and_dtypes(dtype, out):
    x = np.arange(60).astype(dtype)
    dataset = episodes((x, LABELS), **SIZES)
    assert dataset.element_spec[0]["query_x"].dtype == out
    support_x, _, query_x, _ = drawn((x, LABELS))
    ids = drawn()
    for values, taken in ((support_x, ids[0]), (query_x, ids[2])):
        expected = x[taken]
        np.testing.assert_array_equal(values, expected.astype("S") if dtype == "str" else expected)


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize("count", [None, 5])
def test_shapes_are_known(rotations, count):
    images = np.zeros((60, 4, 4, 3), "uint8")
    dataset = episodes((images, LABELS), **SIZES, rotations=rotations, episodes=count)
    inputs, query_y = dataset.element_spec
    assert inputs == {
        "support_x": tf.TensorSpec((6, 4, 4, 3), tf.float32),
        "support_y": tf.TensorSpec((6,), tf.int64),
        "query_x": tf.TensorSpec((12, 4, 4, 3), tf.float32),
    }
    assert query_y == tf.TensorSpec((12,), tf.int64)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_rotations_turn_whole_classes(channels):
    # The first pixel of a sample tells its number, the others how it is turned.
    shape = (len(IDS), 3, 3, *channels)
    images = np.arange(np.prod(shape)).reshape(shape).astype("float32")
    turned = {
        np.rot90(image, turn).tobytes(): (i, turn)
        for i, image in enumerate(images)
        for turn in range(4)
    }
    support_x, _, query_x, _ = drawn((images, LABELS), 1000, rotations=True)
    met = collections.Counter()
    for support, query in zip(support_x, query_x, strict=True):
        classes = []
        for way in range(3):
            members = [*support[2 * way : 2 * way + 2], *query[4 * way : 4 * way + 4]]
            found = [turned[member.tobytes()] for member in members]
            assert len(set(found)) == 6
            kinds = {(LABELS[i], turn) for i, turn in found}
            assert len(kinds) == 1  # One class, turned one way.
            classes += kinds
        assert len(set(classes)) == 3
        met.update(classes)
    assert len(met) == 20
    assert sum((n - 150) ** 2 / 150 for n in met.values()) < 51


def test_rotations_of_one_class_may_meet():
    images = np.arange(6 * 4, dtype="int32").reshape(6, 2, 2)
    support_x, *_ = drawn((images, [0] * 6), 20, ways=4, shots=1, queries=2, rotations=True)
    for support in support_x:
        turns = {
            turn
            for image in support
            for turn in range(4)
            if any(np.array_equal(image, np.rot90(original, turn)) for original in images)
        }
        assert turns == {0, 1, 2, 3}


def test_fits_without_warnings():
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    inputs = {
        "support_x": keras.Input((6, 4), name="support_x"),
        "support_y": keras.Input((6,), dtype="int64", name="support_y"),
        "query_x": keras.Input((12, 4), name="query_x"),
    }
    logits = keras.layers.Dense(3)(inputs["query_x"])
    model = keras.Model(inputs, logits)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train = episodes((x, LABELS), **SIZES).batch(4)
    test = episodes((x, LABELS), **SIZES, episodes=10).batch(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(
            train, steps_per_epoch=3, epochs=2, validation_data=test, shuffle=False, verbose=0
        )
        model.fit(test, epochs=2, shuffle=False, verbose=0)
        assert model.evaluate(test, verbose=0) == model.evaluate(test, verbose=0)


def test_fit_goes_on_over_epochs_and_resumes_by_start():
    class Recorder(keras.Model):
        def train_step(self, data):
            seen.extend(data[0]["query_x"].numpy().tolist())
            return {"loss": tf.constant(0.0)}

    def fit(epochs, start):
        dataset = episodes((IDS, LABELS), **SIZES, seed=0, start=start).batch(4)
        model = Recorder()
        model.compile(run_eagerly=True)
        model.fit(dataset, steps_per_epoch=3, epochs=epochs, shuffle=False, verbose=0)

    seen = []
    fit(epochs=2, start=0)
    fit(epochs=1, start=2 * 3 * 4)
    np.testing.assert_array_equal(seen, drawn(count=36)[2])


def test_data_changed_later_changes_no_episode():
    x = IDS.astype("float32")
    dataset = episodes((x, LABELS), **SIZES, seed=0).batch(20).take(1)
    (before, _), x[:] = next(dataset.as_numpy_iterator()), -1
    (after, _) = next(dataset.as_numpy_iterator())
    np.testing.assert_array_equal(after["query_x"], before["query_x"])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "bool", "complex64"])
def test_rotations_of_every_dtype(dtype):
    images = np.arange(6 * 4).reshape(6, 2, 2).astype(dtype)
    support_x, *_ = drawn((images, [0] * 6), 5, ways=4, shots=6 - 2, queries=2, rotations=True)
    assert support_x.dtype == ("float32" if dtype == "uint8" else dtype)
    turned = {np.rot90(image, k).tolist().__repr__() for image in images for k in range(4)}
    assert {image.astype(dtype).tolist().__repr__() for image in support_x[0]} <= turned


IMAGES = np.zeros((60, 3, 4, 1), "uint8")


def dataset_of(*tensors):
    return tf.data.Dataset.from_tensor_slices(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 0}, "`ways` must be a positive integer. Received: ways=0"),
        ({"ways": 6}, "`ways` must be at most the number of classes, 5. Received: ways=6"),
        ({"shots": 0}, "`shots` must be a positive integer. Received: shots=0"),
        ({"queries": 1.5}, "`queries` must be a positive integer. Received: queries=1.5"),
        ({"queries": 6}, r"of every class. Received: 8, .* in 2 classes: 2 \(6\), 3 \(7\)"),
        (
            {"data": (IDS, np.where(LABELS == 2, "rare", "common")), "ways": 2, "shots": 4},
            r"too few samples in 1 classes: rare \(6\)",
        ),
        ({"episodes": 0}, "`episodes` must be a positive integer. Received: episodes=0"),
        ({"episodes": 2.0}, "`episodes` must be"),
        ({"seed": -1}, "`seed` must be None or an integer from 0. Received: seed=-1"),
        ({"seed": "a"}, "`seed` must be"),
        ({"start": -1}, "`start` must be an integer from 0. Received: start=-1"),
        ({"start": 1.0}, "`start` must be"),
        ({"rotations": 4}, "`rotations` must be True or False. Received: rotations=4"),
        ({"rotations": True}, r"`data` must be square images.*`rotations` is True.*\(60,\)"),
        ({"rotations": True, "data": (IMAGES, LABELS)}, r"square images.*\(60, 3, 4, 1\)"),
        (
            {"rotations": True, "data": (IMAGES[:, :, :3], LABELS), "ways": 21},
            "`ways` must be at most the number of classes, 20. Received: ways=21",
        ),
        ({"data": IDS}, "`data` must be a pair.*Received: ndarray"),
        ({"data": (IDS,)}, "`data` must be a pair.*Received: tuple of length 1"),
        ({"data": (IDS[1:], LABELS)}, r"of one length.*\(59,\), labels \(60,\)"),
        ({"data": ({"a": IDS, "b": IDS[1:]}, LABELS)}, r"of one length.*\(60,\), \(59,\)"),
        ({"data": (3.0, LABELS)}, r"of one length.*\(\), labels \(60,\)"),
        ({"data": (np.zeros((0, 2)), np.zeros(0, int))}, "a sample at least"),
        ({"data": (IDS, np.eye(60))}, r"\(of one-hot labels, the argmax\).*\(60, 60\)"),
        ({"data": (IDS, LABELS / 2)}, "one integer or string a sample.*dtype=float64"),
        ({"data": (np.array([{}] * 60), LABELS)}, "`data` must hold numbers or strings.*object"),
        ({"data": dataset_of(IDS, LABELS).repeat()}, r"`data` must be finite.*`repeat\(\)`"),
        ({"data": dataset_of(IDS, np.eye(60))}, "of one-hot labels, take the argmax"),
        ({"data": dataset_of(IDS)}, "a dataset of pairs"),
        ({"data": dataset_of(IDS, LABELS, IDS)}, "a dataset of pairs"),
        ({"data": dataset_of(IDS, LABELS).take(0)}, "a sample at least"),
        (
            {"data": dataset_of(IDS, LABELS).map(lambda x, y: (tf.zeros([x % 3]), y))},
            "`data` must be a dataset of samples of one shape",
        ),
    ],
)
def test_bad_input(change, message):
    good = {"data": (IDS, LABELS), **SIZES}
    with pytest.raises(ValueError, match=message):
        episodes(**{**good, **change})


@pytest.mark.slow
def test_replicas_share_out_the_tasks():
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "3 3 1 3 3 1"
    assert "arn" not in done.stderr, done.stderr  # Neither Python's warnings nor TensorFlow's.


REPLICAS = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
import numpy as np
import tensorflow as tf
from keras_sslmeta.data import episodes

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
images = np.arange(40 * 4).reshape(40, 2, 2)
sizes = {"ways": 2, "shots": 1, "queries": 2, "seed": 0}
for rotations in (False, True):
    dataset = episodes((images, [0, 1] * 20), **sizes, episodes=7, rotations=rotations).batch(3)
    shared = strategy.experimental_distribute_dataset(dataset)
    for (alone, _), (together, _) in zip(dataset, shared, strict=True):
        parts = strategy.experimental_local_results(together["query_x"])
        assert len(parts) == 2
        joined = np.concatenate([part.numpy() for part in parts])
        np.testing.assert_array_equal(joined, alone["query_x"])
        print(len(joined), end=" ")
"""
