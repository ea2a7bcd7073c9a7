import importlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from keras_sslmeta.evaluation import linear_probe


@pytest.fixture
def blobs():
    """Four overlapping classes of unequal sizes; columns of very different scales."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 6))
    y = random.choice(4, 300, p=[0.4, 0.3, 0.2, 0.1])
    x = (centres[y] + random.normal(size=(300, 6))) * [1e-3, 1, 1, 10, 100, 1] + 5
    return (x[:200], y[:200]), (x[200:], y[200:])


def standardised(train, test):
    x = train[0].astype("float32").astype("float64")
    mean, std = x.mean(axis=0), x.std(axis=0)
    return (x - mean) / std, (test[0].astype("float32").astype("float64") - mean) / std


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_equals_scikit_learn(blobs, strength):
    train, test = blobs
    x, asked = standardised(train, test)
    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(x, train[1])
    predicted = model.predict(asked)
    result = linear_probe(None, train, test, C=strength)
    assert result.accuracy == pytest.approx(np.mean(predicted == test[1]))
    assert result.macro_accuracy == pytest.approx(balanced_accuracy_score(test[1], predicted))
    top2 = top_k_accuracy_score(test[1], model.decision_function(asked), k=2)
    assert result.top_k_accuracy(2) == pytest.approx(top2)
    assert result.accuracy < result.top_k_accuracy(2) < 1
    assert (result.C, result.classes, result.train_samples) == (strength, 4, 200)


def test_interval(blobs):
    result = linear_probe(None, *blobs, C=1.0)
    right = (result.ranks == 0).astype(float)
    variance = sum((r - right.mean()) ** 2 for r in right) / (len(right) - 1)
    assert result.half_interval == pytest.approx(1.96 * math.sqrt(variance / len(right)))
    assert str(result) == f"{100 * result.accuracy:.1f} ± {100 * result.half_interval:.1f} %"


def test_penalty_is_chosen_on_training_samples_alone():
    """Where 150 columns each tell a little, a strong penalty does better on samples not fitted."""
    random = np.random.default_rng(3)
    y = random.integers(0, 2, 600)
    x = random.normal(size=(600, 150))
    x += 0.3 * (y[:, np.newaxis] - 0.5)
    train, test = (x[:200], y[:200]), (x[200:], y[200:])
    chosen = linear_probe(None, train, test)
    weak = linear_probe(None, train, test, C=10.0)
    assert chosen.C <= 1e-2
    assert chosen.accuracy > weak.accuracy + 0.02
    other_labels = linear_probe(None, train, (test[0], 1 - test[1]))
    assert other_labels.C == chosen.C
    np.testing.assert_array_equal(1 - other_labels.ranks, chosen.ranks)
    assert linear_probe(None, train, test, C=[10.0, 1e-3]).C == 1e-3


def test_choice_equals_a_loop(blobs):
    """The smallest C that is most accurate on the held-out fifth, which is stratified."""
    train, test = blobs
    random = np.random.default_rng(7)
    learnt = []
    for label in range(4):
        members = np.flatnonzero(train[1] == label)
        learnt += list(random.permutation(members)[: round(0.8 * len(members))])
    learnt = np.sort(learnt)
    held = np.array(sorted(set(range(200)) - set(learnt)))
    scores = {}
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        part, rest = (train[0][learnt], None), (train[0][held], None)
        x, asked = standardised(part, rest)
        model = LogisticRegression(C=strength, max_iter=5000).fit(x, train[1][learnt])
        scores[strength] = model.score(asked, train[1][held])
    assert len(set(scores.values())) > 1
    result = linear_probe(None, train, test, seed=7)
    assert max(scores, key=lambda c: (scores[c], -c)) == result.C


def test_fraction_is_stratified_and_seeded(blobs):
    (x, y), test = blobs
    seen = []

    def encoder(batch):
        seen.append(batch)
        return batch

    def drawn(**kwargs):
        seen.clear()
        result = linear_probe(encoder, (x, y), test, C=1.0, **kwargs)
        rows = {tuple(row): label for row, label in zip(x, y, strict=True)}
        labels = [rows.get(tuple(row)) for row in np.concatenate(seen)[: result.train_samples]]
        return labels, np.concatenate(seen)[: result.train_samples]

    labels, first = drawn(fraction=0.1, seed=1)
    expected = [max(1, round(0.1 * n)) for n in np.bincount(y)]
    assert np.bincount(labels).tolist() == expected
    np.testing.assert_array_equal(drawn(fraction=0.1, seed=1)[1], first)
    assert (drawn(fraction=0.1, seed=2)[1] != first).any()
    assert len(drawn(fraction=1e-9)[0]) == 4  # One of each class.
    assert len(drawn()[0]) == 200


def test_encoder_model_and_datasets(blobs):
    train, test = blobs
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])
    x, asked = (model.predict(part[0], verbose=0) for part in blobs)
    expected = linear_probe(None, (x, train[1]), (asked, test[1]), C=1.0)
    np.testing.assert_array_equal(linear_probe(model, train, test, C=1.0).ranks, expected.ranks)
    data = tf.data.Dataset.from_tensor_slices(train)
    for train_data in (data, data.batch(33)):
        got = linear_probe(model, train_data, test, C=1.0)
        np.testing.assert_array_equal(got.ranks, expected.ranks)


@pytest.mark.parametrize(
    "names",
    [
        np.array(["dog", "ant", "cow", "bee"]),
        np.array([b"d", b"a", b"c", b"b"]),
        np.array([-(2**62), 7, 2**62, 2**62 + 1]),
    ],
)
def test_labels_of_any_kind(blobs, names):
    (x, y), (asked, asked_y) = blobs
    expected = linear_probe(None, (x, y), (asked, asked_y), C=1.0)
    result = linear_probe(None, (x, names[y]), (asked, names[asked_y]), C=1.0)
    assert result.accuracy == expected.accuracy
    assert result.macro_accuracy == pytest.approx(expected.macro_accuracy)


def test_two_classes_and_unseen_ones(blobs):
    (x, y), (asked, asked_y) = blobs
    kept = y < 2
    result = linear_probe(None, (x[kept], y[kept]), (asked, asked_y), C=1.0)
    scaled, scaled_asked = standardised((x[kept], None), (asked, None))
    model = LogisticRegression(C=1.0).fit(scaled, y[kept])
    np.testing.assert_array_equal(result.ranks == 0, model.predict(scaled_asked) == asked_y)
    assert (result.ranks[asked_y > 1] == 2).all()


def test_features_that_are_not_finite(blobs):
    (x, y), (asked, asked_y) = blobs
    spoilt = np.concatenate([x, np.full((20, 6), np.nan)]), np.concatenate([y, np.zeros(20, int)])
    broken = asked.copy()
    broken[:10, 1] = np.inf
    expected = linear_probe(None, (x, y), (asked, asked_y), C=1.0)
    result = linear_probe(None, spoilt, (broken, asked_y), C=1.0)
    assert result.train_samples == 200
    assert (result.ranks[:10] == 4).all()
    np.testing.assert_array_equal(result.ranks[10:], expected.ranks[10:])


def test_constant_features_give_the_commonest_class(blobs):
    (x, y), (asked, asked_y) = blobs
    result = linear_probe(None, (0 * x, y), (0 * asked, asked_y))
    assert result.accuracy == np.mean(asked_y == np.bincount(y).argmax())


@pytest.mark.parametrize("classifier", [RidgeClassifier(2.0), KNeighborsClassifier(5)])
def test_classifier_of_the_users(blobs, classifier):
    train, test = blobs
    x, asked = standardised(train, test)
    predicted = type(classifier)(**classifier.get_params()).fit(x, train[1]).predict(asked)
    result = linear_probe(None, train, test, classifier=classifier)
    np.testing.assert_array_equal(result.ranks == 0, predicted == test[1])
    assert result.C is None and not hasattr(classifier, "classes_")


def test_paired_difference(blobs):
    a, b = (linear_probe(None, *blobs, C=strength) for strength in (1.0, 1e-4))
    difference, half = a.paired_difference(b)
    assert difference == pytest.approx(a.accuracy - b.accuracy)
    d = (a.ranks == 0).astype(int) - (b.ranks == 0)
    assert half == pytest.approx(1.96 * np.std(d, ddof=1) / 10)
    train, (asked, asked_y) = blobs
    with pytest.raises(ValueError, match="`other` must be a result on the same test samples"):
        a.paired_difference(linear_probe(None, train, (asked[1:], asked_y[1:]), C=1.0))
    with pytest.raises(ValueError, match="`k` must be below the number of classes, 4. Received"):
        a.top_k_accuracy(4)


def test_progress(blobs, capsys, monkeypatch):
    linear_probe(None, *blobs)
    assert capsys.readouterr().out == ""
    linear_probe(None, *blobs, verbose=1)
    assert "7/7" in capsys.readouterr().out
    linear_probe(None, *blobs, C=[0.1, 1.0], verbose=2)
    assert "3/3" in capsys.readouterr().out
    monkeypatch.setattr(
        importlib.import_module("keras_sslmeta.evaluation.linear_probe"), "_LONG", 1200
    )
    linear_probe(None, *blobs, C=[1e-4, 1e-3])  # 200 training samples of six numbers.
    assert "3/3" in capsys.readouterr().out
    linear_probe(None, *blobs, C=1e-4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"C": 0}, "`C` must be a positive number. Received: C=0"),
        ({"C": []}, "`C` must be a positive number, or several"),
        ({"C": 1.0, "classifier": RidgeClassifier()}, "`C` must be left alone"),
        ({"classifier": "svm"}, "`classifier` must be a scikit-learn classifier"),
        ({"fraction": 0}, "`fraction` must be a number above 0, up to 1. Received: fraction=0"),
        ({"fraction": 1.5}, "`fraction` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"verbose": 3}, '`verbose` must be "auto", 0, 1 or 2. Received: verbose=3'),
        ({"train": np.zeros((3, 2))}, r"`train` must be a pair, \(x, y\), or a tf.data.Dataset"),
        ({"train": (np.zeros((3, 6)), [1, 1, 1])}, "two classes at least.*3 of them, of 1"),
        ({"train": (np.zeros((3, 6)), [1, 2, 3])}, "samples to choose `C` on"),
        ({"test": (np.zeros((3, 5)), [1, 1, 1])}, "as many numbers as `train`. Received: 5 and 6"),
        ({"test": (np.zeros((3, 6)), list("abc"))}, "labels of one type. Received: int64 and <U1"),
    ],
)
def test_bad_input(blobs, change, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(None, **{"train": blobs[0], "test": blobs[1], **change})
