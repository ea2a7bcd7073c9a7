import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import label_ids

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def ids(labels, *more, **kwargs):
    labels = label_ids.check("labels", labels)
    return label_ids.ids(labels, *(label_ids.check("more", x) for x in more), **kwargs)


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize(
    "labels",
    [
        *(np.array([7, 5, 7, 1], dtype) for dtype in INTEGERS),
        [7, 5, 7, 1],
        [2**40, 5, 2**40, 1],
        2**53 + np.array([1, 0, 1, 2]),
        np.array([2**64 - 1, 2**64 - 2, 2**64 - 1, 1], "uint64"),
        np.array([7, 5, 7, 1], object),
        np.array([2**40, 5, 2**40, 1], object),
        ["a", "b", "a", "a much longer one"],
        np.array(["a", "b", "a", "ä"]),
        np.array([b"a", b"b", b"a", b"c"]),
        np.array(["a", "b", "a", "c"], object),
        np.array([["a"], ["b"], ["a"], ["c"]]),
        tf.constant(["a", "", "a", "b"]),
        tf.constant(["a", "a\0", "a", "a\0\0"]),
        tf.constant([[7], [5], [7], [1]]),
    ],
    ids=lambda x: str(getattr(x, "dtype", "list")),
)
def test_numbers_are_equal_where_labels_are(labels, gather):
    (got,) = ids(labels, gather=gather)
    assert got.dtype == tf.int32 and got.shape == (4,)
    got = got.numpy()
    assert got[0] == got[2] and len(set(got.tolist())) == 3


def test_truth_values():
    (got,) = ids(np.array([True, False, True]))
    assert got[0] == got[2] != got[1]


@pytest.mark.parametrize("kind", ["int64", "strings"])
def test_no_labels(kind):
    (got,) = ids(tf.zeros([0], tf.string if kind == "strings" else tf.int64))
    assert got.dtype == tf.int32 and got.shape == (0,)


def test_more_labels_are_numbered_alongside():
    own, first, second = ids(np.array([4, 5, 4]), np.array([5, 9]), np.array([9, 4, 5, 7]))
    assert [len(x) for x in (own, first, second)] == [3, 2, 4]
    names = {}
    for labels, numbers in (([4, 5, 4], own), ([5, 9], first), ([9, 4, 5, 7], second)):
        for label, number in zip(labels, numbers.numpy().tolist(), strict=True):
            assert names.setdefault(label, number) == number
    assert len(set(names.values())) == 4


def test_more_strings_are_numbered_alongside():
    own, more = ids(["a", "bb", "a"], ["a longer one", "bb"])
    assert own[0] == own[2] and own[1] == more[1]
    assert len({int(own[0]), int(own[1]), int(more[0])}) == 3


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_more_labels_of_a_wider_type_do_not_wrap_around(dtype):
    """A memory holds int64, and the batch's labels may be bytes: 257 is not 1."""
    own, more = ids(np.array([1, 2], dtype), np.array([257, 2**32 + 1, 1]))
    assert own[0] == more[2]
    assert len(set(own.numpy().tolist() + more.numpy().tolist())) == 4


def test_integers_and_strings_do_not_mix():
    with pytest.raises(ValueError, match=r"all be integers or all be strings.*int64, string"):
        ids(np.array([1, 2]), ["a"])


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_inside_of_a_function_of_unknown_size(kind):
    @tf.function(input_signature=[tf.TensorSpec([None], kind)])
    def step(labels):
        return ids(labels)[0]

    for labels in ([3, 4, 3], [], [5]):
        got = step(tf.constant(list(map(str, labels)) if kind == "string" else labels, kind))
        assert len(set(got.numpy().tolist())) == len(set(labels))
        assert got.shape == (len(labels),)


def test_compiled():
    step = tf.function(lambda labels: ids(labels)[0], jit_compile=True)
    np.testing.assert_array_equal(step(tf.constant([5, 9, 5])), [0, 1, 0])


def test_an_unknown_rank():
    @tf.function(input_signature=[tf.TensorSpec(None, tf.int64)])
    def step(labels):
        return ids(labels)[0]

    np.testing.assert_array_equal(step(tf.constant([[5], [9], [5]], tf.int64)), [0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels=None"),
        (np.array([1.0, 2.0]), "dtype=float64"),
        ([0.5, 1.0], "dtype=float32"),
        (np.eye(3, dtype=int), r"argmax.*shape=\(3, 3\)"),
        (np.array(3), r"shape=\(\)"),
        (np.array([1, "a"], object), "all of one kind"),
        (np.array(["a", None], object), "all of one kind"),
        (np.array([1.0, 2.0], object), "all of one kind|dtype=float"),
    ],
)
def test_refuses(labels, message):
    with pytest.raises(
        ValueError, match=r"`labels` must hold one integer or string a sample"
    ) as error:
        label_ids.check("labels", labels)
    assert error.match(message)


def test_refuses_another_number_than_there_are_samples():
    with pytest.raises(ValueError, match=r"each of the 3 samples.*shape=\(2,\)"):
        label_ids.check("labels", np.array([1, 2]), 3)
    assert label_ids.check("labels", np.array([1, 2]), 2).shape == (2,)
