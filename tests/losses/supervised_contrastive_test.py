import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.losses import NTXent, SupervisedContrastive

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"
VIEWS = np.random.default_rng(0).normal(size=(6, 2, 5))
LABELS = np.array([0, 1, 0, 2, 1, 0])
HELD = np.random.default_rng(1).normal(size=(4, 5))
HELD_LABELS = np.array([1, 5, 0, 1])


def oracle(z, labels, temperature, memory=None, memory_labels=(), left_out=lambda i, j, s: False):
    """Equation 2 of the paper, anchor by anchor; one value a sample. `left_out` is of negatives."""
    batch, views, _ = z.shape
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    anchors = [(unit[i, v], labels[i], i) for i in range(batch) for v in range(views)]
    others = list(anchors)
    if memory is not None:
        held = memory / np.linalg.norm(memory, axis=-1, keepdims=True)
        others += [(x, label, None) for x, label in zip(held, memory_labels, strict=True)]
    values = np.zeros(batch)
    for a, (vector, label, sample) in enumerate(anchors):
        positives, denominator = [], 0.0
        for b, (other, other_label, j) in enumerate(others):
            if b == a:
                continue
            s = vector @ other
            if label == other_label:
                positives.append(s / temperature)
            elif left_out(sample, j, s):
                continue
            denominator += math.exp(s / temperature)
        if positives:
            values[sample] += (math.log(denominator) - np.mean(positives)) / views
    return values


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
def test_golden_values_of_lightly(value_and_gradient):
    golden = np.load(GOLDEN)
    prefix = "supervised_contrastive/"
    cases = sorted({key.rsplit("/", 1)[0] for key in golden.files if key.startswith(prefix)})
    assert cases
    for case in cases:
        loss = SupervisedContrastive(float(golden[f"{case}/temperature"]))
        value, got = value_and_gradient(loss, golden[f"{case}/labels"], golden[f"{case}/z"])
        expected = golden[f"{case}/grad_z"]
        np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-5)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_equals_the_paper_anchor_by_anchor(views, temperature, check_gradient):
    z = np.random.default_rng(views).normal(size=(6, views, 5))
    loss = SupervisedContrastive(temperature, reduction=None, dtype="float64")
    expected = oracle(z, LABELS, temperature)
    if views == 1:
        assert expected[3] == 0  # Nobody shares its label.
        np.testing.assert_allclose(loss(LABELS, z[:, 0]), expected, rtol=1e-10)
    np.testing.assert_allclose(loss(LABELS, z), expected, rtol=1e-10)
    check_gradient(SupervisedContrastive(temperature, dtype="float64"), LABELS, z, rtol=1e-4)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype("uint8"),
        LABELS + 2**60,
        np.array(["a", "bb", "a", "ccc", "bb", "a"]),
        np.array(["ä", "b\0", "ä", "b", "b\0", "ä"], object),
        tf.constant(["x", "y", "x", "", "y", "x"]),
        LABELS[:, None],
    ],
)
def test_labels_of_any_type_are_compared_exactly(labels):
    got = SupervisedContrastive(reduction=None, dtype="float64")(labels, VIEWS)
    np.testing.assert_allclose(got, oracle(VIEWS, LABELS, 0.1), rtol=1e-10)


@pytest.mark.parametrize("labels", [LABELS + 2**24, np.array(list("abacba"), object)])
def test_labels_reach_the_loss_exactly_through_fit(labels):
    model = keras.Sequential([keras.Input((2, 5)), keras.layers.Identity()])
    model.compile(loss=SupervisedContrastive(), jit_compile=False)  # XLA takes no strings.
    expected = oracle(VIEWS, LABELS, 0.1).mean()
    x = VIEWS.astype("float32")
    arrays = model.evaluate(x, labels, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(6)
    np.testing.assert_allclose([arrays, model.evaluate(dataset, verbose=0)], expected, rtol=1e-5)


def test_strings_are_nothing_for_xla():
    model = keras.Sequential([keras.Input((2, 5)), keras.layers.Identity()])
    model.compile(loss=SupervisedContrastive(), jit_compile=True)
    labels = np.array(list("abacba"), object)
    with pytest.raises(ValueError, match="jit_compile=False"):
        model.evaluate(VIEWS.astype("float32"), labels, verbose=0)


def test_a_label_of_its_own_for_each_sample_is_nt_xent(value_and_gradient):
    for temperature in (0.05, 0.5):
        ours = value_and_gradient(SupervisedContrastive(temperature), np.arange(6), VIEWS)
        theirs = value_and_gradient(NTXent(temperature), None, VIEWS)
        for got, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_an_anchor_without_positives_costs_nothing_and_serves_as_a_negative(value_and_gradient):
    z = VIEWS[:, 0]
    value, got = value_and_gradient(
        SupervisedContrastive(0.5, reduction=None, dtype="float64"), LABELS, z
    )
    assert value[3] == 0 and np.isfinite(got).all() and np.abs(got[3]).max() > 0
    value, got = value_and_gradient(SupervisedContrastive(), np.arange(6), z)
    assert value == 0
    np.testing.assert_array_equal(got, np.zeros_like(z))


def test_closed_forms(value_and_gradient):
    ones = np.ones((8, 4), "float32")
    for labels in (np.zeros(8, int), np.array([0, 0, 1, 1, 2, 2, 3, 3])):
        np.testing.assert_allclose(SupervisedContrastive()(labels, ones), math.log(7), rtol=1e-5)
    # Two classes at right angles, two of each: −1/T + log(e^{1/T} + 2).
    z = np.repeat(np.eye(2, dtype="float32"), 2, axis=0)
    expected = math.log(1 + 2 * math.exp(-2))
    got = SupervisedContrastive(0.5)(np.array([0, 0, 1, 1]), z)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    zero = np.zeros((4, 4), "float32")
    value, got = value_and_gradient(SupervisedContrastive(), np.array([0, 0, 1, 1]), zero)
    np.testing.assert_allclose(value, math.log(3), rtol=1e-6)
    np.testing.assert_array_equal(got, zero)
    large = tf.cast(VIEWS * 1e4 / 3, "float16")
    value, got = value_and_gradient(SupervisedContrastive(), LABELS, large)
    exact = oracle(tf.cast(large, tf.float64).numpy(), LABELS, 0.1).mean()
    np.testing.assert_allclose(value, exact, rtol=1e-4)
    assert np.isfinite(got).all()


def test_a_memory_holds_positives_and_negatives(check_gradient):
    loss = SupervisedContrastive(0.3, reduction=None, dtype="float64")
    target = {"labels": LABELS, "memory": HELD, "memory_labels": HELD_LABELS}
    expected = oracle(VIEWS, LABELS, 0.3, HELD, HELD_LABELS)
    np.testing.assert_allclose(loss(target, VIEWS), expected, rtol=1e-10)
    check_gradient(SupervisedContrastive(0.3, dtype="float64"), target, VIEWS)
    with pytest.raises(ValueError, match="`memory_labels`"):
        loss({"labels": LABELS, "memory": HELD}, VIEWS)


def test_rules_leave_out_negatives_and_never_positives(check_gradient):
    rules = [ksm.negatives.ExcludeNearDuplicates(0.1)]
    loss = SupervisedContrastive(0.3, negatives=rules, reduction=None, dtype="float64")
    expected = oracle(VIEWS, LABELS, 0.3, left_out=lambda i, j, s: s > 0.1)
    np.testing.assert_allclose(loss(LABELS, VIEWS), expected, rtol=1e-10)
    target = {"labels": LABELS, "memory": HELD, "memory_labels": HELD_LABELS}
    expected = oracle(VIEWS, LABELS, 0.3, HELD, HELD_LABELS, lambda i, j, s: s > 0.1)
    np.testing.assert_allclose(loss(target, VIEWS), expected, rtol=1e-10)
    # A rule that leaves out nothing changes nothing.
    rules = [ksm.negatives.ExcludeNearDuplicates(2.0)]
    kept = SupervisedContrastive(0.3, negatives=rules, dtype="float64")
    plain = SupervisedContrastive(0.3, dtype="float64")
    np.testing.assert_allclose(kept(LABELS, VIEWS), plain(LABELS, VIEWS), rtol=1e-10)
    check_gradient(kept, LABELS, VIEWS)


@pytest.mark.parametrize(
    ("y_true", "message"),
    [
        (None, r"must hold one integer or string a sample.*None"),
        (LABELS.astype("float32"), "cast floats to the integers that they were"),
        (np.eye(6, dtype=int), r"argmax of one-hot rows.*\(6, 6\)"),
        (LABELS[:4], r"one label for each of the 6 samples.*\(4,\)"),
        ({"label": LABELS}, "`labels` must hold one integer or string a sample"),
    ],
)
def test_refuses_labels(y_true, message):
    with pytest.raises(ValueError, match=message):
        SupervisedContrastive()(y_true, VIEWS)
