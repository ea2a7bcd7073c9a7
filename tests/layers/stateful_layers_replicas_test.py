"""State of the layers that have some: equal on two replicas, and to one device's on the same batches."""

import os
import subprocess
import sys

import pytest

NAMES = ["centering", "logit_scale", "memory_queue", "prototypes"]

TWO_REPLICAS = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from keras_sslmeta.layers.centering import Centering
from keras_sslmeta.layers.logit_scale import LogitScale
from keras_sslmeta.layers.memory_queue import MemoryQueue
from keras_sslmeta.layers.prototypes import Prototypes
from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.losses.swapped_prediction import SwappedPrediction

rng = np.random.default_rng(0)
# In batches of 4: shares of 2 and 2, and at last of 1 and 0.
X = rng.normal(size=(13, 2, 3)).astype("float32")
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

def model(name):
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
    view = hidden[:, 0]
    held, held_labels = MemoryQueue(9, name=name)(view, labels=labels)
    return keras.Model([x, labels], Positives()(view, held, labels, held_labels)), Squares()

for name in ("centering", "logit_scale", "memory_queue", "prototypes"):
    results = []
    data = (X, LABELS) if name == "memory_queue" else X
    rate = 0.1 if name == "logit_scale" else 0.02
    dataset = tf.data.Dataset.from_tensor_slices((data, np.zeros(13, "float32"))).batch(4)
    for scope in (tf.distribute.get_strategy().scope, strategy.scope):
        with scope():
            built, loss = model(name)
            built.compile(keras.optimizers.SGD(rate), loss)
        layer = built.get_layer(name)
        start = [w.numpy() for w in layer.weights]
        built.fit(dataset, epochs=2, shuffle=False, verbose=0)
        results.append([w.numpy() for w in layer.weights] + [w.numpy() for w in built.weights])
        assert any(np.abs(w.numpy() - s).max() > 1e-3 for w, s in zip(layer.weights, start)), name
        for weight in layer.weights:
            copies = strategy.experimental_local_results(weight.value)
            for copy in copies:
                np.testing.assert_array_equal(copy, copies[0], err_msg=name)
    assert len(copies) == 2, len(copies)
    for one, two in zip(*results, strict=True):
        if one.dtype.kind == "i":
            np.testing.assert_array_equal(two, one, err_msg=name)
        else:
            np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6, err_msg=name)
    if name == "memory_queue":
        assert layer.enqueued.numpy() == 26 and sorted(layer.labels.numpy()) == sorted(LABELS[-9:])
    if name == "prototypes":
        assert layer.steps.numpy() == 8
    if name == "logit_scale":
        np.testing.assert_allclose(layer.log_scale, np.log(100), rtol=1e-6)
    print("same:", name)
"""


@pytest.mark.slow
def test_one_replica_is_two():
    env = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.split("\n")[:-1] == [f"same: {name}" for name in NAMES]
