import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers.prototypes import Prototypes
from keras_sslmeta.losses.swapped_prediction import SwappedPrediction


def embeddings(batch=6, views=2, dim=5, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, views, dim)).astype(dtype)


def oracle(x, prototypes):
    """The cosine of each row with each column."""
    rows = x.reshape(-1, x.shape[-1]).astype("float64")
    scores = np.zeros((len(rows), prototypes.shape[1]))
    for i, row in enumerate(rows):
        for k, column in enumerate(prototypes.T.astype("float64")):
            scores[i, k] = row @ column / np.linalg.norm(row) / np.linalg.norm(column)
    return scores.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("shape", [(5,), (6, 5), (6, 2, 5), (3, 2, 2, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_cosines(shape, scale):
    x = np.random.default_rng(0).normal(size=shape).astype("float32") * scale
    x = x if len(shape) > 1 else x[None]
    layer = Prototypes(7)
    got = layer(x)
    assert got.shape == (*x.shape[:-1], 7)
    np.testing.assert_allclose(got, oracle(x, layer.prototypes.numpy()), rtol=1e-5, atol=1e-6)


def test_the_length_of_prototypes_does_not_matter():
    layer = Prototypes(7)
    expected = layer(embeddings())
    layer.prototypes.assign(layer.prototypes * np.linspace(0.1, 1e4, 7).astype("float32"))
    np.testing.assert_allclose(layer(embeddings()), expected, rtol=1e-5, atol=1e-6)


def test_starts_uniform_on_the_sphere():
    layer = Prototypes(4000)
    layer.build((None, 8))
    directions = layer.prototypes.numpy() / np.linalg.norm(layer.prototypes, axis=0)
    np.testing.assert_allclose(np.mean(directions, axis=1), 0, atol=0.03)
    np.testing.assert_allclose(directions @ directions.T / 4000, np.eye(8) / 8, atol=0.02)


def test_gradients_by_finite_differences():
    layer = Prototypes(4, dtype="float64")
    x = embeddings(batch=3, dtype="float64")
    layer.build(x.shape)
    weights = np.random.default_rng(1).normal(size=(3, 2, 4))
    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        value = tf.reduce_sum(layer(inputs) * weights)
    by_input, by_prototypes = tape.gradient(value, [inputs, layer.prototypes.value])
    prototypes = layer.prototypes.numpy()

    def differences(f, at):
        result = np.zeros_like(at)
        for index in np.ndindex(at.shape):
            up, down = at.copy(), at.copy()
            up[index] += 1e-6
            down[index] -= 1e-6
            result[index] = (f(up) - f(down)) / 2e-6
        return result

    np.testing.assert_allclose(
        by_input, differences(lambda x: (oracle(x, prototypes) * weights).sum(), x), rtol=1e-5
    )
    np.testing.assert_allclose(
        by_prototypes,
        differences(lambda p: (oracle(x, p) * weights).sum(), prototypes),
        rtol=1e-5,
    )


def test_zeros_have_score_zero_and_no_gradient():
    x = embeddings()
    x[0, 0] = 0
    layer = Prototypes(4)
    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        scores = layer(inputs)
        value = tf.reduce_sum(scores)
    gradients = tape.gradient(value, [inputs, layer.prototypes.value])
    np.testing.assert_array_equal(scores[0, 0], np.zeros(4))
    np.testing.assert_array_equal(gradients[0][0, 0], np.zeros(5))
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("as_function", [False, True])
def test_frozen_for_the_first_training_calls(as_function):
    layer = Prototypes(4, frozen_steps=2)
    x = tf.constant(embeddings())
    layer.build(x.shape)

    def gradients(training):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(layer(x, training=training)[..., 0])
        return tape.gradient(value, [x, layer.prototypes.value])

    gradients = tf.function(gradients) if as_function else gradients
    for step in range(4):
        by_input, by_prototypes = gradients(training=True)
        assert np.abs(by_input).max() > 0  # The encoder learns from the start.
        is_frozen = by_prototypes is None or not np.abs(by_prototypes).max()
        assert is_frozen == (step < 2), step
        # Calls outside of training neither count nor freeze.
        assert np.abs(gradients(training=False)[1]).max() > 0
        assert int(layer.steps) == step + 1


def model_with_prototypes(frozen_steps=0, policy="float32"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, 5))
    hidden = keras.layers.Dense(4, dtype=policy, name="encoder")(inputs)
    layer = Prototypes(3, frozen_steps=frozen_steps, dtype=policy, name="prototypes")
    return keras.Model(inputs, layer(hidden))


def directions(layer):
    return layer.prototypes.numpy() / np.linalg.norm(layer.prototypes, axis=0)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}, {}]
)
def test_frozen_under_fit(settings):
    x = embeddings(batch=16)
    model = model_with_prototypes(frozen_steps=4)
    layer, encoder = model.get_layer("prototypes"), model.get_layer("encoder")
    start, kernel = directions(layer), encoder.kernel.numpy()
    # Momentum and decay of the optimiser must not turn the frozen ones either.
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)
    model.compile(optimizer, SwappedPrediction(), **{"jit_compile": False, **settings})
    model.fit(x, batch_size=4, verbose=0)
    assert int(layer.steps) == 4
    np.testing.assert_allclose(directions(layer), start, rtol=1e-5, atol=1e-6)
    assert np.abs(encoder.kernel - kernel).max() > 1e-3
    model.fit(x, batch_size=8, verbose=0)
    assert int(layer.steps) == 6 and np.abs(directions(layer) - start).max() > 1e-3


def test_saved_in_the_frozen_steps(tmp_path):
    x = embeddings(batch=8)
    model = model_with_prototypes(frozen_steps=3)
    model.compile(keras.optimizers.SGD(0.1), SwappedPrediction())
    model.fit(x, batch_size=4, verbose=0)
    model.evaluate(x, batch_size=4, verbose=0)  # Does not count.
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    layer = again.get_layer("prototypes")
    start = directions(layer)
    assert int(layer.steps) == 2 and isinstance(again.loss, SwappedPrediction)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    again.fit(x[:4], batch_size=4, verbose=0)
    np.testing.assert_allclose(directions(layer), start, rtol=1e-5, atol=1e-6)
    again.fit(x[:4], batch_size=4, verbose=0)
    assert np.abs(directions(layer) - start).max() > 1e-3


@pytest.mark.parametrize(
    ("policy", "computed", "kept", "tolerance"),
    [
        ("float64", "float64", "float64", 1e-12),
        ("mixed_float16", "float16", "float32", 3e-3),
        ("mixed_bfloat16", "bfloat16", "float32", 3e-2),
        ("bfloat16", "bfloat16", "float32", 3e-2),
    ],
)
def test_dtypes(policy, computed, kept, tolerance):
    layer = Prototypes(7, dtype=policy)
    # Norms whose squares overflow half precision.
    x = tf.cast(embeddings() * 1e4, computed)
    scores = layer(x)
    assert scores.dtype == computed and layer.prototypes.dtype == kept
    expected = oracle(tf.cast(x, tf.float64).numpy(), layer.prototypes.numpy())
    np.testing.assert_allclose(tf.cast(scores, tf.float64), expected, atol=tolerance)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fit_in_mixed_precision(policy):
    model = model_with_prototypes(frozen_steps=1, policy=policy)
    before = model.get_layer("prototypes").prototypes.numpy()
    model.compile(keras.optimizers.SGD(0.1), SwappedPrediction())
    history = model.fit(embeddings(batch=16), batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert np.abs(model.get_layer("prototypes").prototypes - before).max() > 1e-4


def test_symbolic_shapes():
    for shape in [(None, 5), (None, 2, 5), (4, None, 5)]:
        scores = Prototypes(7, dtype="mixed_bfloat16")(keras.KerasTensor(shape))
        assert scores.shape == (*shape[:-1], 7) and scores.dtype == "bfloat16"


def test_no_gradient_for_each_sample_is_held():
    """The prototypes' gradient is one product of matrices, whatever the rank of the inputs."""
    layer = Prototypes(3)
    layer.build((None, 2, 5))

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(layer(x))
        return tape.gradient(value, layer.prototypes.value)

    graph = gradient.get_concrete_function(tf.TensorSpec([64, 2, 5])).graph
    products = [op for op in graph.get_operations() if "MatMul" in op.type]
    assert products and all(op.type == "MatMul" for op in products)


def test_config():
    layer = Prototypes(np.int64(7), frozen_steps=3, name="p", dtype="mixed_float16")
    again = Prototypes.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.count, again.frozen_steps, again.name) == (7, 3, "p")


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None, "7"])
def test_refused(count):
    with pytest.raises(ValueError, match="`count` must be a positive integer") as error:
        Prototypes(count)
    assert repr(count) in str(error.value)


@pytest.mark.parametrize("frozen_steps", [-1, 1.5, None])
def test_refused_frozen_steps(frozen_steps):
    with pytest.raises(ValueError, match="`frozen_steps` must be an integer from 0") as error:
        Prototypes(7, frozen_steps=frozen_steps)
    assert repr(frozen_steps) in str(error.value)


@pytest.mark.parametrize("shape", [(None, None), (None,)])
def test_refused_shapes(shape):
    with pytest.raises(ValueError, match=r"`inputs` must be embeddings \(…, features\)"):
        Prototypes(3)(keras.KerasTensor(shape))
