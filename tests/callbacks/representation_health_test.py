import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import SimCLR
from keras_sslmeta.callbacks import RepresentationHealth
from keras_sslmeta.callbacks.repeated_views import RepeatedViews
from keras_sslmeta.evaluation import representation_health
from keras_sslmeta.losses import NTXent, VICReg

RANDOM = np.random.default_rng(0)
# Images of eight blurred patterns, mixed.
PATTERNS = RANDOM.normal(size=(8, 6, 6, 1)).cumsum(axis=1).cumsum(axis=2)
X = np.tensordot(RANDOM.normal(size=(96, 8)), PATTERNS, 1).astype("float32")
X /= X.std()
KEYS = ["rankme", "lidar", "alignment", "uniformity", "feature_std"]


class Pull(keras.losses.Loss):
    """Views of a sample together, and nothing that keeps samples apart."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        z = keras.ops.normalize(y_pred, axis=-1)
        return -keras.ops.mean(keras.ops.sum(z[:, 0] * z[:, 1], axis=-1))


def encoder(depth=1, batch_normalization=False, dim=32):
    layers = [keras.Input((6, 6, 1)), keras.layers.Flatten()]
    for _ in range(depth):
        layers.append(keras.layers.Dense(dim))
        if batch_normalization:
            layers.append(keras.layers.BatchNormalization())
        layers.append(keras.layers.ReLU())
    return keras.Sequential(layers)


def model(loss=None, rate=1e-3, augmentation="layer", **kwargs):
    keras.utils.set_random_seed(0)
    made = SimCLR(
        encoder(**kwargs),
        augmentation=keras.layers.GaussianNoise(0.5) if augmentation == "layer" else augmentation,
    )
    made.compile(keras.optimizers.Adam(rate), loss=loss or NTXent(0.5))
    return made


def fit(model, *callbacks, x=X, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Keras's own, wherever it writes a variable's summary under NumPy 2.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return model.fit(
            x, **{"verbose": 0, "batch_size": 32, "epochs": 2, **kwargs}, callbacks=[*callbacks]
        ).history


def test_history_holds_the_health_of_each_epoch():
    simclr = model()
    probe, expected = RepresentationHealth(X, views=3), []

    def measure(epoch, logs):
        """Of the views that the callback takes, encoded here."""
        views = np.concatenate(list(probe._repeated(1000))).reshape(-1, 36)
        dense = simclr.encoder.layers[1]
        features = np.maximum(views @ np.asarray(dense.kernel) + np.asarray(dense.bias), 0)
        projections = np.asarray(simclr.projector(features))
        expected.append(
            [representation_health(z.reshape(96, 3, -1)) for z in (features, projections)]
        )

    note = keras.callbacks.LambdaCallback(on_epoch_end=measure)
    history = fit(simclr, probe, note, epochs=3)
    for key in KEYS:
        values = [getattr(features, key) for features, _ in expected]
        np.testing.assert_allclose(history[key], values, rtol=1e-3)
        assert all(isinstance(value, float) for value in history[key])
    for key, name in (("projection_rankme", "rankme"), ("projection_std", "feature_std")):
        values = [getattr(projections, name) for _, projections in expected]
        np.testing.assert_allclose(history[key], values, rtol=1e-3)
    assert history["rankme"][0] != history["rankme"][2]
    assert probe.measure().lidar == history["lidar"][-1]


def test_views_are_the_augmentations():
    simclr = model()
    made = np.concatenate(list(RepeatedViews(X, simclr.augmentation, 4, simclr.encoder)(40)))
    noise = made.reshape(96, 4, -1) - X.reshape(96, 1, -1)
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    flat = noise.transpose(1, 0, 2).reshape(4, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.1  # Each view draws anew,
    parts = noise[:40].reshape(1, -1), noise[40:80].reshape(1, -1)
    assert abs(np.corrcoef(*parts)[0, 1]) < 0.1  # and each batch.


def keras_noise(x):
    return x + keras.random.normal(tf.shape(x), stddev=0.5)


def tensorflow_noise(x):
    return x + tf.random.normal(tf.shape(x), stddev=0.5)


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["layer", keras_noise, tensorflow_noise, "list"])
def test_training_is_the_same_with_and_without(kind):
    """To the bit: weights, optimiser, metrics, seed generators and history."""

    def trained(*callbacks):
        augmentation = kind
        keras.utils.set_random_seed(3)  # Of the list's layers; `model` sets its own.
        if kind == "list":
            augmentation = [keras.layers.GaussianNoise(0.2), keras.layers.Dropout(0.2)]
        simclr = model(augmentation=augmentation)
        if kind is tensorflow_noise:
            simclr.jit_compile = False  # Nothing can set back what XLA draws for `tf.random`.
        history = fit(simclr, *callbacks, epochs=3)
        variables = [*simclr.variables, *simclr.optimizer.variables, *simclr.metrics_variables]
        return history, [np.asarray(v) for v in variables]

    history, expected = trained()
    probed, got = trained(RepresentationHealth(X, views=2))
    assert {key: probed[key] for key in history} == history
    assert probed["rankme"][0] != probed["rankme"][2]
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["layer", keras_noise])
def test_views_are_the_same_every_time(kind):
    simclr = model(augmentation=kind)
    probe = RepresentationHealth(X, batch_size=20)
    history = fit(simclr, probe, epochs=1)
    assert probe.measure().alignment == probe.measure().alignment == history["alignment"][0]


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"depth": 3}, {"depth": 20}, {"depth": 3, "batch_normalization": True}, {"dim": 4}],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_alarm_on_untrained_and_healthy_encoders(kwargs, seed):
    keras.utils.set_random_seed(seed)
    simclr = model(**kwargs)
    history = fit(simclr, RepresentationHealth(X), epochs=3)  # Where a warning is an error.
    assert list(history) == ["loss", *KEYS, "projection_rankme", "projection_std"]


@pytest.mark.first(1)
@pytest.mark.parametrize("batch_normalization", [False, True])
def test_alarm_on_complete_collapse(batch_normalization):
    """Of views pulled together by nothing but that; with batch normalisation, the projections tell."""
    simclr = model(Pull(), rate=0.1, batch_normalization=batch_normalization)
    with pytest.warns(UserWarning, match="ollapse") as caught:
        history = simclr.fit(
            X, batch_size=8, epochs=4, verbose=0, callbacks=[RepresentationHealth(X)]
        ).history
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == len({text.split(" of the")[0] for text in texts})  # Once a kind.
    (complete,) = [text for text in texts if text.startswith("Complete collapse of the proj")]
    assert history["projection_std"][-1] < 0.05
    assert history["feature_std"][-1] > 0.5  # What hides it from who looks at the features alone.
    assert "negatives, a variance or decorrelation term, or a predictor" in complete
    assert "learning rate" in complete and "feature_std 0.0" in complete


def test_alarm_on_equal_features():
    """Two encoders that were equal for all samples from the start, to rounding and exactly."""
    for scale in (0.0, 1e-6):
        net = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten()])
        net.compile("sgd", loss="mse")
        probe = RepresentationHealth(X, encoder=lambda x, scale=scale: 1 + scale * x)
        with pytest.warns(
            UserWarning, match="Complete collapse of the features before tr"
        ) as caught:
            net.fit(X, X.reshape(96, 36), verbose=0, epochs=3, callbacks=[probe])
        assert len([w for w in caught if "ollapse" in str(w.message)]) == 1


class Squeeze(keras.layers.Layer):
    """Leaves of features what lies along a few directions, more so with each call of `tighten`."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", trainable=False)

    def call(self, x):
        return x * self.factor


@pytest.mark.first(1)
@pytest.mark.parametrize(("left", "is_alarmed"), [(1, True), (2, True), (24, False)])
def test_alarm_on_dimensional_collapse(left, is_alarmed):
    """Features that keep one or two of 32 directions are told from those that keep most."""
    squeeze = Squeeze()
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((32,)), squeeze])
    net.compile("sgd", loss="mse")
    x = RANDOM.normal(size=(200, 32)).astype("float32")
    tighten = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: squeeze.factor.assign(
            np.where(np.arange(32) < left, 1, 1e-3 if epoch else 1)
        )
    )
    probe = RepresentationHealth(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = net.fit(x, x, epochs=4, verbose=0, callbacks=[tighten, probe]).history
    texts = [str(w.message) for w in caught if "ollapse" in str(w.message)]
    assert len(texts) == is_alarmed
    if is_alarmed:
        assert texts[0].startswith("Dimensional collapse of the features after epoch 2:")
        rank = history["rankme"][1]
        assert (
            f"RankMe {rank:.3g} of 32 (the largest so far {history['rankme'][0]:.3g})" in texts[0]
        )
        assert "a weaker augmentation" in texts[0]
    assert history["feature_std"][-1] > 0.1


@pytest.mark.slow
def test_alarm_can_be_set():
    simclr = model(Pull(), rate=0.1)
    quiet = [
        RepresentationHealth(X, alarm=False),
        RepresentationHealth(X, least_std=0, least_share=0, name="quiet"),
    ]
    history = fit(simclr, *quiet, batch_size=8)
    assert history["projection_std"][-1] < 0.08
    assert history["quiet_rankme"] == history["rankme"]
    with pytest.warns(UserWarning, match="Complete collapse of the features before training"):
        model().fit(X, verbose=0, callbacks=[RepresentationHealth(X, least_std=10)])


@pytest.mark.slow
def test_remedies_are_of_what_the_model_has():
    def said(loss=None, **attributes):
        simclr = model(loss)
        for key, value in attributes.items():
            setattr(simclr, key, value)
        with pytest.warns(UserWarning, match="ollapse") as caught:
            simclr.fit(X, verbose=0, callbacks=[RepresentationHealth(X, least_std=10)])
        (text,) = [str(w.message) for w in caught if "ollapse" in str(w.message)]
        return text.split("Try: ")[1]

    assert "`temperature` of the loss" in said() and "larger batch" in said()
    vicreg = said(VICReg())
    assert "larger `covariance_weight` and `variance_weight` of the loss" in vicreg
    assert "temperature" not in vicreg
    byol = said(Pull(), momentum=0.99, predictor="an MLP")
    assert "momentum of the target nearer to 1" in byol and "stop-gradient" in byol
    assert "negatives" not in byol


def test_divergence_is_said():
    linear = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(8)]
    )
    simclr = SimCLR(linear, augmentation=keras.layers.GaussianNoise(0.5))
    simclr.compile()

    def spoil(epoch, logs):
        kernel = linear.layers[1].kernel
        kernel.assign(np.nan * np.asarray(kernel))

    note = keras.callbacks.LambdaCallback(on_epoch_begin=spoil)
    with pytest.warns(UserWarning, match="Divergence of the features after epoch 1: some are not"):
        history = simclr.fit(
            X, verbose=0, epochs=2, callbacks=[note, RepresentationHealth(X)]
        ).history
    assert np.isnan(history["rankme"]).all()


def test_without_augmentation_plain_samples_and_ready_made_views():
    views = X[:, np.newaxis] + 0.3 * RANDOM.normal(size=(96, 3, 6, 6, 1)).astype("float32")
    simclr = model(augmentation=None)
    history = fit(simclr, RepresentationHealth(X), x=views[:, :2])
    assert list(history)[1:4] == ["rankme", "uniformity", "feature_std"]
    probe = RepresentationHealth(views)
    history = fit(simclr, probe, x=views[:, :2])
    features = simclr.predict(views.reshape(-1, 6, 6, 1), verbose=0).reshape(96, 3, -1)
    expected = representation_health(features)
    for key in KEYS:
        assert history[key][-1] == pytest.approx(getattr(expected, key), rel=1e-4)
    own = RepresentationHealth(X, augmentation=keras_noise, views=2)
    assert "lidar" in fit(simclr, own, x=views[:, :2])


def test_plain_keras_models_encoders_and_projectors():
    net = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
    net.compile("sgd", loss="mse")
    inner = keras.Model(net.inputs, net.layers[0].output)
    probe = RepresentationHealth(X, encoder=inner, projector=net.layers[1], alarm=False)
    history = net.fit(X, np.zeros((96, 5)), verbose=0, callbacks=[probe]).history
    raw = representation_health(X.reshape(96, -1))
    assert history["rankme"] == [pytest.approx(raw.rankme, rel=1e-6)]
    projected = representation_health(net.predict(X, verbose=0))
    assert history["projection_rankme"] == [pytest.approx(projected.rankme, rel=1e-4)]
    assert "projection_std" not in fit(model(), RepresentationHealth(X, projector=False))


def test_bytes_mixed_precision_and_every():
    images = np.clip(60 * X + 128, 0, 255).astype("uint8")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        simclr = model(augmentation=lambda x: x + 40 * keras_noise(0 * x))
        history = fit(simclr, RepresentationHealth(images, every=2), x=images, epochs=4)
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.isfinite(values).all() for values in history.values())
    changes = np.diff(history["rankme"]) != 0
    assert changes.tolist() == [True, False, True]


def test_tensorboard_sees_it(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorFlow comes without TensorBoard")
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    fit(model(), RepresentationHealth(X), board)
    tags = set()
    for path in (tmp_path / "train").iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
    assert {f"epoch_{key}" for key in KEYS} <= tags


def test_samples_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"`samples` must be as .*\(6, 6, 1\).*Received: \(36,\)"):
        model().fit(X, verbose=0, callbacks=[RepresentationHealth(X.reshape(96, 36))])
    with pytest.raises(ValueError, match=r"`samples` must be as .*Received: \(5, 6, 1\)"):
        model().fit(X, verbose=0, callbacks=[RepresentationHealth(np.zeros((9, 2, 5, 6, 1)))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": X[:1]}, "`samples` must be samples"),
        ({"views": 0}, "`views` must be a positive integer. Received: views=0"),
        ({"augmentation": "crop"}, "`augmentation` must be a Keras layer"),
        ({"augmentation": [keras_noise], "views": 2}, "`augmentation` must be one callable"),
        ({"every": 0}, "`every` must be a positive integer. Received: every=0"),
        ({"encoder": "dense"}, "`encoder` must be a keras.Model or another callable"),
        ({"projector": 3}, "`projector` must be a layer, a model or another callable"),
        ({"least_std": -1}, "`least_std` must be a number from 0"),
        ({"least_share": "low"}, "`least_share` must be a number from 0"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"name": ""}, "`name` must be a string"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        RepresentationHealth(**{"samples": X, **change})
