"""Fused batch normalisation does what Keras's does, is used where it can be, and leaves no trace."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import SimCLR
from keras_sslmeta.layers import ProjectionHead
from keras_sslmeta.mechanisms import fused_normalization

KERNEL = "FusedBatchNormV3"
RNG = np.random.default_rng(0)


def built(shape, dtype="float32", **options):
    layer = keras.layers.BatchNormalization(dtype=dtype, **options)
    layer.build(shape)
    layer.set_weights([RNG.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
    return layer


def pass_of(layer, x, in_scope, training=True, mask=None):
    """Outputs, gradients, moving statistics after the pass, and the operations that it has."""
    before = [v.numpy() for v in layer.variables]
    model = keras.Sequential([layer])

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training, mask=mask)
            loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float64)) * tf.cast(x, tf.float64))
        return y, tape.gradient(loss, [x, *layer.trainable_variables])

    def traced(x):
        if in_scope:
            with fused_normalization.of(model):
                return run.get_concrete_function(x)
        return run.get_concrete_function(x)

    x = tf.constant(x, layer.compute_dtype)
    function = traced(x)
    y, gradients = function(x)
    moved = [v.numpy() for v in layer.non_trainable_variables]
    for variable, value in zip(layer.variables, before, strict=True):
        variable.assign(value)
    kinds = {op.type for op in function.graph.get_operations()}
    return [y, *gradients, *moved], kinds


def agree(layer, x, tolerance, **options):
    got, kinds = pass_of(layer, x, True, **options)
    wanted, plain = pass_of(layer, x, False, **options)
    assert KERNEL not in plain
    for a, b in zip(got, wanted, strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        a, b = (np.asarray(value, "float64") for value in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())
    return kinds


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False, "momentum": 0.5}])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (9, 6), (3, 4, 6)])
def test_as_keras(shape, options):
    x = 2 + 3 * RNG.normal(size=shape)
    assert KERNEL in agree(built(shape, **options), x, 2e-5)


def test_half_precision_normalises_in_single():
    x = 2 + 3 * RNG.normal(size=(4, 3, 5, 6))
    assert KERNEL in agree(built(x.shape, "mixed_float16"), x, 2e-3)


def test_double_precision():
    agree(built((4, 3, 5, 6), "float64"), RNG.normal(size=(4, 3, 5, 6)), 1e-12)


@pytest.mark.parametrize(
    ("layer", "passing"),
    [
        ({"axis": 1}, {}),
        ({"renorm": True}, {}),
        ({"trainable": False}, {}),
        ({}, {"training": False}),
        ({}, {"training": None}),
        ({}, {"mask": np.array([[True, False, True]] * 4)}),
    ],
)
def test_what_stays_with_keras(layer, passing):
    shape = (4, 3, 6) if "mask" in passing else (4, 3, 5, 6)
    if layer.get("renorm"):
        options = {"renorm": True}
        normalization = keras.layers.BatchNormalization(**options)
        normalization.build(shape)
    else:
        normalization = built(shape, **layer)
    kinds = agree(normalization, RNG.normal(size=shape), 1e-6, **passing)
    assert KERNEL not in kinds


def test_xla_stays_with_keras():
    # Its own fused operation has a variance of mean(x²) − mean(x)²: here it would be negative.
    encoder = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.0), keras.layers.Dense(4)]
    )
    model = SimCLR(encoder, projector=ProjectionHead(4, hidden_dim=4))
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    x = RNG.normal(size=(30, 2, 3)).astype("float32")
    x[..., 0] = 1000 + 0.1 * x[..., 0]
    history = model.fit(x, batch_size=30, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    variance = encoder.layers[0].moving_variance.numpy()
    np.testing.assert_allclose(variance, np.var(x.astype("float64"), axis=(0, 1)), rtol=1e-2)


def test_gradients_that_are_slices():
    layer = built((4, 3, 5, 6))
    model = keras.Sequential([layer])
    x = tf.constant(RNG.normal(size=(4, 3, 5, 6)), tf.float32)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.sin(tf.gather(layer(x, training=True), [2, 0, 2])))
        return tape.gradient(y, x)

    with fused_normalization.of(model):
        got = gradient.get_concrete_function(x)(x)
    np.testing.assert_allclose(got, gradient.python_function(x), rtol=1e-4, atol=1e-5)


def test_a_subclass_with_statistics_of_its_own():
    class Ghost(keras.layers.BatchNormalization):
        def _moments(self, inputs, mask):
            return tf.nn.moments(inputs[:2], self._reduction_axes)

    model = keras.Sequential([keras.Input((3,)), Ghost()])
    x = RNG.normal(size=(6, 3)).astype("float32")
    wanted = model(x, training=True)
    with fused_normalization.of(model):
        np.testing.assert_array_equal(model(x, training=True), wanted)


def test_a_single_replica_has_nobody_to_synchronise_with():
    x = RNG.normal(size=(4, 3, 5, 6))
    assert KERNEL in agree(built(x.shape, synchronized=True), x, 2e-5)


def test_no_trace_is_left():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    layer = model.layers[0]
    with fused_normalization.of(model):
        with pytest.raises(ZeroDivisionError), fused_normalization.of(model):
            raise ZeroDivisionError
        assert "call" in vars(layer)  # The outer scope's still.
    assert "call" not in vars(layer)


def test_a_call_of_the_users_own_stays():
    class Own(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return inputs + 7

    model = keras.Sequential([keras.Input((4,)), Own(), keras.layers.BatchNormalization()])
    patched = model.layers[1]
    patched.call = lambda inputs, training=None, mask=None: inputs + 1
    with fused_normalization.of(model):
        np.testing.assert_array_equal(
            model(np.zeros((3, 4), "float32"), training=True), np.full((3, 4), 8.0)
        )
    assert patched.call(1) == 2


def test_training_steps_are_fused_and_keras_own():
    def trained(is_fused, monkeypatch):
        keras.utils.set_random_seed(0)
        encoder = keras.Sequential(
            [
                keras.Input((6, 6, 3)),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(),
                keras.layers.ReLU(),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        model = SimCLR(encoder, projector=ProjectionHead(5, hidden_dim=6, batch_normalization=True))
        model.compile(keras.optimizers.SGD(0.1))
        x = np.random.default_rng(1).normal(size=(8, 2, 6, 6, 3)).astype("float32")
        with monkeypatch.context() as patch:
            if not is_fused:
                patch.setattr(
                    "keras_sslmeta.mechanisms.batch_normalization.applies", lambda *_: False
                )
            model.fit(x, batch_size=4, epochs=2, shuffle=False, verbose=0)
            step = tf.function(model.train_step, autograph=False)
            step = step.get_concrete_function((tf.constant(x[:4]),))
        return model.get_weights(), {op.type for op in step.graph.get_operations()}

    monkeypatch = pytest.MonkeyPatch()
    fused, kinds = trained(True, monkeypatch)
    plain, plain_kinds = trained(False, monkeypatch)
    assert KERNEL in kinds and KERNEL not in plain_kinds
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
