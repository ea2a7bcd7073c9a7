import keras
import numpy as np
import pytest

from keras_sslmeta.layers import PerView

VIEWS = np.random.default_rng(0).normal(size=(6, 3, 8, 8, 1)).astype("float32")


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return self.dense(self.flatten(x))


ENCODERS = {
    "functional": lambda: keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(5)]
    ),
    "unbuilt": lambda: keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5)]),
    "subclassed": Subclassed,
}


@pytest.mark.parametrize("build", ENCODERS.values(), ids=ENCODERS)
def test_each_view_as_if_alone(build):
    encoder = build()
    inputs = keras.Input((3, 8, 8, 1))
    model = keras.Model(inputs, PerView(encoder)(inputs))
    assert model.output_shape == (None, 3, 5)
    expected = np.stack([encoder(VIEWS[:, v]) for v in range(3)], axis=1)
    np.testing.assert_allclose(model.predict(VIEWS, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_training_reaches_the_layer():
    layer = PerView(keras.layers.Dropout(0.5, seed=0))
    np.testing.assert_array_equal(layer(VIEWS, training=False), VIEWS)
    assert (layer(VIEWS, training=True).numpy() == 0).mean() > 0.3


def test_structures_of_inputs():
    left, right = keras.Input((4,), name="l"), keras.Input((2,), name="r")
    encoder = keras.Model({"l": left, "r": right}, keras.layers.Concatenate()([left, right]))
    x = {"l": np.ones((5, 2, 4), "float32"), "r": np.zeros((5, 2, 2), "float32")}
    np.testing.assert_array_equal(PerView(encoder)(x)[0], [[1, 1, 1, 1, 0, 0]] * 2)


def test_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((3, 8, 8, 1)), PerView(ENCODERS["functional"]())])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(VIEWS, verbose=0), model.predict(VIEWS, verbose=0))


def test_refused():
    with pytest.raises(ValueError, match="`layer` must be a Keras layer or model"):
        PerView(lambda x: x)
    with pytest.raises(ValueError, match="second axis of known length"):
        PerView(keras.layers.ReLU())(np.zeros(3, "float32"))
