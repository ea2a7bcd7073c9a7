import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileLoss

from keras_sslmeta.mechanisms.task_loss import TaskLoss

RNG = np.random.default_rng(0)
A, B = (RNG.normal(size=(5, n)).astype("float32") for n in (2, 3))
OF_A, OF_B = (RNG.normal(size=(5, n)).astype("float32") for n in (2, 3))
LABELS = np.array([0, 2, 1, 1, 0])
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 3.0], "float32")
SPARSE = keras.losses.SparseCategoricalCrossentropy
MSE, MAE = keras.losses.MeanSquaredError, keras.losses.MeanAbsoluteError
CASES = {
    "one": (MSE(), None, OF_A, A, None),
    "a name": ("mse", None, OF_A, A, None),
    "a class's name": ("MeanSquaredError", None, OF_A, A, None),
    "a function": (keras.losses.mean_absolute_error, None, OF_A, A, None),
    "weighted samples": (MSE(), None, OF_A, A, WEIGHTS),
    "a sum": (MSE(reduction="sum"), None, OF_A, A, WEIGHTS),
    "mean by weight": (MSE(reduction="mean_with_sample_weight"), None, OF_A, A, WEIGHTS),
    "labels": (SPARSE(from_logits=True), None, LABELS, B, WEIGHTS),
    "labels in a column": (SPARSE(from_logits=True), None, LABELS[:, None], B, None),
    "labels by name": ("sparse_categorical_crossentropy", None, LABELS, np.exp(B), None),
    "a column against a vector": (MSE(), None, OF_A[:, :1], A[:, 0], None),
    "a vector against a column": (MSE(), None, OF_A[:, 0], A[:, :1], None),
    "a vector against a column, by name": ("mse", None, OF_A[:, 0], A[:, :1], None),
    "a column against a vector, by name": ("mse", None, OF_A[:, :1], A[:, 0], None),
    "list": ([MSE(), MAE()], None, [OF_A, OF_B], [A, B], None),
    "list, one loss": (MSE(), None, [OF_A, OF_B], [A, B], None),
    "list, weighted": ([MSE(), "mae"], [0.5, 2.0], [OF_A, OF_B], [A, B], None),
    "list, samples too": ([MSE(), MAE()], [0.5, 2.0], [OF_A, OF_B], [A, B], [WEIGHTS, WEIGHTS**2]),
    "dict": (
        {"z": MSE(), "a": MAE()},
        {"z": 0.5, "a": 2.0},
        {"z": OF_A, "a": OF_B},
        {"z": A, "a": B},
        None,
    ),
    "dict, one without loss": (
        {"z": MSE()},
        {"z": 3.0},
        {"z": OF_A, "a": OF_B},
        {"z": A, "a": B},
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_compiled_loss_of_keras(case):
    loss, loss_weights, targets, outputs, weights = CASES[case]
    wanted = CompileLoss(loss, loss_weights)(targets, outputs, weights)
    tensors = keras.tree.map_structure(tf.constant, (targets, outputs))
    got = TaskLoss(loss, loss_weights)(*tensors, weights)
    assert got.shape == ()
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_dict_of_losses_by_output_names_for_a_list_of_outputs():
    loss = TaskLoss({"z": MSE(), "a": MAE()}, {"z": 0.5, "a": 2.0}, ["z", "a"])
    wanted = 0.5 * np.mean((A - OF_A) ** 2) + 2.0 * np.mean(np.abs(B - OF_B))
    np.testing.assert_allclose(loss([OF_A, OF_B], [A, B]), wanted, rtol=1e-6)
    named = loss({"z": OF_A, "a": OF_B}, [A, B])
    np.testing.assert_allclose(named, wanted, rtol=1e-6)


def test_no_reduction_sums():
    got = TaskLoss(MSE(reduction=None))(OF_A, A, WEIGHTS)
    np.testing.assert_allclose(got, np.sum(np.mean((A - OF_A) ** 2, -1) * WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize(
    ("reduction", "is_mean"),
    [
        ("sum_over_batch_size", True),
        ("mean_with_sample_weight", True),
        ("mean", True),
        ("sum", False),
        (None, False),
    ],
)
def test_knows_a_mean(reduction, is_mean):
    assert TaskLoss(MSE(reduction=reduction)).is_mean is is_mean


def test_refuses_different_reductions():
    with pytest.raises(ValueError, match=r"same `reduction`.*Received: .*sum.*sum_over_batch_size"):
        TaskLoss([MSE(), MSE(reduction="sum")])


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "message"),
    [
        ([MSE(), MAE()], OF_A, A, "`loss` must have the structure.*Received"),
        (MSE(), OF_A, [A, B], "needs targets for each|`targets` must have the structure"),
        (MSE(), [OF_A, OF_B, OF_A], [A, B], "`targets` must have the structure.*Received"),
        ({"q": MSE()}, {"a": OF_A, "z": OF_B}, {"a": A, "z": B}, "`loss` must have the structure"),
        (MSE(), {"b": OF_A, "z": OF_B}, {"a": A, "z": B}, "`targets` must have the structure"),
    ],
)
def test_refuses_structures_that_differ(loss, targets, outputs, message):
    with pytest.raises(ValueError, match=message):
        TaskLoss(loss)(targets, outputs)


@pytest.mark.parametrize("bad", [3, -1])
@pytest.mark.parametrize("loss", [SPARSE(from_logits=True), "sparse_categorical_crossentropy"])
def test_labels_must_be_classes_of_the_head(loss, bad):
    labels = LABELS.copy()
    labels[1] = bad
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        TaskLoss(loss).checks_of_labels("query_y", tf.constant(labels), tf.constant(B))
    for part in ("`query_y` must hold labels from 0 to 2", "3 classes", f"{bad}"):
        assert part in str(caught.value)


def test_good_labels_and_other_losses_pass():
    TaskLoss(SPARSE()).checks_of_labels("query_y", tf.constant(LABELS), tf.constant(B))
    assert TaskLoss("mse").checks_of_labels("query_y", tf.constant(OF_A), tf.constant(A)) == []


def test_the_class_to_ignore_is_a_label():
    labels = LABELS.copy()
    labels[1] = -1
    loss = TaskLoss(SPARSE(from_logits=True, ignore_class=-1))
    loss.checks_of_labels("query_y", tf.constant(labels), tf.constant(B))
