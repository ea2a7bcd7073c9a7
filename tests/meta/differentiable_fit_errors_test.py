"""What `DifferentiableFit` refuses, and that it says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.meta.differentiable_fit import DifferentiableFit

pytestmark = pytest.mark.usefixtures("double_precision")

STEPS, BATCH = 3, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, BATCH, 4))


def compiled(model, loss):
    model.compile(loss=loss)
    return model


def linear(loss="mse"):
    return compiled(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), loss)


def fit_of(model=None, **kwargs):
    arguments = {"inner_optimizer": keras.optimizers.SGD(0.1), "steps": STEPS, **kwargs}
    return DifferentiableFit(linear() if model is None else model, **arguments)


TARGETS = RNG.normal(size=(STEPS, BATCH, 3))


class OwnStep(keras.Model):
    def call(self, x):
        return x

    def train_step(self, data):
        return super().train_step(data)


class Assigning(layers.Dense):
    def call(self, x):
        self.kernel.assign(self.kernel * 0.5)
        return super().call(x)


def own_step():
    model = OwnStep()
    return compiled(model, "mse")


def refused_at_construction():
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    half = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="mixed_float16")])
    return [
        (lambda: fit_of(plain), "compile"),
        (lambda: fit_of("model"), "compiled keras.Model"),
        (lambda: fit_of(own_step()), "OwnStep.train_step"),
        (lambda: fit_of(compiled(half, "mse")), "float16"),
        (lambda: fit_of(inner_optimizer=keras.optimizers.Adagrad()), "`inner_optimizer`"),
        (lambda: fit_of(inner_optimizer=keras.optimizers.SGD(weight_decay=0.1)), "weight_decay"),
        (lambda: fit_of(steps=0), "`steps`"),
        (lambda: fit_of(same_batch="yes"), "`same_batch`"),
        (lambda: fit_of(hyperparameters=[tf.Variable(1.0)]), "`hyperparameters`"),
        (lambda: fit_of(hyperparameters=[keras.Variable(1, dtype="int32")]), "`hyperparameters`"),
    ]


def test_refuses_at_construction():
    for make, message in refused_at_construction():
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[:2]}, r"\(steps, batch, …\), steps=3"),
        ({"x": X[:, :5]}, "same number of samples"),
        ({"sample_weight": np.ones(BATCH)}, r"\(steps, batch, …\)"),
        ({"learning_rate": [0.1]}, "`learning_rate`"),
        ({"learning_rate": np.ones(STEPS + 1)}, "`learning_rate`"),
        ({"learning_rate": 1}, "`learning_rate`"),
        ({"weights": [np.ones((4, 3))]}, "`weights`"),
        ({"weights": [np.ones(3), np.ones((4, 3))]}, "`weights`"),
        ({"hyperparameters": [1.0]}, "`hyperparameters`"),
    ],
)
def test_refuses_at_the_call(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_of()(**{"x": X, "y": TARGETS, **arguments})


def test_refuses_hyperparameters_that_are_none():
    model, nothing = linear(), keras.Variable(1.0)
    with pytest.raises(ValueError, match="nothing reads"):
        fit_of(model, hyperparameters=[nothing])(X, TARGETS)
    with pytest.raises(ValueError, match="must not be trained"):
        fit_of(model, hyperparameters=[model.trainable_variables[0]])(X, TARGETS)
    normalized = compiled(keras.Sequential([keras.Input((4,)), layers.BatchNormalization()]), "mse")
    statistics = normalized.non_trainable_variables[:1]
    with pytest.raises(ValueError, match="must stay as they are"):
        fit_of(normalized, hyperparameters=statistics)(X, X)


def test_refuses_what_a_step_cannot_be():
    scale = tf.Variable(0.5, dtype=tf.float64)
    with pytest.raises(ValueError, match="must be a keras.Variable"):
        fit_of(linear(lambda y, z: scale * (y - z) ** 2))(X, TARGETS)
    with pytest.raises(ValueError, match="one number"):
        fit_of(linear(keras.losses.MeanSquaredError(reduction="none")))(X, TARGETS)
    with pytest.raises(ValueError, match="Provide a `loss`"):
        fit_of(linear(None))(X, TARGETS)
    assigning = compiled(keras.Sequential([keras.Input((4,)), Assigning(3)]), "mse")
    with pytest.raises(ValueError, match="must not assign"):
        fit_of(assigning)(X, TARGETS)


def test_refuses_layers_without_second_derivative():
    bicubic = keras.Sequential([keras.Input((4,)), layers.Dense(16), layers.Reshape((4, 4, 1))])
    bicubic.add(layers.Lambda(lambda x: tf.image.resize(x, (6, 6), "bicubic")))
    bicubic.add(layers.Lambda(lambda x: tf.cast(x, "float64")))
    bicubic.add(layers.Flatten())
    bicubic.add(layers.Dense(3))
    rate = tf.Variable(0.1, dtype=tf.float64)
    with pytest.raises(ValueError, match="ResizeBicubicGrad"), tf.GradientTape():
        fit_of(compiled(bicubic, "mse"))(X, TARGETS, learning_rate=rate)
