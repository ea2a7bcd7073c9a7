"""Batches in parts: one gradient, whatever the parts; random draws and added losses included."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from small_methods import LABELS, METHODS, VIEWS, encoder, head

import keras_sslmeta as ksm

every_method = pytest.mark.parametrize("name", METHODS)


def labels_of(name):
    return LABELS if name == "SupCon" else None


def made(name, **kwargs):
    keras.utils.set_random_seed(0)
    return METHODS[name](**kwargs)


def trained(model, x=VIEWS, y=None, optimizer=None, epochs=2, **kwargs):
    model.compile(optimizer or keras.optimizers.SGD(0.1), **kwargs)
    history = model.fit(x, y, batch_size=len(x), epochs=epochs, shuffle=False, verbose=0).history
    return history["loss"], [w.numpy() for w in model.weights]


def assert_equal(one, other, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(one[0], other[0], rtol=rtol)
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.first(2)
@every_method
@pytest.mark.parametrize("size", [4, 5], ids=["even", "uneven"])
def test_parts_are_the_whole(name, size):
    """Loss, weights, queues and averages of two steps; 12 = 3 · 4 = 5 + 5 + 2."""
    rate = {"BarlowTwins": 0.01, "VICReg": 0.01}.get(name, 0.1)
    whole = trained(made(name), y=labels_of(name), optimizer=keras.optimizers.SGD(rate))
    model = made(name, micro_batch_size=size)
    parts = trained(model, y=labels_of(name), optimizer=keras.optimizers.SGD(rate))
    assert_equal(parts, whole, rtol=2e-5)
    assert np.abs(parts[1][0] - made(name).weights[0]).max() > 1e-3


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}], ids=str)
def test_ways_of_running(options):
    whole = trained(made("BYOL"), np.tile(VIEWS, (2, 1, 1)))
    model = made("BYOL", micro_batch_size=5)
    assert_equal(trained(model, np.tile(VIEWS, (2, 1, 1)), **options), whole)


def test_xla():
    whole = trained(made("MoCoV3"))
    assert_equal(trained(made("MoCoV3", micro_batch_size=4), jit_compile=True), whole, 1e-4, 1e-5)


def random_model(size=None):
    """What draws at random, keeps statistics, adds losses, decays weights, and trains its loss."""
    keras.utils.set_random_seed(3)
    body = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(
                8, "tanh", kernel_regularizer=keras.regularizers.L2(0.01),
                kernel_initializer=keras.initializers.GlorotUniform(1),
            ),
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=1),
            layers.ActivityRegularization(l2=0.1),
        ]
    )  # fmt: skip
    augmentation = layers.GaussianNoise(0.3, seed=2)
    return ksm.SimCLR(body, augmentation, head(), micro_batch_size=size)


def test_random_draws_are_drawn_again():
    """Against the same parts, one after the other on one tape, that nothing runs twice."""
    samples = VIEWS[:, 0]
    model, other = random_model(5), random_model()
    model.compile(keras.optimizers.SGD(0.1))
    other.compile(keras.optimizers.SGD(0.1))
    loss = model.train_on_batch(samples)
    parts = [samples[:5], samples[5:10], samples[10:]]
    with tf.GradientTape() as tape:
        outputs, added = [], 0.0
        for part in parts:
            outputs.append(other(part, training=True))
            added += tf.add_n(other.encoder.losses[:1]) * len(part) / 12
        decay = 0.01 * tf.reduce_sum(other.encoder.weights[0] ** 2)
        expected = other.loss(None, tf.concat(outputs, 0)) + added + decay
    variables = other.trainable_variables
    other.optimizer.apply_gradients(zip(tape.gradient(expected, variables), variables, strict=True))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(model.variables, other.variables, strict=True):
        if "loss" not in b.path and "iteration" not in b.path:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=b.path)
    assert float(added) > 0.01 and float(decay) > 0.01


def test_a_function_draws_beforehand():
    """What Keras does not know the state of is drawn once, for all samples."""
    drawn = []

    def augment(x):
        drawn.append(1)
        return x + tf.random.normal(tf.shape(x), stddev=0.1)

    model = ksm.SimCLR(encoder(), augment, head(), micro_batch_size=5)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.train_on_batch(VIEWS[:, 0])
    assert len(drawn) == 2  # Once a view.


def test_synchronised_normalisation_takes_the_statistics_of_parts():
    """Alike on one device, where it is synchronised with nobody, and it stays as it was."""
    results = []
    for synchronized in (False, True):
        norm = layers.BatchNormalization(synchronized=synchronized)
        model = ksm.SimCLR(encoder(norm), projector=head(), micro_batch_size=5)
        results.append(trained(model))
        assert norm.synchronized == synchronized
    assert_equal(*results)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        results = [
            trained(
                ksm.SimCLR(encoder(), projector=head(), micro_batch_size=size),
                optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 64.0),
            )
            for size in (None, 5)
        ]
    finally:
        keras.config.set_dtype_policy("float32")
    assert_equal(*results, rtol=2e-2, atol=2e-3)
    assert np.abs(results[0][1][0] - encoder().weights[0]).max() > 1e-3


def test_sample_weights_and_metrics():
    weights = np.linspace(0, 2, 12).astype("float32")
    results = []
    for size in (None, 5):
        model = ksm.SimCLR(encoder(), projector=head(), micro_batch_size=size)
        model.compile(keras.optimizers.SGD(0.1))
        history = model.fit(
            VIEWS, sample_weight=weights, batch_size=12, shuffle=False, epochs=2, verbose=0
        )
        results.append((history.history["loss"], [w.numpy() for w in model.weights]))
    assert_equal(*results)


def test_token_ids_and_several_inputs():
    ids = np.random.default_rng(0).integers(20, size=(12, 2, 7))
    other = VIEWS[..., :3]

    def build(size):
        tokens, numbers = keras.Input((7,), dtype="int32"), keras.Input((3,))
        x = layers.GlobalAveragePooling1D()(
            layers.Embedding(20, 5, embeddings_initializer="ones")(tokens)
        )
        x = layers.Concatenate()([x, numbers])
        x = layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(0))(x)
        return ksm.SimCLR(
            keras.Model([tokens, numbers], x), projector=head(), micro_batch_size=size
        )

    results = []
    for size in (None, 5):
        model = build(size)
        model.compile(keras.optimizers.SGD(0.1))
        history = model.fit([ids, other], batch_size=12, shuffle=False, epochs=2, verbose=0)
        results.append((history.history["loss"], [w.numpy() for w in model.weights]))
    assert_equal(*results)


def test_a_part_larger_than_the_batch_is_refused():
    model = ksm.SimCLR(encoder(), projector=head(), micro_batch_size=16)
    model.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match=r"`micro_batch_size` must .* batches of 12"):
        model.fit(VIEWS, batch_size=12, verbose=0)
    with pytest.raises(ValueError, match="`micro_batch_size` must"):
        model.fit(
            tf.data.Dataset.from_tensor_slices(VIEWS).batch(6, drop_remainder=True), verbose=0
        )
    # A last batch may well be smaller.
    model = ksm.SimCLR(encoder(), projector=head(), micro_batch_size=8)
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(VIEWS, batch_size=9, verbose=0)


class TensorFlowNoise(layers.Layer):
    """Draws what Keras cannot draw again."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x), stddev=0.5)


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_keras_cannot_draw_again_draws_beforehand(nested):
    """The step is that of the views that the loss saw: one set of views, for both passes."""
    augmentation = TensorFlowNoise()
    if nested:
        augmentation = keras.Sequential([layers.GaussianNoise(0.1), augmentation])
    seen = []

    class Recorded(ksm.SimCLR):
        def project_views(self, inputs):
            assert inputs.shape.rank == 3  # Ready-made here: no part makes its own.
            return super().project_views(inputs)

        def views_of(self, inputs):
            views = super().views_of(inputs)
            seen.append(views) if not self._are_views(inputs) else None
            return views

    model = Recorded(encoder(), augmentation, head(), micro_batch_size=5)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    start = [w.numpy() for w in model.trainable_variables]
    model.train_on_batch(VIEWS[:, 0])
    (views,) = seen
    other = made("SimCLR")
    other.compile(keras.optimizers.SGD(0.1))
    for variable, value in zip(other.trainable_variables, start, strict=True):
        variable.assign(value)
    other.train_on_batch(views)
    assert_equal(model.get_weights(), other.get_weights())


def test_an_encoder_that_cannot_draw_again_is_refused():
    model = ksm.SimCLR(encoder(TensorFlowNoise()), projector=head(), micro_batch_size=5)
    model.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match=r"use `keras.random`.*RandomStandardNormal"):
        model.fit(VIEWS, batch_size=12, verbose=0)


@pytest.mark.parametrize("data", [VIEWS, VIEWS[:11]])
def test_xla_and_parts_of_unknown_batches_are_refused(data):
    model = made("SimCLR", micro_batch_size=4)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    with pytest.raises(ValueError, match="drop_remainder=True"):
        model.fit(tf.data.Dataset.from_tensor_slices(data).batch(12), verbose=0)
