"""State of the layers that have some: equal on two replicas, and to one device's on the same batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers.centering import Centering
from keras_sslmeta.layers.logit_scale import LogitScale
from keras_sslmeta.layers.memory_queue import MemoryQueue
from keras_sslmeta.layers.prototypes import Prototypes
from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.losses.swapped_prediction import SwappedPrediction

# In batches of 4: shares of 2 and 2, and at last of 1 and 0.
X = np.random.default_rng(0).normal(size=(13, 2, 3)).astype("float32")
LABELS = np.arange(13) + 2**53 + 1


# Keras's own losses are not exact where shares are uneven.
class Pairs(BatchLoss):
    def call(self, y_true, y_pred):
        return -tf.reduce_sum(y_pred[:, 0] * (y_pred[:, 0] + 0.1 * y_pred[:, 1]), axis=-1)


class Squares(BatchLoss):
    def call(self, y_true, y_pred):
        return tf.reduce_sum(y_pred**2, axis=list(range(1, len(y_pred.shape))))


class Positives(keras.layers.Layer):
    def call(self, x, held, labels, held_labels):
        same = tf.cast(labels[:, None] == held_labels, x.dtype)
        return x[:, :1] + tf.matmul(x, held, transpose_b=True) * (1 + same)


def model_of(name):
    keras.utils.set_random_seed(0)
    x = keras.Input((2, 3))
    hidden = keras.layers.Dense(3, kernel_initializer="identity")(x)
    if name == "centering":
        return keras.Model(x, Centering(0.5, name=name)(hidden)), Squares()
    if name == "logit_scale":
        layer = LogitScale(0.02, initial_bias=-1.0, name=name)
        return keras.Model(x, layer(hidden)), Pairs()
    if name == "prototypes":
        return keras.Model(x, Prototypes(4, frozen_steps=6, name=name)(hidden)), SwappedPrediction()
    labels = keras.Input((), dtype="int64")
    held, held_labels = MemoryQueue(9, name=name)(hidden[:, 0], labels=labels)
    logits = Positives()(hidden[:, 0], held, labels, held_labels)
    return keras.Model([x, labels], logits), Squares()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["centering", "logit_scale", "memory_queue", "prototypes"])
def test_one_replica_is_two(name, replicas):
    data = (X, LABELS) if name == "memory_queue" else X
    rate = 0.1 if name == "logit_scale" else 0.02
    dataset = tf.data.Dataset.from_tensor_slices((data, np.zeros(13, "float32"))).batch(4)
    results = []
    for count in (1, 2):
        with replicas(count).scope():
            model, loss = model_of(name)
            model.compile(keras.optimizers.SGD(rate), loss)
        layer = model.get_layer(name)
        start = [w.numpy() for w in layer.weights]
        model.fit(dataset, epochs=2, shuffle=False, verbose=0)
        results.append([w.numpy() for w in (*layer.weights, *model.weights)])
        moved = [np.abs(w.numpy() - s).max() for w, s in zip(layer.weights, start, strict=True)]
        assert max(moved) > 1e-3
        for weight in layer.weights:
            copies = replicas(2).experimental_local_results(weight.value)
            assert len(copies) == count
            for copy in copies:
                np.testing.assert_array_equal(copy, copies[0])
    for one, two in zip(*results, strict=True):
        if one.dtype.kind == "i":
            np.testing.assert_array_equal(two, one)
        else:
            np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    if name == "memory_queue":
        assert layer.enqueued.numpy() == 26 and sorted(layer.labels.numpy()) == sorted(LABELS[-9:])
    if name == "prototypes":
        assert layer.steps.numpy() == 8
    if name == "logit_scale":
        np.testing.assert_allclose(layer.log_scale, np.log(100), rtol=1e-6)
