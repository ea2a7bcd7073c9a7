import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm

TASKS = ksm.data.episodes(
    (np.random.default_rng(0).normal(size=(30, 4)).astype("float32"), np.arange(30) % 3),
    ways=3,
    shots=1,
    queries=2,
    seed=0,
).batch(2)
VIEWS = tf.data.Dataset.from_tensors(tf.random.normal((6, 2, 4), seed=0)).repeat()


def prototypes():
    return ksm.PrototypicalNetwork(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def sim_clr():
    encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    return ksm.SimCLR(encoder, projector=keras.layers.Dense(2))


@pytest.mark.parametrize(("build", "data"), [(prototypes, TASKS), (sim_clr, VIEWS)])
def test_endless_data_is_refused_where_nobody_says_how_much(build, data):
    model = build()
    model.compile()
    for use in (
        lambda: model.fit(data, verbose=0),
        lambda: model.evaluate(data, verbose=0),
        lambda: model.fit(data, steps_per_epoch=1, validation_data=data, verbose=0),
    ):
        with pytest.raises(ValueError, match="The dataset is endless.*`steps_per_epoch=`"):
            use()
    history = model.fit(
        data, steps_per_epoch=2, validation_data=data, validation_steps=1, verbose=0
    ).history
    assert np.isfinite(history["loss"] + history["val_loss"]).all()
    assert np.isfinite(model.evaluate(data, steps=2, verbose=0))
