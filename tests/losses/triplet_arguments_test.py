import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.triplet_all import TripletAll
from keras_sslmeta.losses.triplet_hard import TripletHard
from keras_sslmeta.losses.triplet_semi_hard import TripletSemiHard


def taxicab(z):
    return tf.reduce_sum(tf.abs(z[:, None] - z), axis=-1)


def test_defaults_are_those_of_tensorflow_addons():
    for loss in (TripletSemiHard(), TripletHard(), TripletAll()):
        assert (loss.margin, loss.distance_metric, loss.normalize) == (1.0, "L2", False)
    assert not TripletHard().soft


def test_a_function_that_gives_no_distances_is_refused():
    with pytest.raises(ValueError, match=r"`distance_metric` must map.*\(8,\) for.*\(8, 5\)"):
        TripletHard(distance_metric=lambda z: tf.norm(z, axis=1))(
            np.zeros(8, int), np.ones((8, 5), "float32")
        )


@pytest.mark.parametrize("cls", [TripletSemiHard, TripletHard, TripletAll])
@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf, "1", None, True])
def test_refuses_margins(cls, margin):
    with pytest.raises(ValueError, match=r"`margin` must be a number from 0\. Received") as error:
        cls(margin=margin)
    assert repr(margin) in str(error.value)


@pytest.mark.parametrize("cls", [TripletSemiHard, TripletHard, TripletAll])
@pytest.mark.parametrize("metric", ["cosine", "l2", None, 2])
def test_refuses_metrics(cls, metric):
    with pytest.raises(ValueError, match=r"`distance_metric` must be one of 'L2'") as error:
        cls(distance_metric=metric)
    assert repr(metric) in str(error.value)


@pytest.mark.parametrize("cls", [TripletSemiHard, TripletHard, TripletAll])
@pytest.mark.parametrize(
    ("labels", "z", "message"),
    [
        (None, np.ones((4, 5)), "y_true=None"),
        (np.zeros(4), np.ones((4, 5)), "dtype=float64"),
        (np.zeros((4, 3), int), np.ones((4, 5)), r"shape=\(4, 3\)"),
        (np.zeros(3, int), np.ones((4, 5)), r"each of the 4 samples.*shape=\(3,\)"),
        (np.zeros(4, int), np.ones(4), r"\(batch, dim\).*shape=\(4,\)"),
        (np.zeros(4, int), np.ones((4, 5), int), "dtype=int64"),
    ],
)
def test_refuses_inputs(cls, labels, z, message):
    with pytest.raises(ValueError, match=message):
        cls()(labels, z)


@pytest.mark.parametrize(
    "loss",
    [
        TripletSemiHard(0.3, "angular", True, False, "sum", "mine", "float64"),
        TripletHard(0.3, True, "angular", True, False, "sum", "mine", "float64"),
        TripletAll(0.3, True, True, "squared-L2", True, False, "sum", "mine", "float64"),
    ],
)
def test_config_is_complete(loss):
    again = type(loss).from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    for name in ("margin", "distance_metric", "normalize", "gather", "reduction", "name", "dtype"):
        assert getattr(again, name) == getattr(loss, name)
    assert getattr(again, "soft", True) and getattr(again, "nonzero_only", True)


def test_config_holds_registered_functions():
    registered = keras.saving.register_keras_serializable(package="tests", name="taxicab")(taxicab)
    loss = TripletHard(distance_metric=registered)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.distance_metric is registered
