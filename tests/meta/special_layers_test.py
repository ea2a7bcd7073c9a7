"""Layers that TensorFlow's own gradients, Keras's scopes or half precision would get wrong in inner steps."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm

RNG = np.random.default_rng(0)
LAYERS = keras.layers


def episodes(tasks=2, support=4, queries=3, shape=(5,), targets=1):
    x = {
        "support_x": RNG.normal(size=(tasks, support, *shape)).astype("float32"),
        "support_y": RNG.normal(size=(tasks, support, targets)).astype("float32"),
        "query_x": RNG.normal(size=(tasks, queries, *shape)).astype("float32"),
    }
    return x, RNG.normal(size=(tasks, queries, targets)).astype("float32")


def maml(*layers, shape=(5,), compiled=True, dtype=None, **kwargs):
    network = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    model = ksm.MAML(network, **{"inner_learning_rate": 0.1, **kwargs})
    if compiled:
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
    return model


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    "resize",
    [
        lambda: LAYERS.Resizing(7, 7),
        lambda: LAYERS.UpSampling2D(2, interpolation="bilinear"),
    ],
    ids=["Resizing", "UpSampling2D"],
)
def test_bilinear_resizing_has_its_second_derivative(resize, steps):
    keras.utils.set_random_seed(0)
    model = maml(
        LAYERS.Conv2D(3, 3, activation="tanh"),
        resize(),
        LAYERS.Conv2D(2, 3, activation="tanh"),
        LAYERS.Flatten(),
        LAYERS.Dense(1),
        shape=(5, 5, 1),
        inner_steps=steps,
    )
    x, y = episodes(1, 6, 6, (5, 5, 1))
    x = {key: tf.constant(value) for key, value in x.items()}
    loss = tf.function(lambda: tf.reduce_mean((model(x) - y) ** 2))
    kernel = model.model.trainable_variables[0]
    start, direction = kernel.numpy(), RNG.normal(size=kernel.shape).astype("float32")
    with tf.GradientTape() as tape:
        value = tf.reduce_mean((model(x) - y) ** 2)
    slope = np.sum(tape.gradient(value, kernel.value) * direction)
    kernel.assign(start + 3e-3 * direction)
    above = loss()
    kernel.assign(start - 3e-3 * direction)
    numeric = (above - loss()) / 6e-3
    np.testing.assert_allclose(slope, numeric, rtol=1e-2, atol=1e-3)


def test_embeddings_over_several_steps():
    x = {
        "support_x": RNG.integers(0, 20, (2, 4, 5)),
        "support_y": RNG.normal(size=(2, 4, 1)).astype("float32"),
        "query_x": RNG.integers(0, 20, (2, 3, 5)),
    }
    y = RNG.normal(size=(2, 3, 1)).astype("float32")
    model = maml(
        LAYERS.Embedding(20, 4, mask_zero=True),
        LAYERS.GlobalAveragePooling1D(),
        LAYERS.Dense(1),
        dtype="int32",
        inner_steps=2,
    )
    before = model.get_weights()
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


def test_what_layers_add_to_the_loss_counts_in_both_loops():
    """An activity regulariser equals its formula in the loss: here, of an output layer, in y_pred."""
    x, y = episodes()
    strength = 0.7
    keras.utils.set_random_seed(1)
    regularised = maml(
        LAYERS.Dense(1, activity_regularizer=keras.regularizers.L2(strength)), inner_steps=2
    )
    keras.utils.set_random_seed(1)
    by_loss = maml(LAYERS.Dense(1), inner_steps=2, compiled=False)

    def formula(y_true, y_pred):
        # Keras divides an activity regulariser by the batch size.
        return tf.square(y_true - y_pred)[:, 0] + strength * tf.square(y_pred)[:, 0]

    by_loss.compile(keras.optimizers.SGD(0.1), loss=formula)
    got = regularised.fit(x, y, batch_size=2, epochs=2, verbose=0).history
    wanted = by_loss.fit(x, y, batch_size=2, epochs=2, verbose=0).history
    for a, b in zip(regularised.get_weights(), by_loss.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for name in ("loss", "support_loss_before"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4)


def test_layers_that_assign_to_their_weights_are_refused():
    x, y = episodes()
    with pytest.raises(ValueError, match=r"SpectralNormalization does.*Received.*kernel"):
        maml(LAYERS.SpectralNormalization(LAYERS.Dense(1))).fit(x, y, verbose=0)


def test_renormalisation_is_refused():
    with pytest.raises(ValueError, match="renorm=True"):
        maml(LAYERS.Dense(3), LAYERS.BatchNormalization(renorm=True), LAYERS.Dense(1))


def test_a_subclass_of_batch_normalisation_without_mask():
    class Plain(LAYERS.BatchNormalization):
        def call(self, inputs, training=None):
            return super().call(inputs, training=training)

    x, y = episodes()
    model = maml(LAYERS.Dense(3), Plain(), LAYERS.Dense(1))
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])


def test_a_lambda_for_a_loss():
    x, y = episodes()
    model = maml(LAYERS.Dense(1), compiled=False)
    model.compile("sgd", loss=lambda a, b: tf.reduce_mean(tf.square(a - b), axis=-1))
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])


@pytest.mark.parametrize("size", [1.0, 150.0, 1000.0])
def test_large_targets_in_half_precision(size):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = maml(
            LAYERS.Dense(16, activation="tanh"),
            LAYERS.Dense(1),
            shape=(1,),
            inner_learning_rate=1e-3,
        )
    finally:
        keras.config.set_dtype_policy("float32")
    line = np.linspace(-1, 1, 5, dtype="float32")[None, :, None]
    predictions = model.predict(
        {"support_x": line, "support_y": size * line, "query_x": line}, verbose=0
    )
    assert np.isfinite(predictions).all()


def test_constraints_hold_after_inner_steps():
    x, _ = episodes()
    model = maml(LAYERS.Dense(1, kernel_constraint="non_neg"), inner_learning_rate=1.0)
    adapted = model.adapt(x["support_x"][0], x["support_y"][0], steps=3)
    assert adapted.get_weights()[0].min() >= 0


def test_weights_frozen_between_two_calls_of_adapt():
    x, _ = episodes()
    model = maml(LAYERS.Dense(5), LAYERS.Dense(1), inner_loss="mse", compiled=False)
    first, last = model.model.layers
    for frozen, moved in ((first, 2), (last, 0)):
        first.trainable = last.trainable = True
        frozen.trainable = False
        before = model.model.get_weights()
        after = model.adapt(x["support_x"][0], x["support_y"][0]).get_weights()
        changed = [(a != b).any() for a, b in zip(before, after, strict=True)]
        assert changed == [moved == 0, moved == 0, moved == 2, moved == 2]


def test_threads_leave_tensorflow_as_it_was():
    """Traces in several threads at once, of one model and of others."""
    moments, resize = tf.nn.moments, tf.image.resize
    x, _ = episodes()
    shared = maml(LAYERS.Dense(3), LAYERS.BatchNormalization(), LAYERS.Dense(1))
    errors = []

    def work(i):
        try:
            own = maml(LAYERS.Dense(3), LAYERS.LayerNormalization(), LAYERS.Dense(1))
            own.predict_along(x, 1)
            shared.predict_along(x, i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert tf.nn.moments is moments and tf.image.resize is resize
    (norm,) = [x for x in shared.model.layers if isinstance(x, LAYERS.BatchNormalization)]
    assert norm.momentum == 0.99 and "call" not in vars(norm)
