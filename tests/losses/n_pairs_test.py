import math

import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.losses import NPairs

PAIRS = np.random.default_rng(0).normal(size=(6, 2, 4))


def oracle(pairs, labels, l2_weight=0.0):
    """Softmax cross-entropy with positives by label, one logit at a time."""
    values = []
    for i, (anchor, positive) in enumerate(pairs):
        logits = [anchor @ other for _, other in pairs]
        total = math.log(sum(math.exp(x) for x in logits))
        same = [x for x, label in zip(logits, labels, strict=True) if label == labels[i]]
        norms = anchor @ anchor + positive @ positive
        values.append(total - sum(same) / len(same) + l2_weight / 2 * norms)
    return np.array(values)


@pytest.mark.parametrize("l2_weight", [0.0, 0.02])
@pytest.mark.parametrize("labels", [range(6), [0, 0, 1, 1, 1, 2], [7] * 6])
def test_equals_the_paper_logit_by_logit(labels, l2_weight, check_gradient):
    labels = np.array(labels)
    loss = NPairs(l2_weight, reduction=None, dtype="float64")
    expected = oracle(PAIRS, labels, l2_weight)
    np.testing.assert_allclose(loss(labels, PAIRS), expected, rtol=1e-10)
    names = np.array([f"class {x}" for x in labels], object)
    np.testing.assert_allclose(loss(names, PAIRS), expected, rtol=1e-10)
    check_gradient(NPairs(l2_weight, dtype="float64"), labels, PAIRS)
    if len(set(labels)) == 6:
        np.testing.assert_allclose(loss(None, PAIRS), expected, rtol=1e-10)


def test_nothing_is_normalised():
    longer = 3 * PAIRS
    assert abs(NPairs()(None, longer) - NPairs()(None, PAIRS)) > 0.1
    np.testing.assert_allclose(NPairs()(None, longer), oracle(longer, range(6)).mean(), rtol=1e-5)


def test_norms_of_1e4_in_half_precision_do_not_overflow(value_and_gradient):
    large = tf.cast(PAIRS / np.linalg.norm(PAIRS, axis=-1, keepdims=True) * 1e4, "float16")
    for labels in (None, np.array([0, 0, 1, 1, 2, 2])):
        value, got = value_and_gradient(NPairs(), labels, large)
        assert np.isfinite(value) and np.isfinite(got).all()


def test_rules_leave_out_samples_of_other_labels_only(check_gradient):
    labels = np.array([0, 0, 1, 1, 2, 2])
    rules = [ksm.negatives.ExcludeNearDuplicates(0.0)]
    loss = NPairs(negatives=rules, reduction=None, dtype="float64")
    expected = []
    for i, (anchor, _) in enumerate(PAIRS):
        logits = [anchor @ other for _, other in PAIRS]
        same = [labels[j] == labels[i] for j in range(6)]
        kept = [x for x, s in zip(logits, same, strict=True) if s or x <= 0]
        mean = np.mean([x for x, s in zip(logits, same, strict=True) if s])
        expected.append(math.log(sum(map(math.exp, kept))) - mean)
    np.testing.assert_allclose(loss(labels, PAIRS), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (None, np.ones((6, 4)), r"stack of anchors and positives.*\(6, 4\)"),
        (np.ones(6), PAIRS, "cast floats to the integers.*float64"),
        (np.arange(5), PAIRS, r"one label for each of the 6 samples.*\(5,\)"),
        (None, np.ones((6, 3, 4)), "without a memory or hard negatives"),
    ],
)
def test_refuses(y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        NPairs()(y_true, y_pred)
