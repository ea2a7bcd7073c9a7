import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.data import split_classes

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat([3, 5, 8, 13, 21, 34], [2, 3, 4, 5, 6, 7]))
IDS = np.arange(len(LABELS))


def classes_of(parts):
    return [set(part_y.tolist()) for _, part_y in parts]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([4, 2], [4, 2]),
        ((1, 2, 3), [1, 2, 3]),
        ([2], [2]),
        (np.array([3, 1]), [3, 1]),
        ([0.5, 0.5], [3, 3]),
        ([0.5, 0.25, 0.25], [3, 1, 2]),  # Ends at 3, 4.5 (to even: 4) and 6.
        ([1 / 3, 1 / 3, 1 / 3], [2, 2, 2]),
        ([0.1, 0.2, 0.7], [1, 1, 4]),  # Ends at 0.6, 1.8 and 6.
        ([0.2], [1]),
        ([1.0], [6]),
    ],
)
def test_parts_share_no_class_and_keep_every_sample_of_theirs(sizes, expected):
    parts = split_classes((IDS, LABELS), sizes, seed=1)
    held = classes_of(parts)
    assert [len(classes) for classes in held] == expected
    for (part_x, part_y), classes in zip(parts, held, strict=True):
        # All samples of these classes, in their order, with their labels.
        assert part_x.tolist() == [i for i in IDS if LABELS[i] in classes]
        np.testing.assert_array_equal(part_y, LABELS[part_x])
        assert part_y.dtype == LABELS.dtype
    for a, b in itertools.combinations(held, 2):
        assert not a & b


def test_parts_are_copies():
    x = IDS.copy()
    ((part_x, _),) = split_classes((x, LABELS), [6], seed=0)
    part_x[:] = -1
    np.testing.assert_array_equal(x, IDS)


def test_the_seed_settles_it():
    def split(seed):
        return classes_of(split_classes((IDS, LABELS), [3, 3], seed=seed))

    assert split(4) == split(4)
    assert len({tuple(sorted(split(seed)[0])) for seed in range(50)}) > 10
    firsts = collections.Counter(label for seed in range(600) for label in split(seed)[0])
    assert set(firsts) == set(LABELS.tolist()) and all(250 < n < 350 for n in firsts.values())
    keras.utils.set_random_seed(3)
    first = split(None)
    assert any(split(None) != first for _ in range(5))
    keras.utils.set_random_seed(3)
    assert split(None) == first


def test_order_of_samples_makes_no_difference():
    order = RNG.permutation(len(LABELS))
    assert classes_of(split_classes((IDS, LABELS), [2, 4], seed=1)) == classes_of(
        split_classes((IDS[order], LABELS[order]), [2, 4], seed=1)
    )


def test_strings_nests_lists_and_columns():
    names = np.array([f"class {label}" for label in LABELS])
    x = {"id": IDS, "pair": np.stack([IDS, -IDS], axis=1)}
    for y in (names, names.tolist(), names[:, np.newaxis], names.astype(object)):
        for part_x, part_y in split_classes((x, y), [2, 4], seed=1):
            assert part_y.dtype.kind == "U"
            np.testing.assert_array_equal(names[part_x["id"]], part_y)
            np.testing.assert_array_equal(part_x["pair"][:, 1], -part_x["id"])
    a, _ = split_classes([IDS.tolist(), LABELS.tolist()], [2, 4], seed=1)
    np.testing.assert_array_equal(LABELS[a[0]], a[1])


def test_datasets_are_read():
    dataset = tf.data.Dataset.from_tensor_slices((IDS, LABELS))
    parts = split_classes(dataset, [2, 4], seed=1)
    for part, expected in zip(parts, split_classes((IDS, LABELS), [2, 4], seed=1), strict=True):
        np.testing.assert_array_equal(part[0], expected[0])
        np.testing.assert_array_equal(part[1], expected[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [4, 3]}, r"`sizes` must sum to at most the number of classes, 6.*\[4, 3\]"),
        ({"sizes": [4, 0]}, r"`sizes` must be a sequence of positive numbers.*\[4, 0\]"),
        ({"sizes": [4, -1]}, "`sizes` must be"),
        ({"sizes": [4, 0.5]}, r"\(integers\), or of shares of them \(floats\).*\[4, 0.5\]"),
        ({"sizes": [True, 2]}, "`sizes` must be"),
        ({"sizes": [0.7, 0.5]}, r"`sizes` must sum to at most 1 as shares.*\[0.7, 0.5\]"),
        ({"sizes": [0.95, 0.05]}, "must leave a class to every part.*parts of 6, 0 classes"),
        ({"sizes": [float("nan")]}, "`sizes` must be"),
        ({"sizes": [float("inf")]}, "`sizes` must sum to"),
        ({"sizes": []}, r"`sizes` must be.*sizes=\[\]"),
        ({"sizes": 3}, "`sizes` must be.*sizes=3"),
        ({"sizes": "42"}, "`sizes` must be"),
        ({"seed": -1}, "`seed` must be None or an integer from 0. Received: seed=-1"),
        ({"seed": 0.5}, "`seed` must be"),
        ({"data": IDS}, "`data` must be a pair.*Received: ndarray"),
        ({"data": (IDS, LABELS, LABELS)}, "`data` must be a pair.*tuple of length 3"),
        ({"data": (IDS[1:], LABELS)}, r"of one length.*\(26,\), labels \(27,\)"),
        ({"data": ([], [])}, "`data.*must"),
        ({"data": (IDS, np.eye(27))}, r"the argmax\). Received: shape=\(27, 27\)"),
        ({"data": (IDS, LABELS / 2)}, "dtype=float64"),
    ],
)
def test_bad_input(change, message):
    good = {"data": (IDS, LABELS), "sizes": [2, 4], "seed": 1}
    with pytest.raises(ValueError, match=message):
        split_classes(**{**good, **change})
