"""What every random image layer must do; a new layer adds one row to `LAYERS`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import layers

LAYERS = {
    "crop": lambda **kwargs: layers.RandomResizedCrop(24, 20, **kwargs),
    "blur": lambda **kwargs: layers.RandomGaussianBlur(0.7, kernel_size=5, **kwargs),
    "jitter": lambda **kwargs: layers.RandomColorJitter(0.8, 0.8, 0.8, 0.2, **kwargs),
    "simclr": lambda **kwargs: layers.SimCLRAugmentation((24, 20), **kwargs),
    "moco_v2": lambda **kwargs: layers.MoCoV2Augmentation((24, 20), **kwargs),
    "byol": lambda **kwargs: layers.BYOLAugmentation(
        (24, 20), blur_probability=0.1, solarize_probability=0.2, **kwargs
    ),
    "vic_reg": lambda **kwargs: layers.VICRegAugmentation((24, 20), **kwargs),
    "solarization": lambda **kwargs: layers.RandomSolarization(0.5, **kwargs),
    "apply": lambda **kwargs: layers.RandomApply(
        keras.layers.Rescaling(-1.0, 255.0, dtype=kwargs.get("dtype")), **kwargs
    ),
}
RESIZING = ("crop", "simclr", "moco_v2", "byol", "vic_reg")
every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture
def images():
    """Sixteen copies of one image: outputs that differ come from draws that differ."""
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 28, 3)).astype("float32")
    return np.repeat(image, 16, axis=0)


def output_shape(name, shape):
    return (*shape[:-3], 24, 20, shape[-1]) if name in RESIZING else tuple(shape)


def distinct(outputs):
    return len({np.asarray(output).tobytes() for output in outputs})


@every_layer
def test_images_get_their_own_draws_and_calls_differ(name, images):
    layer = LAYERS[name](seed=3)
    first, second = layer(images).numpy(), layer(images).numpy()
    assert first.shape == output_shape(name, images.shape)
    assert distinct(first) >= (2 if name in ("apply", "solarization") else 5)
    assert not np.array_equal(first, second)


@every_layer
def test_the_seed_fixes_every_call(name, images):
    one, two, other = LAYERS[name](seed=3), LAYERS[name](seed=3), LAYERS[name](seed=4)
    for _ in range(2):
        expected = one(images)
        np.testing.assert_array_equal(two(images), expected)
        assert not np.array_equal(other(images), expected)


@every_layer
def test_set_random_seed_fixes_a_layer_without_a_seed(name, images):
    outputs = []
    for _ in range(2):
        keras.utils.set_random_seed(11)
        outputs.append(LAYERS[name]()(images).numpy())
    np.testing.assert_array_equal(*outputs)


@pytest.mark.first(4)
@every_layer
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_and_xla_equal_eager(name, jit_compile, images):
    eager, compiled = LAYERS[name](seed=3), LAYERS[name](seed=3)
    function = tf.function(compiled, jit_compile=jit_compile)
    for _ in range(2):
        np.testing.assert_allclose(function(images), eager(images), atol=2e-2)  # of 255


@pytest.mark.first(2)
@every_layer
def test_in_tf_data_on_single_images_of_unknown_size_and_on_batches(name, images):
    shape = (None, None, 3)
    singles = tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=tf.TensorSpec(shape, tf.float32)
    )
    mapped = singles.map(LAYERS[name](seed=3))
    assert tuple(mapped.element_spec.shape) == output_shape(name, shape)
    outputs = [output.numpy() for output in mapped]
    assert outputs[0].shape == output_shape(name, images.shape)[1:]
    assert distinct(outputs) >= 2
    batches = tf.data.Dataset.from_tensor_slices(images).batch(5).map(LAYERS[name](seed=3))
    assert tuple(batches.element_spec.shape) == (None, *output_shape(name, (32, 28, 3)))
    assert [len(batch) for batch in batches] == [5, 5, 5, 1]
    again = singles.map(LAYERS[name](seed=3))
    for output, expected in zip(again, outputs, strict=True):
        np.testing.assert_array_equal(output, expected)


@every_layer
def test_a_single_image_is_a_batch_of_one(name, images):
    single, batch = LAYERS[name](seed=3)(images[0]), LAYERS[name](seed=3)(images[:1])
    np.testing.assert_array_equal(single, batch[0])


@every_layer
def test_without_training_images_are_only_resized(name, images):
    layer = LAYERS[name](seed=3)
    outputs = layer(images, training=False)
    if name in RESIZING:
        # 32 x 28 to 24 x 20: the largest centred box of that ratio is 32 x 27.
        expected = tf.image.resize(images[:, :, :27], (24, 20), antialias=True)
        np.testing.assert_allclose(outputs, expected, atol=2e-3)
        fitting = np.array(images[:, :24, :20])
        np.testing.assert_array_equal(layer(fitting, training=False), fitting)
    else:
        np.testing.assert_array_equal(outputs, images)


@every_layer
def test_a_model_augments_in_fit_and_not_in_predict(name, images):
    inputs = keras.Input((32, 28, 3))
    model = keras.Model(inputs, LAYERS[name](seed=3)(inputs))
    assert model.output_shape == (None, *output_shape(name, (32, 28, 3)))
    plain = LAYERS[name](seed=3)(images, training=False)
    np.testing.assert_allclose(model.predict(images, verbose=0), plain, rtol=1e-6, atol=1e-4)
    assert not np.allclose(model(images, training=True), plain)


@every_layer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "mixed_float16"])
def test_integers_become_floats_of_the_compute_dtype_in_the_same_range(name, dtype, images):
    integers = images.astype("uint8")
    layer = LAYERS[name](seed=3, dtype=dtype)
    outputs = layer(integers)
    assert outputs.dtype.name == layer.compute_dtype
    outputs = tf.cast(outputs, tf.float64).numpy()
    assert np.isfinite(outputs).all() and outputs.min() >= -0.5 and 100 < outputs.max() <= 255.5
    exact = LAYERS[name](seed=3, dtype="float32")(integers)
    np.testing.assert_allclose(outputs, exact, atol=1.01 if dtype == "bfloat16" else 0.15)


@every_layer
def test_a_model_is_saved_and_loaded_without_custom_objects(name, images, tmp_path):
    inputs = keras.Input((32, 28, 3))
    model = keras.Model(inputs, LAYERS[name](seed=3)(inputs))
    model(images, training=True)  # moves the seed on, which is saved too
    expected_next = model(images, training=True)
    model.layers[-1].seed_generator.state.assign([3, 1])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images, training=True), expected_next)


@every_layer
def test_the_config_is_complete(name, images):
    layer = LAYERS[name](seed=3, dtype="float64", name="mine")
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(copy(images), layer(images))


@every_layer
def test_an_empty_batch_stays_empty(name, images):
    assert LAYERS[name](seed=3)(images[:0]).shape == output_shape(name, (0, 32, 28, 3))


@every_layer
@pytest.mark.parametrize("shape", [(32, 32), (2, 2, 32, 32, 3)])
def test_another_rank_is_refused(name, shape):
    with pytest.raises(ValueError, match="`images` must be one image"):
        LAYERS[name]()(np.zeros(shape, "float32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.RandomResizedCrop(24, 24, seed=3),
        lambda: layers.RandomGaussianBlur(seed=3),
        lambda: layers.RandomColorJitter(0.8, 0.8, 0.8, 0.2, seed=3),
        lambda: layers.SimCLRAugmentation(24, seed=3),
    ],
    ids=["crop", "blur", "colors", "all"],
)
def test_replicas_draw_differently(make, replicas):
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype("float32")
    images = tf.constant(np.repeat(image, 8, axis=0))
    strategy = replicas(2)
    with strategy.scope():
        layer = make()
    run = tf.function(lambda: strategy.run(lambda: layer(images)))
    results = [np.array(strategy.experimental_local_results(run())) for _ in range(2)]
    alone = make()
    for first, second in results:
        shared = {row.tobytes() for row in first} & {row.tobytes() for row in second}
        untouched = {row.tobytes() for row in images.numpy()}
        assert not np.array_equal(first, second) and shared <= untouched
        np.testing.assert_allclose(first, alone(images), atol=1e-3)  # Replica 0 is one device.
