"""What every random layer for sequences, tokens and tables must do; a new one adds one row."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import layers
from keras_sslmeta.data import two_views

LAYERS = {
    "spec_augment": (lambda **kw: layers.SpecAugment(2, 6, 1, 3, **kw), (20, 8)),
    "spec_augment of channels": (
        lambda **kw: layers.SpecAugment(2, 6, 1, 3, fill="mean", **kw),
        (20, 8, 2),
    ),
    "gain": (lambda **kw: layers.RandomGain(6.0, **kw), (20,)),
    "shift": (lambda **kw: layers.RandomTimeShift(0.5, **kw), (20,)),
    "wrapped shift": (lambda **kw: layers.RandomTimeShift(0.5, wrap=True, **kw), (20, 3)),
    "jitter": (lambda **kw: layers.RandomJitter(0.5, **kw), (20, 3)),
    "scaling": (lambda **kw: layers.RandomScaling(0.5, **kw), (20, 3)),
    "crop": (lambda **kw: layers.RandomTimeCrop((0.3, 0.9), **kw), (20, 3)),
    "crop of spectrograms": (lambda **kw: layers.RandomTimeCrop((0.3, 0.9), **kw), (20, 4, 2)),
    "warp": (lambda **kw: layers.RandomTimeWarp(0.5, **kw), (20, 3)),
    "warp of spectrograms": (lambda **kw: layers.RandomTimeWarp(0.5, 2, **kw), (20, 4, 2)),
    "permutation": (lambda **kw: layers.RandomPermutation(5, **kw), (20, 3)),
    "deletion": (lambda **kw: layers.TokenDropout(0.3, **kw), (20,)),
    "masking": (lambda **kw: layers.TokenDropout(0.3, mask_token=1, **kw), (20,)),
    "corruption": (lambda **kw: layers.FeatureCorruption(0.5, **kw), (20,)),
}
TOKENS = ("deletion", "masking")
every_layer = pytest.mark.parametrize("name", LAYERS)


def new(name, /, **kwargs):
    return LAYERS[name][0](**{"seed": 3, **kwargs})


def batch_for(name, rows=16):
    """Whole numbers, which every dtype holds: copies of one sample, but for the table."""
    rng = np.random.default_rng(0)
    shape = LAYERS[name][1]
    if name == "corruption":
        return rng.integers(2, 100, (rows, *shape)).astype("float32")
    return np.repeat(rng.integers(2, 100, (1, *shape)).astype("float32"), rows, axis=0)


def distinct(outputs):
    return len({np.asarray(output).tobytes() for output in outputs})


@every_layer
def test_samples_get_their_own_draws_and_calls_differ(name):
    layer, batch = new(name), batch_for(name)
    first, second = layer(batch).numpy(), layer(batch).numpy()
    assert first.shape == batch.shape and distinct(first) >= 4
    assert not np.array_equal(first, second)


@every_layer
def test_the_seed_fixes_every_call(name):
    batch = batch_for(name)
    one, two, other = new(name), new(name), new(name, seed=4)
    for _ in range(2):
        expected = one(batch)
        np.testing.assert_array_equal(two(batch), expected)
        assert not np.array_equal(other(batch), expected)


@every_layer
def test_set_random_seed_fixes_a_layer_without_a_seed(name):
    outputs = []
    for _ in range(2):
        keras.utils.set_random_seed(11)
        outputs.append(new(name, seed=None)(batch_for(name)).numpy())
    np.testing.assert_array_equal(*outputs)


@every_layer
def test_a_draw_does_not_depend_on_the_other_rows(name):
    batch = batch_for(name)
    changed = batch.copy()
    changed[1:] = changed[1:] * 2.0 + 1.0
    outputs = [new(name)(x).numpy()[0] for x in (batch, changed)]
    if name == "corruption":  # Its values are those of the other rows, its choice is not.
        outputs = [output == batch[0] for output in outputs]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.first(8)
@every_layer
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_and_xla_equal_eager(name, jit_compile):
    batch = batch_for(name)
    eager, compiled = new(name), new(name)
    function = tf.function(compiled, jit_compile=jit_compile)
    for _ in range(2):
        np.testing.assert_allclose(function(batch), eager(batch), atol=1e-3)


@pytest.mark.first(4)
@every_layer
def test_in_tf_data_with_unknown_batch_and_again(name):
    batch = batch_for(name)
    passes = []
    for _ in range(2):
        batches = tf.data.Dataset.from_tensor_slices(batch).batch(6).map(new(name))
        assert tuple(batches.element_spec.shape) == (None, *batch.shape[1:])
        passes.append([x.numpy() for x in batches])
        assert [len(x) for x in passes[-1]] == [6, 6, 4]
    np.testing.assert_array_equal(np.concatenate(passes[0]), np.concatenate(passes[1]))


@every_layer
def test_unknown_time(name):
    if name == "corruption":
        pytest.skip("the number of features is known")
    batch = batch_for(name)
    spec = tf.TensorSpec((None, None, *batch.shape[2:]), tf.float32)
    layer, eager = new(name), new(name)
    function = tf.function(layer, input_signature=[spec])
    np.testing.assert_allclose(function(batch), eager(batch), atol=1e-4)
    assert function(batch[:3, :7]).shape == (3, 7, *batch.shape[2:])


@pytest.mark.first(4)
@every_layer
def test_two_views_of_a_dataset_differ(name):
    batch = batch_for(name)
    views = next(iter(two_views(batch, augmentation=new(name), batch_size=8))).numpy()
    assert views.shape == (8, 2, *batch.shape[1:])
    assert (views[:, 0] != views[:, 1]).any()


@every_layer
def test_a_model_augments_in_fit_and_not_in_predict(name):
    batch = batch_for(name)
    inputs = keras.Input(batch.shape[1:])
    model = keras.Model(inputs, new(name)(inputs))
    assert model.output_shape == (None, *batch.shape[1:])
    np.testing.assert_array_equal(model.predict(batch, verbose=0), batch)
    assert not np.allclose(model(batch, training=True), batch)


@every_layer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "mixed_float16"])
def test_integers_become_floats_and_tokens_stay(name, dtype):
    batch = batch_for(name)
    integers = batch.astype("uint8")
    layer = new(name, dtype=dtype)
    outputs = layer(integers)
    assert outputs.dtype.name == ("uint8" if name in TOKENS else layer.compute_dtype)
    exact = new(name, dtype="float64")(batch)
    tolerance = {"float16": 0.15, "bfloat16": 1.01}.get(layer.compute_dtype, 1e-3)
    np.testing.assert_allclose(tf.cast(outputs, tf.float64), exact, atol=tolerance)
    assert layer(integers, training=False).dtype == outputs.dtype


@every_layer
def test_a_model_is_saved_and_loaded_without_custom_objects(name, tmp_path):
    batch = batch_for(name)
    inputs = keras.Input(batch.shape[1:])
    model = keras.Model(inputs, new(name)(inputs))
    model(batch, training=True)  # moves the seed on, which is saved too
    model.save(tmp_path / "model.keras")
    expected = model(batch, training=True)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(batch, training=True), expected)


@every_layer
def test_the_config_is_complete(name):
    batch = batch_for(name)
    layer = new(name, dtype="float64", name="mine")
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(copy(batch), layer(batch))


@every_layer
def test_an_empty_batch_stays_empty(name):
    batch = batch_for(name)[:0]
    assert new(name)(batch).shape == batch.shape


@every_layer
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5, 6)])
def test_another_rank_is_refused_in_eager_code_and_in_a_model(name, shape):
    with pytest.raises(ValueError, match=r"`inputs` must be a batch \(batch, "):
        new(name)(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=r"`inputs` must be a batch \(batch, "):
        new(name)(keras.Input(shape[1:]))


@pytest.mark.slow
def test_a_chain_trains_under_xla_with_several_steps_an_execution():
    chain = keras.Sequential(
        [
            keras.Input((20, 3)),
            layers.RandomTimeCrop(seed=1),
            layers.RandomTimeWarp(seed=6),
            layers.RandomPermutation(seed=2),
            layers.RandomScaling(seed=3),
            layers.RandomJitter(seed=4),
            layers.RandomTimeShift(seed=5),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    chain.compile("sgd", "mse", steps_per_execution=2, jit_compile=True)
    x, y = np.ones((16, 20, 3), "float32"), np.zeros((16, 2), "float32")
    history = chain.fit(x, y, batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    # Four steps an epoch, each drawing once.
    assert int(chain.layers[0].seed_generator.state[1]) == 8


def test_normal_numbers_are_normal_and_the_same_in_every_dtype():
    count = 20_000
    draws = layers.SampleAugmentation.normal([3, 4], [count]).numpy()
    assert np.isfinite(draws).all()
    assert abs(draws.mean()) < 4 / np.sqrt(count) and abs(draws.var() - 1) < 4 * np.sqrt(2 / count)
    assert abs((draws**4).mean() - 3) < 4 * np.sqrt(96 / count)
    # 2.2414 bounds 97.5% of |x|.
    outside = (np.abs(draws) > 2.2414).mean()
    assert abs(outside - 0.025) < 4 * np.sqrt(0.025 / count)
    double = layers.SampleAugmentation.normal([3, 4], [count], "float64")
    np.testing.assert_allclose(double, draws, atol=2e-5)


def test_whole_numbers_are_uniform_and_below_their_count():
    draws = layers.SampleAugmentation.integers([3, 4], [7000], 7).numpy()
    frequencies = np.bincount(draws, minlength=7)
    assert len(frequencies) == 7
    assert np.abs(frequencies - 1000).max() < 4 * np.sqrt(1000 * 6 / 7)
    counts = np.array([[1], [3]])
    draws = layers.SampleAugmentation.integers([3, 4], [2, 500], counts).numpy()
    assert set(draws[0]) == {0} and set(draws[1]) == {0, 1, 2}
    most = 2**24
    assert layers.SampleAugmentation.integers([3, 4], [10**5], most).numpy().max() < most


ROWS = np.random.default_rng(0).integers(2, 90, (8, 20)).astype("float32")
ON_REPLICAS = {
    "SpecAugment": (lambda: layers.SpecAugment(2, 6, 1, 3, seed=3), ROWS[:, :, None] * np.ones(5)),
    "RandomJitter": (lambda: layers.RandomJitter(seed=3), ROWS),
    "TokenDropout": (lambda: layers.TokenDropout(0.3, seed=3), ROWS.astype("int32")),
    "FeatureCorruption": (lambda: layers.FeatureCorruption(seed=3), ROWS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_REPLICAS)
def test_replicas_draw_differently(name, replicas):
    make, batch = ON_REPLICAS[name]
    batch = tf.constant(batch if batch.dtype == "int32" else batch.astype("float32"))

    def made():
        layer = make()
        if name == "FeatureCorruption":
            layer.adapt(-ROWS)
        return layer

    strategy = replicas(2)
    with strategy.scope():
        layer = made()
    run = tf.function(lambda: strategy.run(lambda: layer(batch)))
    first, second = np.array(strategy.experimental_local_results(run()))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, made()(batch), atol=1e-4)  # Replica 0 is one device.
