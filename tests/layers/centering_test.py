import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers.centering import Centering


def logits(batch=6, views=2, outputs=5, seed=0, dtype="float32"):
    # Far from zero, so that a centre that does not move would show.
    return (3 + np.random.default_rng(seed).normal(size=(batch, views, outputs))).astype(dtype)


def oracle(batches, momentum):
    """Outputs of each batch and the last centre, entry by entry."""
    center, outputs = np.zeros(batches[0].shape[-1]), []
    for batch in batches:
        outputs.append(batch.astype("float64") - center)
        rows = batch.reshape(-1, batch.shape[-1]).astype("float64")
        for k in range(len(center)):
            mean = sum(row[k] for row in rows) / len(rows)
            center[k] = momentum * center[k] + (1 - momentum) * mean
    return outputs, center


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("has_views", [True, False])
def test_equals_the_recurrence(momentum, has_views):
    batches = [logits(batch=4 + i, seed=i) for i in range(4)]
    batches = batches if has_views else [batch[:, 0] for batch in batches]
    layer = Centering(momentum)
    outputs, center = oracle(batches, momentum)
    for batch, expected in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(layer(batch, training=True), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.center, center, rtol=1e-5, atol=1e-6)


def test_dinos_momentum_is_the_default():
    layer = Centering()
    layer(np.ones((2, 3), "float32"), training=True)
    np.testing.assert_allclose(layer.center, np.full(3, 0.1), rtol=1e-6)


def test_moves_in_training_only():
    layer = Centering()
    for _ in range(2):
        np.testing.assert_array_equal(layer(logits()), logits())
        np.testing.assert_array_equal(layer(logits(), training=False), logits())
    np.testing.assert_array_equal(layer.center, np.zeros(5))


def test_a_frozen_teacher_still_has_a_moving_centre():
    layer = Centering()
    layer.trainable = False
    layer(logits(), training=True)
    assert np.abs(layer.center).min() > 0
    assert not layer.trainable_weights and len(layer.non_trainable_weights) == 1


def test_gradient_is_the_identity_and_leaves_the_centre_alone():
    layer, x = Centering(), tf.constant(logits())
    layer(x, training=True)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(layer(x, training=True) ** 2) / 2 + tf.reduce_sum(layer.center)
    # The centre that was subtracted is a constant, and so is the one that this batch moved.
    expected = x - 0.1 * tf.reduce_mean(x, [0, 1])
    np.testing.assert_allclose(tape.gradient(value, x), expected, rtol=1e-5)
    assert not layer.trainable_variables


def test_an_empty_batch_moves_nothing():
    layer = Centering(0.5)
    layer(logits(), training=True)
    before = layer.center.numpy()
    layer(np.zeros((0, 2, 5), "float32"), training=True)
    np.testing.assert_array_equal(layer.center, before)


def test_nan_gives_nan():
    x = logits()
    x[0, 0, 0] = np.nan
    layer = Centering()
    layer(x, training=True)
    np.testing.assert_array_equal(np.isnan(layer.center), [True] + [False] * 4)


@pytest.mark.parametrize(
    ("policy", "computed", "kept"),
    [
        ("float64", "float64", "float64"),
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("float16", "float16", "float32"),
    ],
)
def test_dtypes(policy, computed, kept):
    layer = Centering(0.999, dtype=policy)
    x = tf.cast(logits(), computed)
    for _ in range(50):
        outputs = layer(x, training=True)
    assert outputs.dtype == computed and layer.center.dtype == kept
    # In half precision, steps of a thousandth would be lost.
    mean = tf.reduce_mean(tf.cast(x, tf.float64), [0, 1])
    np.testing.assert_allclose(layer.center, (1 - 0.999**50) * mean, rtol=1e-4)
    spec = layer(keras.KerasTensor((None, 2, 5), dtype=computed))
    assert spec.shape == (None, 2, 5) and spec.dtype == computed


def test_large_half_precision_logits_do_not_overflow():
    layer = Centering(dtype="mixed_float16")
    layer(tf.fill([4096, 2, 3], tf.constant(1e4, tf.float16)), training=True)
    np.testing.assert_allclose(layer.center, np.full(3, 1e3), rtol=1e-3)


def model_with_centre(policy="float32"):
    inputs = keras.Input((2, 4))
    # A layer that learns, so that there is something to fit.
    outputs = Centering(0.5, name="centering", dtype=policy)(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, dtype=policy)(outputs))


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}, {}]
)
def test_under_fit_and_after_saving(settings, tmp_path):
    x, y = logits(batch=12, outputs=4), np.zeros((12, 2, 3), "float32")
    model = model_with_centre()
    model.compile("sgd", "mse", **{"jit_compile": False, **settings})
    model.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0)
    batches = [x[i : i + 3] for i in range(0, 12, 3)] * 2
    _, center = oracle(batches, 0.5)
    np.testing.assert_allclose(model.get_layer("centering").center, center, rtol=1e-5)
    model.evaluate(x, y, verbose=0)
    before = model.predict(x, verbose=0)
    np.testing.assert_allclose(model.get_layer("centering").center, center, rtol=1e-5)

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.get_layer("centering").center, model.get_layer("centering").center
    )
    np.testing.assert_allclose(again.predict(x, verbose=0), before, rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fit_in_mixed_precision(policy):
    x = logits(batch=8, outputs=4)
    model = model_with_centre(policy)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((8, 2, 3)), batch_size=4, shuffle=False, verbose=0)
    # The input itself is rounded before it comes.
    _, center = oracle([x[:4], x[4:]], 0.5)
    np.testing.assert_allclose(model.get_layer("centering").center, center, rtol=1e-2)


def test_config():
    layer = Centering(np.float32(0.5), name="center", dtype="mixed_float16")
    again = Centering.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.momentum == 0.5 and again.dtype_policy.name == "mixed_float16"
    assert keras.saving.get_registered_name(Centering) == "keras_sslmeta.layers>Centering"


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan"), "0.9", None, True])
def test_refused(momentum):
    with pytest.raises(ValueError, match="`momentum` must be a number from 0 to 1") as error:
        Centering(momentum)
    assert repr(momentum) in str(error.value)


@pytest.mark.parametrize("shape", [(None, None), (None,)])
def test_refused_shapes(shape):
    with pytest.raises(ValueError, match=r"`inputs` must be logits \(…, outputs\)"):
        Centering()(keras.KerasTensor(shape))
