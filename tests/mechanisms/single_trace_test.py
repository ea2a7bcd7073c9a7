import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm

IMAGES = np.random.default_rng(0).uniform(0, 255, (13, 8, 8, 3)).astype("float32")
EPISODES = {
    "support_x": np.random.default_rng(1).normal(size=(5, 6, 4)).astype("float32"),
    "support_y": np.tile(np.arange(6) % 3, (5, 1)),
    "query_x": np.random.default_rng(2).normal(size=(5, 9, 4)).astype("float32"),
}
QUERY_Y = np.tile(np.arange(9) % 3, (5, 1))


def encoder():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])


def counted(model, kind):
    """The model as one of a class that counts how often its step is traced."""

    class Counted(kind):
        traces = 0

        def compute_metrics(self, *args, **kwargs):
            self.traces += 1
            return super().compute_metrics(*args, **kwargs)

    model.__class__ = Counted
    return model


def sim_clr(**kwargs):
    augmentation = ksm.layers.SimCLRAugmentation(8, flip=False)
    model = ksm.SimCLR(encoder(), augmentation, projector=keras.layers.Dense(4), **kwargs)
    return counted(model, ksm.SimCLR)


def maml():
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    return counted(ksm.MAML(network, inner_steps=1, inner_learning_rate=0.1), ksm.MAML)


FOR_MAML = {
    "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "metrics": ["accuracy"],
}


@pytest.mark.first(1)
@pytest.mark.parametrize("batch_size", [13, 6])
def test_a_self_supervised_step_is_traced_once(batch_size):
    model = sim_clr()
    model.compile("adam")
    model.fit(IMAGES, batch_size=batch_size, epochs=2, verbose=0)
    assert model.traces == 1
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)


def test_a_meta_step_with_metrics_is_traced_once():
    model = maml()
    model.compile("adam", **FOR_MAML)
    history = model.fit(EPISODES, QUERY_Y, batch_size=2, epochs=2, verbose=0).history
    assert model.traces == 1 and 0 <= history["accuracy"][0] <= 1
    # The metric is that of all queries of the epoch, of its uneven last batch too.
    model.traces = 0
    answers = np.argmax(model.predict(EPISODES, batch_size=2, verbose=0), axis=-1)
    result = model.evaluate(EPISODES, QUERY_Y, batch_size=2, verbose=0, return_dict=True)
    assert model.traces == 1
    assert result["accuracy"] == pytest.approx(np.mean(answers == QUERY_Y), abs=1e-6)


def test_evaluation_first_is_traced_once_and_makes_no_optimizer_variables():
    model = maml()
    model.compile("adam", **FOR_MAML)
    model.evaluate(EPISODES, QUERY_Y, batch_size=2, verbose=0)
    assert model.traces == 1 and not model.optimizer.built


def test_train_on_batch():
    model = sim_clr()
    model.compile("adam")
    for _ in range(3):
        model.train_on_batch(IMAGES)
    assert model.traces == 1


@pytest.mark.slow
def test_other_settings_of_compile():
    model = sim_clr()
    model.compile(keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2), run_eagerly=True)
    assert np.isfinite(model.fit(IMAGES, batch_size=13, verbose=0).history["loss"]).all()
    model = sim_clr()
    model.compile("adam", steps_per_execution=2, jit_compile=True)
    assert np.isfinite(model.fit(IMAGES, batch_size=13, verbose=0).history["loss"]).all()


class Late(keras.layers.Layer):
    """Makes its weights when it is called, not before."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 4), name="kernel")

    def call(self, x):
        return x @ self.kernel


class WithLateLayer(ksm.SimCLR):
    def build_heads(self, features):
        self.late = Late()
        return super().build_heads(features)

    def call(self, inputs, training=None):
        return self.late(super().call(inputs, training=training))


@pytest.mark.slow
def test_weights_that_are_made_late_are_trained():
    model = WithLateLayer(encoder(), ksm.layers.SimCLRAugmentation(8), keras.layers.Dense(4))
    model.compile(keras.optimizers.SGD(0.1))
    before = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: before.append(model.late.kernel.numpy())
    )
    model.fit(IMAGES, batch_size=6, verbose=0, callbacks=[note])
    assert any(v is model.late.kernel for v in model.trainable_variables)
    assert np.abs(before[1] - before[0]).max() > 0


class Before(keras.callbacks.Callback):
    """Freezes a layer, or lets it train, before the first step."""

    def __init__(self, layer, trainable):
        super().__init__()
        self.layer, self.trainable = layer, trainable

    def on_train_begin(self, logs=None):
        self.layer.trainable = self.trainable


@pytest.mark.parametrize("trainable", [True, False])
def test_layers_frozen_or_not_before_the_first_step(trainable, tmp_path):
    keras.utils.set_random_seed(0)
    model = ksm.SimCLR(encoder(), projector=keras.layers.Dense(4))
    layer = model.encoder.layers[-1]
    layer.trainable = not trainable
    model.compile("adam")
    before = layer.kernel.numpy()
    views = np.stack([IMAGES, IMAGES[:, ::-1]], axis=1)
    model.fit(views, batch_size=13, verbose=0, callbacks=[Before(layer, trainable)])
    assert np.any(layer.kernel.numpy() != before) == trainable
    # The optimizer keeps nothing for what was frozen: files hold what a loaded model will look for.
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").optimizer.iterations == 1


def test_metrics_are_where_the_model_is():
    with tf.device("CPU:1"):
        model = maml()
        model.compile("adam", **FOR_MAML, jit_compile=True)
        assert "accuracy" in model.fit(EPISODES, QUERY_Y, batch_size=5, verbose=0).history
    assert model.traces == 1
    assert {variable.value.device[-5:] for variable in model.variables} == {"CPU:1"}


def test_a_strategy_of_one_replica_is_left_to_keras():
    with tf.distribute.OneDeviceStrategy("CPU:1").scope():
        model = maml()
        model.compile("adam", **FOR_MAML)
    model.fit(EPISODES, QUERY_Y, batch_size=5, verbose=0)
    assert {variable.value.device[-5:] for variable in model.metrics_variables} == {"CPU:1"}


def test_labels_of_unknown_rank():
    class LabelsSeen(keras.metrics.Mean):
        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state(tf.cast(tf.reshape(y_true, [-1]), "float32"))

    def pairs(x):
        return x, tf.py_function(lambda: tf.fill([13], 3.0), [], tf.float32)

    model = sim_clr()
    model.compile("adam", metrics=[LabelsSeen(name="seen")])
    data = tf.data.Dataset.from_tensors(IMAGES).map(pairs)
    assert model.fit(data, verbose=0).history["seen"] == [3.0]


def test_metrics_that_do_not_exist_are_refused():
    model = maml()
    model.compile("adam", **{**FOR_MAML, "metrics": ["acuracy"]})
    with pytest.raises(ValueError, match="acuracy"):
        model.fit(EPISODES, QUERY_Y, verbose=0)
