import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.mechanisms.prompt_epochs import PromptEpochs, is_tuned

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")


class Watched(PromptEpochs):
    """Remembers what epochs read."""

    def __init__(self):
        super().__init__()
        self.dense, self.read = keras.layers.Dense(4), []

    def call(self, x):
        return self.dense(x)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        self.read.append(iterator._distributed_dataset)


@pytest.fixture
def watched():
    model = Watched()
    model.compile("sgd", "mse")
    return model


def test_epochs_on_arrays_are_not_tuned(watched):
    watched.fit(X, X, validation_data=(X, X), validation_batch_size=20, epochs=3, verbose=0)
    watched.evaluate(X, X, verbose=0)
    assert [is_tuned(dataset) for dataset in watched.read] == 5 * [False]
    # `fit` keeps the pipeline of its validation: it is not wrapped once more an epoch.
    assert watched.read[1] is watched.read[2] is watched.read[3]


def test_datasets_are_left_as_they_are(watched):
    dataset = tf.data.Dataset.from_tensor_slices((X, X)).batch(8)
    watched.fit(dataset, verbose=0)
    assert watched.read == [dataset]
    assert is_tuned(dataset)


def test_the_same_training_but_for_the_tuning(watched):
    class Plain(keras.Model):
        call = Watched.call

        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)

    histories = []
    for kind in (Watched, Plain):
        keras.utils.set_random_seed(3)
        model = kind()
        model.compile("sgd", "mse")
        histories.append(model.fit(X, X, batch_size=7, epochs=3, verbose=0).history)
    assert histories[0] == histories[1]


def test_models_and_datasets_of_the_package():
    assert issubclass(ksm.SimCLR, PromptEpochs)
    assert issubclass(ksm.MAML, PromptEpochs)
    y = np.repeat(np.arange(5), 8)
    datasets = [
        ksm.data.two_views(X, augmentation=lambda x: x, batch_size=4),
        ksm.data.episodes((X, y), ways=2, shots=1, queries=1).batch(4),
        ksm.data.sinusoids(shots=2, queries=2).batch(4),
    ]
    assert not any(is_tuned(dataset) for dataset in datasets)
