import csv
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.callbacks import KNNProbe
from keras_sslmeta.data import two_views
from keras_sslmeta.evaluation import knn_accuracy

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(50, 4)).astype("float32")
Y = RANDOM.integers(0, 3, 50)
TRAIN, TEST = (X[:30], Y[:30]), (X[30:], Y[30:])


def classifier():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss=loss, jit_compile=False)  # XLA logs its start.
    return model


class Recorder(keras.callbacks.Callback):
    """What the probe should say of a model's output, measured on its own after each epoch."""

    def __init__(self, forward):
        super().__init__()
        self.forward, self.expected = forward, []

    def on_epoch_end(self, epoch, logs=None):
        self.expected.append(
            knn_accuracy(self.forward(TRAIN[0]), TRAIN[1], self.forward(TEST[0]), TEST[1], k=5)
        )


def fit(model, *callbacks, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Keras's own, wherever it saves a variable under NumPy 2.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return model.fit(X, Y, batch_size=16, **{"verbose": 0, **kwargs}, callbacks=[*callbacks])


def test_history_holds_the_accuracy_of_each_epoch():
    model = classifier()
    recorder = Recorder(lambda x: np.asarray(model(x)))
    history = fit(model, KNNProbe(TRAIN, TEST, k=5), recorder, epochs=4)
    assert history.history["knn_accuracy"] == recorder.expected
    assert len(set(recorder.expected)) > 1
    assert all(isinstance(value, float) for value in recorder.expected)


def test_encoder_shares_weights():
    model = classifier()
    encoder = keras.Model(model.inputs, model.layers[0].output)
    recorder = Recorder(lambda x: np.asarray(model.layers[0](x)))
    probe = KNNProbe(TRAIN, TEST, k=5, encoder=encoder, name="hidden")
    history = fit(model, probe, recorder, epochs=3)
    assert history.history["hidden"] == recorder.expected


def test_callable_encoder():
    history = fit(classifier(), KNNProbe(TRAIN, TEST, k=5, encoder=lambda x: x), epochs=2)
    raw = knn_accuracy(*TRAIN, *TEST, k=5)
    assert history.history["knn_accuracy"] == [raw, raw]


def test_models_encoder_is_found():
    class WithEncoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            self.head = keras.layers.Dense(3)

        def call(self, x):
            return self.head(self.encoder(x))

    model = WithEncoder()
    model.compile("sgd", loss="mse")
    recorder = Recorder(lambda x: np.asarray(model.encoder(x)))
    probe = KNNProbe(TRAIN, TEST, k=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = model.fit(X, X[:, :3], epochs=2, verbose=0, callbacks=[probe, recorder])
    assert history.history["knn_accuracy"] == recorder.expected


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("every", "epochs", "measured"),
    [(1, 3, [0, 1, 2]), (2, 5, [0, 1, 3, 4]), (3, 4, [0, 2, 3]), (10, 3, [0, 2])],
)
def test_epochs_between_repeat_the_last_value(every, epochs, measured):
    model = classifier()
    recorder = Recorder(lambda x: np.asarray(model(x)))
    history = fit(model, KNNProbe(TRAIN, TEST, k=5, every=every), recorder, epochs=epochs)
    expected, last = [], math.nan
    for epoch in range(epochs):
        last = recorder.expected[epoch] if epoch in measured else last
        expected.append(last)
    assert history.history["knn_accuracy"] == expected


def test_a_second_fit_measures_anew():
    model, probe = classifier(), KNNProbe(TRAIN, TEST, k=5, every=10)
    fit(model, probe, epochs=3)
    recorder = Recorder(lambda x: np.asarray(model(x)))
    history = fit(model, probe, recorder, initial_epoch=3, epochs=5)
    assert history.history["knn_accuracy"] == recorder.expected


def test_other_callbacks_see_it(tmp_path):
    probe = KNNProbe(TRAIN, TEST, k=5, every=2)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="knn_accuracy", mode="max", save_best_only=True
    )
    stop = keras.callbacks.EarlyStopping(monitor="knn_accuracy", mode="max", patience=4)
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    model = classifier()
    history = fit(model, probe, best, stop, table, epochs=6)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["knn_accuracy"]) for row in rows] == history.history["knn_accuracy"]
    assert stop.best == max(history.history["knn_accuracy"])
    saved = keras.saving.load_model(tmp_path / "best.keras")
    accuracy = knn_accuracy(
        saved.predict(TRAIN[0], verbose=0),
        TRAIN[1],
        saved.predict(TEST[0], verbose=0),
        TEST[1],
        k=5,
    )
    assert accuracy == best.best


def test_tensorboard_sees_it(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorFlow comes without TensorBoard")
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    fit(classifier(), KNNProbe(TRAIN, TEST, k=5), board, epochs=2)
    tags = set()
    for path in (tmp_path / "train").iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
    assert "epoch_knn_accuracy" in tags


def test_progress_bar_shows_it_and_nothing_else(capfd):
    fit(classifier(), KNNProbe(TRAIN, TEST, k=5), epochs=2, verbose=1)
    out, err = capfd.readouterr()
    assert "knn_accuracy: " in out
    assert out.count("Epoch ") == 2 and out.count("4/4") == 2  # No bar for encoding.
    assert err == ""


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        part = slice(10 * index, 10 * index + 10)
        return X[part], Y[part]


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_training_on_datasets(kind):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10) if kind == "tf.data" else Batches()
    history = classifier().fit(
        data, epochs=2, verbose=0, shuffle=False, callbacks=[KNNProbe(TRAIN, TEST, k=5)]
    )
    assert len(history.history["knn_accuracy"]) == 2


def test_training_is_the_same_with_and_without():
    def weights(*callbacks):
        model = classifier()
        fit(model, *callbacks, epochs=3)
        return model.get_weights()

    for a, b in zip(weights(), weights(KNNProbe(TRAIN, TEST, k=5)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_traces_once():
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x

    counting = keras.Sequential([keras.Input((4,)), Counting(), keras.layers.Dense(2)])
    model = keras.Sequential([keras.Input((4,)), counting, keras.layers.Dense(3)])
    model.compile("sgd", loss="mse")
    after_epoch = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: after_epoch.append(len(traces))
    )
    probe = KNNProbe(TRAIN, TEST, k=5, encoder=counting, batch_size=8)  # Uneven last batches.
    model.fit(X, X[:, :3], epochs=4, verbose=0, callbacks=[probe, note])
    assert after_epoch[1:] == [after_epoch[0]] * 3


class Spread(keras.losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return keras.ops.mean(keras.ops.square(y_pred[:, 0] - y_pred[:, 1])) / 2


@pytest.mark.slow
def test_two_replicas_and_two_views(replicas):
    """Under MirroredStrategy, on a `two_views` dataset."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(61, 4)).astype("float32"), random.integers(0, 3, 61)
    with replicas(2).scope():
        encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])
        views = keras.Input((2, 4))
        z = keras.ops.stack([encoder(views[:, i]) for i in range(2)], axis=1)
        model = keras.Model(views, z)
        model.compile("sgd", loss=Spread())
    data = two_views(x, augmentation=keras.layers.GaussianNoise(0.3), batch_size=16, seed=0)
    probe = KNNProbe((x[:41], y[:41]), (x[41:], y[41:]), k=5, encoder=encoder, batch_size=8)
    history = model.fit(data, epochs=3, verbose=0, shuffle=False, callbacks=[probe])
    features = np.tanh(x @ encoder.layers[0].kernel.numpy() + encoder.layers[0].bias.numpy())
    expected = knn_accuracy(features[:41], y[:41], features[41:], y[41:], k=5)
    values = history.history["knn_accuracy"]
    assert len(values) == 3 and abs(values[-1] - expected) < 1e-9


@pytest.mark.first(1)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_datasets_as_train_and_test(batch_size):
    def dataset(pair):
        data = tf.data.Dataset.from_tensor_slices(pair)
        return data if batch_size is None else data.batch(batch_size)

    arrays = fit(classifier(), KNNProbe(TRAIN, TEST, k=5), epochs=2).history
    probe = KNNProbe(dataset(TRAIN), dataset(TEST), k=5)
    assert fit(classifier(), probe, epochs=2).history == arrays
    with pytest.raises(ValueError, match="`test` must be finite"):
        KNNProbe(TRAIN, dataset(TEST).repeat())


def test_two_view_model_without_encoder_is_refused_before_training():
    views = keras.Input((2, 4))
    model = keras.Model(views, keras.layers.Dense(3)(views))
    model.compile("sgd", loss="mse")
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"takes them, \(2, 4\).*`encoder=`.*Received: \(4,\)"):
        model.fit(
            np.zeros((8, 2, 4)), np.zeros((8, 2, 3)), verbose=0, callbacks=[KNNProbe(TRAIN, TEST)]
        )
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_two_probes_need_two_names():
    with pytest.raises(ValueError, match="`name` must not be a key.*'knn_accuracy'"):
        fit(classifier(), KNNProbe(TRAIN, TEST, k=5), KNNProbe(TRAIN, TEST, k=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 31}, "`k` must be at most the number of training samples, 30. Received: k=31"),
        ({"k": 0}, "`k` must be a positive integer"),
        ({"temperature": -1}, "`temperature` must be a positive number. Received: temperature=-1"),
        ({"every": 0}, "`every` must be a positive integer. Received: every=0"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"encoder": "dense"}, "`encoder` must be a keras.Model or another callable"),
        ({"name": ""}, "`name` must be a string"),
        (
            {"train": X},
            r"`train` must be a pair, \(x, y\), or a tf.data.Dataset.*Received: ndarray",
        ),
        (
            {"test": (X, Y[:3])},
            r"`test` must be samples and labels of one length.*\(50, 4\), labels \(3,\)",
        ),
        ({"test": (X[:0], Y[:0])}, "`test` must be .* with a sample at least"),
        ({"train": (X, np.eye(50))}, "of one-hot labels, the argmax"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        KNNProbe(**{"train": TRAIN, "test": TEST, **change})
