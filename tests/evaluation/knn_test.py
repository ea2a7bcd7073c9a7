import math
import tracemalloc

import numpy as np
import pytest

from keras_sslmeta.evaluation import knn_accuracy, knn_predict


def loop(train, labels, test, k, temperature):
    """Wu et al.'s vote, one sample at a time."""
    predicted = []
    for t in test.astype("float64"):
        pairs = []
        for f, label in zip(train.astype("float64"), labels, strict=True):
            norms = math.sqrt(sum(t * t)) * math.sqrt(sum(f * f))
            pairs.append((sum(t * f) / norms if norms else 0.0, label))
        votes = {}
        for s, label in sorted(pairs, key=lambda pair: -pair[0])[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(s / temperature)
        predicted.append(max(sorted(votes), key=lambda label: votes[label]))
    return np.array(predicted)


@pytest.fixture
def blobs():
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 6))
    y = random.integers(0, 4, 160)
    x = (centres[y] + random.normal(size=(160, 6))) * random.uniform(0.1, 10, (160, 1))
    return x[:100], y[:100], x[100:], y[100:]


@pytest.mark.parametrize("block_size", [1, 7, 60, 1000])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.07), (20, 0.5), (100, 0.1)])
def test_equals_a_loop(blobs, k, temperature, block_size):
    train, labels, test, _ = blobs
    predicted = knn_predict(train, labels, test, k, temperature, block_size)
    np.testing.assert_array_equal(predicted, loop(train, labels, test, k, temperature))


def test_weights_matter(blobs):
    # At the same k, a low temperature follows the nearest and a high one the majority.
    train, labels, test, _ = blobs
    cold = knn_predict(train, labels, test, k=30, temperature=0.001)
    np.testing.assert_array_equal(cold, knn_predict(train, labels, test, k=1))
    hot = knn_predict(train, labels, test, k=30, temperature=1e6)
    assert (hot != cold).any()
    np.testing.assert_array_equal(hot, loop(train, labels, test, 30, 1e6))


@pytest.mark.parametrize(
    "names",
    [
        np.array(["ant", "bee", "cow", "doe"]),
        np.array([-(2**62), 7, 2**62, 2**62 + 1]),
        np.array([b"a", b"b", b"c", b"d"]),
        np.array([3, 200, 201, 255], "uint8"),
    ],
)
def test_labels_are_exact(blobs, names):
    train, y, test, test_y = blobs
    predicted = knn_predict(train, names[y], test)
    np.testing.assert_array_equal(predicted, names[knn_predict(train, y, test)])
    assert predicted.dtype == names.dtype
    accuracy = knn_accuracy(train, names[y], test, names[test_y])
    assert accuracy == np.mean(predicted == names[test_y]) > 0.3


def test_accuracy_counts(blobs):
    train, y, test, test_y = blobs
    expected = sum(loop(train, y, test, 20, 0.1) == test_y) / len(test_y)
    assert knn_accuracy(train, y, test, test_y) == pytest.approx(expected, abs=1e-12)
    assert knn_accuracy(train, y[:, np.newaxis], test, test_y[:, np.newaxis]) == expected
    assert knn_accuracy(train, y, test, np.full(len(test), 99)) == 0  # A class never seen.
    assert knn_accuracy(train, y, train, y, k=1) == 1


def test_random_features_are_near_chance():
    random = np.random.default_rng(1)
    x, y = random.normal(size=(4000, 16)), random.integers(0, 10, 4000)
    accuracy = knn_accuracy(x[:2000], y[:2000], x[2000:], y[2000:])
    assert abs(accuracy - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 2000)


def test_equal_votes_go_to_the_first_class():
    train, labels = [[1.0, 0.0], [1.0, 0.0]], ["b", "a"]
    assert knn_predict(train, labels, [[2.0, 1.0]], k=2).tolist() == ["a"]


def test_zeros_have_cosine_zero():
    train, labels = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), [5, 6, 7]
    # Of (0, 6, 7), the zero sample is second nearest to (1, 0) and to (-1, 0).
    assert knn_predict(train, labels, [[1.0, 0.0], [-1.0, 0.0]], k=1).tolist() == [6, 7]
    votes = knn_predict(np.array([[0.0, 0.0], [-1.0, 0.1]]), labels[:2], [[1.0, 0.0]], k=1)
    assert votes.tolist() == [5]
    assert knn_predict(train, [5, 5, 7], [[0.0, 0.0]], k=3).tolist() == [5]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(blobs, bad):
    train, y, test, test_y = blobs
    spoilt = np.concatenate([train, np.full((30, 6), bad)])
    labels = np.concatenate([y, np.full(30, 3)])
    np.testing.assert_array_equal(knn_predict(spoilt, labels, test), knn_predict(train, y, test))
    broken = test.copy()
    broken[:10, 2] = bad
    predicted = knn_predict(train, y, broken)
    assert (predicted[:10] == 0).all()
    right = knn_predict(train, y, test)[10:] == test_y[10:]
    assert knn_accuracy(train, y, broken, test_y) == pytest.approx(right.sum() / len(test))
    assert knn_accuracy(np.full_like(train, bad), y, test, test_y) == 0
    assert knn_accuracy(train, y, np.full_like(test, bad), test_y) == 0
    # More neighbours asked than are left: those that are left.
    np.testing.assert_array_equal(
        knn_predict(spoilt, labels, test, k=120), knn_predict(train, y, test, k=100)
    )


def test_extreme_scales_and_temperatures(blobs):
    train, y, test, _ = blobs
    expected = knn_predict(train, y, test)
    np.testing.assert_array_equal(knn_predict(train * 1e30, y, test * 1e-30), expected)
    assert len(knn_predict(train, y, test, temperature=1e-5)) == len(test)


def test_memory_is_a_block_not_the_matrix():
    random = np.random.default_rng(0)
    train, test = random.normal(size=(4000, 4)), random.normal(size=(4000, 4))
    y = np.zeros(4000, int)
    tracemalloc.start()
    knn_predict(train, y, test, block_size=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 4 / 8  # The similarities of all at once would be 64 MB.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 101}, "`k` must be at most the number of training samples, 100. Received: k=101"),
        ({"k": 0}, "`k` must be a positive integer"),
        ({"k": 2.0}, "`k` must be a positive integer"),
        ({"temperature": 0}, "`temperature` must be a positive number. Received: temperature=0"),
        ({"temperature": float("nan")}, "`temperature` must be"),
        ({"temperature": "warm"}, "`temperature` must be"),
        ({"block_size": 0}, "`block_size` must be"),
        ({"train_labels": np.zeros(99)}, "99 labels for 100 samples"),
        ({"test_labels": np.zeros(3)}, "3 labels for 60 samples"),
        ({"test_labels": np.array(["a"] * 60)}, "of one type. Received: int64 and <U1"),
        ({"train_labels": np.eye(100)}, "of one-hot labels, the argmax"),
        ({"test_features": np.zeros((60, 5))}, "as many columns.*Received: 5 and 6"),
        ({"test_features": np.zeros(60)}, r"`test_features` must give features"),
    ],
)
def test_bad_input(blobs, change, message):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**{**dict(zip(names, blobs, strict=True)), **change})
