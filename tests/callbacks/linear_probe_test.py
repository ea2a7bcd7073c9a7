import contextlib
import csv
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import SimCLR
from keras_sslmeta.callbacks import LinearProbe, RepresentationHealth
from keras_sslmeta.evaluation import linear_probe, representation_health

RANDOM = np.random.default_rng(0)
Y = RANDOM.integers(0, 3, 90)
X = (RANDOM.normal(size=(3, 4))[Y] + 0.7 * RANDOM.normal(size=(90, 4))).astype("float32")
TRAIN, TEST = (X[:50], Y[:50]), (X[50:], Y[50:])


def classifier():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, "tanh"), keras.layers.Dropout(0.2)]
        + [keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss=loss, metrics=["accuracy"])
    return model


def fit(model, *callbacks, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Keras's own, wherever it saves a variable under NumPy 2.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return model.fit(X, Y, batch_size=16, **{"verbose": 0, **kwargs}, callbacks=[*callbacks])


class KerasProbe(keras.callbacks.Callback):
    """The same by Keras: a Dense layer and Keras's Adam, batch by batch, in the probe's order."""

    def __init__(self, epochs, batch_size, rate, forward):
        super().__init__()
        self.epochs, self.batch_size, self.forward = epochs, batch_size, forward
        self.layer = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(3, kernel_initializer="zeros")]
        )
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.layer.compile(keras.optimizers.Adam(rate), loss=self.loss)
        self.random, self.accuracy, self.losses = np.random.default_rng(0), [], []

    def on_epoch_end(self, epoch, logs=None):
        x, asked = self.forward(TRAIN[0]), self.forward(TEST[0])
        x, asked = (x - x.mean(axis=0)) / x.std(axis=0), (asked - x.mean(axis=0)) / x.std(axis=0)
        order = np.concatenate([self.random.permutation(50) for _ in range(self.epochs)])
        for i in range(0, len(order), self.batch_size):
            rows = order[i : i + self.batch_size]
            self.layer.train_on_batch(x[rows], TRAIN[1][rows])
        logits = self.layer(asked)
        self.accuracy.append(np.mean(np.argmax(logits, axis=1) == TEST[1]))
        self.losses.append(float(self.loss(TEST[1], logits)))


def test_equals_kerass_own_training():
    model = classifier()
    expected = KerasProbe(3, 8, 0.05, lambda x: np.asarray(model(x)))
    probe = LinearProbe(TRAIN, TEST, epochs=3, batch_size=8, learning_rate=0.05)
    history = fit(model, probe, expected, epochs=4).history
    assert history["linear_accuracy"] == pytest.approx(expected.accuracy)
    np.testing.assert_allclose(history["linear_loss"], expected.losses, rtol=1e-4)
    assert expected.accuracy[-1] > 0.7 and expected.losses[-1] < expected.losses[0]


def test_approaches_the_converged_probe():
    probe = LinearProbe(TRAIN, TEST, epochs=400, learning_rate=0.02, encoder=lambda x: x)
    history = fit(classifier(), probe, epochs=1).history
    converged = linear_probe(None, TRAIN, TEST, C=1e4)
    assert history["linear_accuracy"][0] == pytest.approx(converged.accuracy, abs=0.05)


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.asarray(v) for v in variables]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "SimCLR"])
def test_training_is_the_same_with_and_without(kind):
    """To the bit: weights, optimiser, metrics, seed generators and history."""

    def trained(*callbacks):
        model = classifier()
        if kind == "SimCLR":
            model = SimCLR(model, augmentation=keras.layers.GaussianNoise(0.3))
            model.compile(keras.optimizers.Adam(0.02))
        return fit(model, *callbacks, epochs=3).history, state(model)

    history, expected = trained()
    probed, got = trained(LinearProbe(TRAIN, TEST))
    assert {key: probed[key] for key in history} == history
    assert set(probed) - set(history) == {"linear_accuracy", "linear_loss"}
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("every", "epochs", "measured"), [(1, 3, [0, 1, 2]), (2, 5, [0, 1, 3, 4]), (10, 3, [0, 2])]
)
def test_epochs_between_repeat_the_last_values(every, epochs, measured):
    encoded = []
    probe = LinearProbe(TRAIN, TEST, every=every, encoder=lambda x: encoded.append(0) or x)
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: encoded.append(epoch + 1)
    )
    history = fit(classifier(), probe, note, epochs=epochs).history
    for key in ("linear_accuracy", "linear_loss"):
        assert len(history[key]) == epochs
    losses = history["linear_loss"]
    for epoch in range(1, epochs):
        assert (losses[epoch] != losses[epoch - 1]) == (epoch in measured)
    expected = [v for e in range(epochs) for v in ([0, 0] if e in measured else []) + [e + 1]]
    assert encoded == expected  # Each set once.


def test_a_second_fit_starts_from_zero():
    probe = LinearProbe(TRAIN, TEST, encoder=lambda x: x)
    first, second = (fit(classifier(), probe, epochs=2).history for _ in range(2))
    assert first["linear_loss"] == second["linear_loss"]
    assert first["linear_loss"][0] != first["linear_loss"][1]


@pytest.mark.slow
def test_other_sizes_in_one_process():
    for dim in (2, 3, 4, 5):
        probe = LinearProbe(
            TRAIN,
            TEST,
            encoder=lambda x, dim=dim: np.concatenate([x, x], axis=1)[:, :dim],
            batch_size=dim,
        )
        assert fit(classifier(), probe, epochs=1).history["linear_loss"][0] < math.log(3)


def test_other_callbacks_see_it(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorFlow comes without TensorBoard")
    probe = LinearProbe(TRAIN, TEST, every=2)
    stop = keras.callbacks.EarlyStopping(monitor="linear_accuracy", mode="max", patience=4)
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    board = keras.callbacks.TensorBoard(tmp_path / "board", write_graph=False)
    history = fit(classifier(), probe, stop, table, board, epochs=4).history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["linear_accuracy"]) for row in rows] == history["linear_accuracy"]
    assert stop.best == max(history["linear_accuracy"])
    tags = set()
    for path in (tmp_path / "board" / "train").iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
    assert {"epoch_linear_accuracy", "epoch_linear_loss"} <= tags


def test_datasets_and_labels():
    def history(train, test):
        return fit(classifier(), LinearProbe(train, test), epochs=2).history

    expected = history(TRAIN, TEST)
    names = np.array(["cow", "ant", "bee"])
    assert history(tf.data.Dataset.from_tensor_slices(TRAIN).batch(9), TEST) == expected
    named = history((TRAIN[0], names[TRAIN[1]]), (TEST[0], names[TEST[1]]))
    assert named["linear_accuracy"] == expected["linear_accuracy"]


@pytest.mark.slow
def test_bad_features_and_unseen_labels_count_as_wrong():
    broken = TEST[0].copy()
    broken[:10, 1] = np.nan
    labels = TEST[1].copy()
    labels[10:15] = 7
    spoilt = TRAIN[0].copy()
    spoilt[:5] = np.inf

    def measured(train, test):
        probe = LinearProbe(train, test, encoder=lambda x: x)
        history = fit(classifier(), probe, epochs=1).history
        return history["linear_accuracy"][0], history["linear_loss"][0]

    accuracy, loss = measured((spoilt, TRAIN[1]), (broken, labels))
    rest_accuracy, rest_loss = measured((TRAIN[0][5:], TRAIN[1][5:]), (TEST[0][15:], TEST[1][15:]))
    assert accuracy * 40 == pytest.approx(rest_accuracy * 25)
    assert loss == pytest.approx(rest_loss)
    accuracy, loss = measured((np.full_like(X, np.nan), Y), TEST)
    assert accuracy == 0 and math.isnan(loss)


def test_constant_features_are_harmless():
    history = fit(
        classifier(), LinearProbe(TRAIN, TEST, encoder=lambda x: 0 * x + 0.1), epochs=2
    ).history
    assert history["linear_accuracy"][1] == np.mean(TEST[1] == np.bincount(TRAIN[1]).argmax())


def test_mixed_precision_and_steps_per_execution():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = classifier()
        model.compile("adam", loss=model.loss, steps_per_execution=3)
        history = fit(model, LinearProbe(TRAIN, TEST), epochs=3).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert history["linear_accuracy"][-1] > 0.5
    assert np.isfinite(history["linear_loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_two_replicas(inside, replicas):
    """Outside and inside of the scope of a MirroredStrategy."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(61, 4)).astype("float32"), random.integers(0, 3, 61)
    strategy = replicas(2)

    def run(callbacks, inside):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])
            model = SimCLR(encoder, augmentation=keras.layers.GaussianNoise(0.3))
            model.compile(keras.optimizers.Adam(0.01))
        with strategy.scope() if inside else contextlib.nullcontext():
            model.fit(x, batch_size=16, epochs=3, verbose=0, callbacks=callbacks)
        return model.history.history, model.get_weights()

    plain, expected = run([], False)
    health = RepresentationHealth(x, views=3)
    history, weights = run([LinearProbe((x[:41], y[:41]), (x[41:], y[41:])), health], inside)
    assert history["loss"] == plain["loss"]
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(history["linear_accuracy"]) == len(history["lidar"]) == 3
    found = representation_health(health._features())
    assert abs(found.rankme - history["rankme"][-1]) < 1e-6


def test_views_without_encoder_and_taken_names_are_refused():
    views = keras.Input((2, 4))
    model = keras.Model(views, keras.layers.Dense(3)(views))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"takes them, \(2, 4\).*`encoder=`.*Received: \(4,\)"):
        model.fit(
            np.zeros((8, 2, 4)),
            np.zeros((8, 2, 3)),
            verbose=0,
            callbacks=[LinearProbe(TRAIN, TEST)],
        )
    with pytest.raises(ValueError, match="`name` must not be a key.*'linear_accuracy'"):
        fit(classifier(), LinearProbe(TRAIN, TEST), LinearProbe(TRAIN, TEST))
    history = fit(
        classifier(), LinearProbe(TRAIN, TEST), LinearProbe(TRAIN, TEST, name="b")
    ).history
    assert history["b_accuracy"] == history["linear_accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a positive integer. Received: epochs=0"),
        ({"learning_rate": 0}, "`learning_rate` must be a positive number"),
        ({"every": 0}, "`every` must be a positive integer. Received: every=0"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"encoder": "dense"}, "`encoder` must be a keras.Model or another callable"),
        ({"name": ""}, "`name` must be a string"),
        ({"train": X}, r"`train` must be a pair, \(x, y\), or a tf.data.Dataset"),
        ({"test": (X, Y[:3])}, r"`test` must be samples and labels of one length.*, labels \(3,\)"),
        ({"test": (X, np.array(["a"] * 90))}, "labels of one type. Received: int64 and <U1"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(**{"train": TRAIN, "test": TEST, **change})
