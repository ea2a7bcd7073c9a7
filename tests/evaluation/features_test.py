import gc
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_sslmeta.evaluation.features import as_labels, encode, unit_length

X = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")


def dense():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    return model, X @ model.layers[0].kernel.numpy() + model.layers[0].bias.numpy()


def test_model_callable_and_none_agree():
    model, expected = dense()
    for encoder in (model, lambda x: model(x), lambda x: np.asarray(model(x))):
        np.testing.assert_allclose(encode(encoder, X, batch_size=3), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(encode(None, X.reshape(10, 2, 2)), X)
    np.testing.assert_array_equal(encode(None, tuple(map(tuple, X))), X)


def test_samples_without_channels_are_refused():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match=r"as the encoder takes them, \(8, 8, 1\).*\(8, 8\)"):
        encode(model, np.zeros((5, 8, 8)))


def test_images_of_another_size_are_refused_though_convolutions_would_take_them():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()]
    )
    for shape in ((6, 6, 1), (8, 8, 3)):
        with pytest.raises(ValueError, match=r"as the encoder takes them, \(8, 8, 1\)"):
            encode(model, np.zeros((5, *shape)))


def test_model_with_inputs_of_its_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inputs = keras.layers.Dense(3)

        def call(self, x):
            return self.inputs(x)

    assert encode(Own(), X).shape == (10, 3)


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory as Linux tells it")
def test_samples_are_let_go_of():
    """At once, without a search for cycles: they may be gigabytes."""
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(2)])
    x = np.ones((10_000, 1000), "float32")  # 40 MB
    for _ in range(2):
        encode(model, x, batch_size=1000)
    gc.collect()
    gc.disable()
    try:
        before = resident_megabytes()
        for _ in range(8):
            encode(model, x, batch_size=1000)
        assert resident_megabytes() < before + 160
    finally:
        gc.enable()


def test_callable_gets_batches():
    sizes = []
    encode(lambda x: sizes.append(len(x)) or x, X, batch_size=4)
    assert sizes == [4, 4, 2]


def test_predict_is_used():
    class Doubled(keras.Model):
        def call(self, x):
            return x

        def predict_step(self, data):
            return 2 * data

    np.testing.assert_allclose(encode(Doubled(), X), 2 * X)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("resnet", "`encoder` must be a keras.Model.*'resnet'"),
        (lambda x: [x, x], "one array of features. Received: list"),
        (lambda x: x[:1], "one row a sample. Received: 1 rows for 10 samples"),
        (lambda x: x[:, 0], r"features \(n, dim\).*\(10,\)"),
    ],
)
def test_bad_encoders(encoder, message):
    with pytest.raises(ValueError, match=message):
        encode(encoder, X)


def test_unit_length():
    rows = np.array(
        [[3, 4], [0, 0], [1e-30, 0], [3e30, -4e30], [np.nan, 1], [np.inf, 1]], "float32"
    )
    expected = [[0.6, 0.8], [0, 0], [1, 0], [0.6, -0.8]]
    np.testing.assert_allclose(unit_length(rows)[:4], expected, rtol=1e-6)
    assert np.isnan(unit_length(rows)[4:]).any(axis=1).all()


def test_labels():
    assert as_labels([[1], [2]], "y", 2).tolist() == [1, 2]
    assert as_labels(np.array(["a", "bc"], object), "y", 2).tolist() == ["a", "bc"]
    assert as_labels(np.array([2**63 - 1, 1]), "y", 2)[0] == 2**63 - 1
    with pytest.raises(ValueError, match="`y` must be one integer.*one-hot"):
        as_labels(np.eye(3), "y", 3)
    with pytest.raises(ValueError, match="2 labels for 3 samples"):
        as_labels([1, 2], "y", 3)
    with pytest.raises(ValueError, match="`y` must be"):
        as_labels(np.array([None, "a"], object), "y", 2)
