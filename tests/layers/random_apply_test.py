"""Some images go through the layer and the others do not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers import RandomApply, RandomResizedCrop


@keras.saving.register_keras_serializable(package="random_apply_test")
class Add(keras.layers.Layer):
    """Adds a weight, so that it has something to build and to save."""

    def build(self, input_shape):
        self.amount = self.add_weight(shape=(), initializer="ones")

    def call(self, images):
        return images + self.amount


class Narrow(keras.layers.Layer):
    def call(self, images):
        return images[..., :1]


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_each_image_goes_through_with_the_probability(probability):
    images = np.zeros((2000, 2, 2, 3), "float32")
    outputs = RandomApply(Add(), probability, seed=1)(images).numpy().reshape(2000, -1)
    assert (outputs == outputs[:, :1]).all()
    four_sigma = 4 * np.sqrt(probability * (1 - probability) / 2000)
    assert abs(outputs[:, 0].mean() - probability) <= four_sigma


def test_the_layer_is_in_training_mode():
    images = np.ones((8, 4, 4, 1), "float32")
    layer = RandomApply(keras.layers.Dropout(0.5, seed=1), probability=1.0)
    assert set(np.unique(layer(images))) == {0.0, 2.0}
    np.testing.assert_array_equal(layer(images, training=False), images)


def test_weights_are_tracked_trained_and_saved(tmp_path):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, RandomApply(Add(), probability=1.0, seed=1)(inputs))
    assert len(model.trainable_variables) == 1
    model.compile("sgd", "mse")
    images = np.zeros((8, 4, 4, 1), "float32")
    model.fit(images, images, verbose=0)
    assert float(model.trainable_variables[0]) < 1.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.trainable_variables[0]) == float(model.trainable_variables[0])
    np.testing.assert_array_equal(loaded(images, training=True), model(images, training=True))


@pytest.mark.parametrize(
    "layer",
    [RandomResizedCrop(4, 4), Narrow(), keras.layers.Flatten(), Add(dtype="float16")],
    ids=["size", "channels", "rank", "dtype"],
)
def test_a_layer_that_changes_shape_or_dtype_is_refused(layer):
    images = np.zeros((4, 8, 8, 3), "float32")
    with pytest.raises(ValueError, match=f"`layer` must keep .* Received: {layer.name}"):
        RandomApply(layer)(images)


def test_a_later_shape_is_checked_as_well():
    layer = RandomApply(keras.layers.Resizing(8, 8))
    assert layer(np.zeros((4, 8, 8, 3), "float32")).shape == (4, 8, 8, 3)
    with pytest.raises(ValueError, match="`layer` must keep the shape"):
        layer(np.zeros((4, 16, 16, 3), "float32"))


def test_an_unknown_size_is_taken():
    layer = RandomApply(keras.layers.Rescaling(-1.0, 255.0), probability=1.0)
    images = tf.data.Dataset.from_tensors(np.zeros((6, 5, 3), "float32")).map(layer)
    assert next(iter(images)).numpy().min() == 255.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": abs}, "`layer` must be a Keras layer"),
        ({"probability": -0.1}, "`probability` must be a number in"),
        ({"probability": float("nan")}, "`probability` must be a number in"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomApply(**{"layer": keras.layers.Dropout(0.5), **arguments})
