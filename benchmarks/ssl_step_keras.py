"""The contestants of ssl_step.py in TensorFlow: `fit`, and what is written by hand on the same networks."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import time

import cifar10_methods
import keras
import numpy as np
import tensorflow as tf
from ssl_networks import kernels
from ssl_step import RATE, answering, timed_loop
from worker import serve

import keras_sslmeta as ksm


def model_of(setting):
    """The method with the weights that lightly's side has."""
    model = cifar10_methods.build(setting.method, cifar10_methods.Setting(encoder=setting.encoder))
    convolutions, dense = kernels(setting.encoder, setting.heads())
    for name, kernel in convolutions.items():
        model.encoder.get_layer(name).set_weights([kernel])
    heads = [model.projector, getattr(model, "predictor", None)]
    for head, values in zip(heads, dense, strict=False):
        layers = [layer for layer in head.blocks if isinstance(layer, keras.layers.Dense)]
        for layer, kernel in zip(layers, values, strict=True):
            layer.kernel.assign(kernel)
    for part in ("momentum_encoder", "momentum_projector"):
        if hasattr(model, part):
            getattr(model, part).update(0.0)
    if hasattr(model, "queue"):
        model.queue.keys.assign(setting.queue())
    return model


def loss_of(setting):
    """lightly's temperatures and knots; None for the method's own."""
    if setting.method == "LeJEPA":
        return ksm.losses.LeJEPA(knots=33, limit=3.0)  # 17 from 0 on.
    return cifar10_methods.METHODS[setting.method].loss(cifar10_methods.Setting())


class Clock(keras.callbacks.Callback):
    """When the first batch of a `fit` began, and the last one ended."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.end = time.perf_counter()


def fit_of(setting):
    model, clock = model_of(setting), Clock()
    model.compile(keras.optimizers.SGD(RATE, 0.9), loss_of(setting))
    batches = tf.data.Dataset.from_tensors(setting.views()).repeat(setting.steps)
    batches = batches.apply(tf.data.experimental.assert_cardinality(setting.steps))

    def run():
        history = model.fit(batches, verbose=0, callbacks=[clock])
        return history.history["loss"][0], (clock.end - clock.start) / setting.steps

    return run


def networks_of(setting, encoder_alone=False):
    """All networks of a method, or its encoder, and a trivial loss."""
    model, target = model_of(setting), model_of(setting)
    parts = [model.encoder]
    if not encoder_alone:
        parts += [model.projector, *([model.predictor] if len(setting.heads()) > 1 else [])]
    weights = [weight for part in parts for weight in part.trainable_variables]
    optimizer = keras.optimizers.SGD(RATE, 0.9)
    optimizer.build(weights)
    views = tf.constant(setting.views()[0])
    is_moco = setting.method == "MoCo"
    has_targets = hasattr(model, "momentum_encoder") and not encoder_alone

    @tf.function(autograph=False)
    def step(views):
        merged = tf.reshape(views, [-1, *views.shape[2:]])
        with tf.GradientTape() as tape:
            x = views[:, 0] if is_moco else merged
            for part in parts:
                x = part(x, training=True)
            value = tf.reduce_mean(tf.square(x))
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
        if has_targets:
            x = target.encoder(views[:, 1] if is_moco else merged, training=True)
            value += tf.reduce_mean(tf.square(target.projector(x, training=True)))
        return value

    return timed_loop(lambda: float(step(views)), setting.steps)


def augmentation_of(setting):
    """Two views of a batch, as a model makes them."""
    augmentation = cifar10_methods.augmentation()
    images = tf.constant(setting.images())
    two = tf.function(lambda x: (augmentation(x), augmentation(x)), autograph=False)
    return timed_loop(lambda: float(two(images)[1][0, 0, 0, 0]), setting.steps)


def dataset_of(setting):
    """Batches of two views, read one after another; the first of each run is not timed."""
    images = np.tile(setting.images(), (8, 1, 1, 1))
    augmentation = cifar10_methods.augmentation()
    batches = ksm.data.two_views(
        images, augmentation=augmentation, batch_size=setting.batch, seed=0
    ).repeat()

    def run():
        iterator = iter(batches)
        next(iterator)
        return timed_loop(lambda: float(next(iterator)[0, 0, 0, 0, 0]), setting.steps)()

    return run


MAKERS = {
    "fit": fit_of,
    "networks": networks_of,
    "encoder": functools.partial(networks_of, encoder_alone=True),
    "in the model": augmentation_of,
    "tf.data": dataset_of,
}


if __name__ == "__main__":
    serve(answering(MAKERS))
