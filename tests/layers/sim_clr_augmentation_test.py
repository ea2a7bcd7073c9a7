"""The composition: which steps run, how often, in which order, and within which range."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers import (
    RandomColorJitter,
    RandomGaussianBlur,
    RandomResizedCrop,
    SimCLRAugmentation,
)

NOTHING = {
    "crop_scale": (1.0, 1.0),
    "strength": 0.0,
    "flip": False,
    "grayscale_probability": 0.0,
    "blur_probability": 0.0,
}
COUNT = 2000


def random_images(count=COUNT, size=(8, 8), channels=3):
    return np.random.default_rng(0).uniform(0, 255, (count, *size, channels)).astype("float32")


def near(fraction, probability, count=COUNT):
    return abs(fraction - probability) <= 4 * np.sqrt(probability * (1 - probability) / count)


def only(**arguments):
    """The layer with the whole image as its crop, so that the steps can be seen."""
    layer = SimCLRAugmentation(8, **{**NOTHING, **arguments}, seed=1)
    layer.crop = RandomResizedCrop(8, 8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    return layer


def test_with_everything_off_images_are_untouched():
    images = random_images(16)
    np.testing.assert_allclose(only()(images), images, atol=1e-3)


def test_half_of_the_images_are_flipped_left_to_right():
    images = random_images()
    outputs = only(flip=True)(images).numpy()
    flipped = np.abs(outputs - images[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-3
    same = np.abs(outputs - images).max(axis=(1, 2, 3)) < 1e-3
    assert (flipped ^ same).all() and near(flipped.mean(), 0.5)


def test_colour_is_jittered_in_the_stated_fraction():
    images = random_images()
    outputs = only(strength=1.0)(images).numpy()
    changed = np.abs(outputs - images).max(axis=(1, 2, 3)) > 1e-2
    assert near(changed.mean(), 0.8)


def test_a_fifth_is_grey():
    outputs = only(grayscale_probability=0.2)(random_images()).numpy()
    grey = np.ptp(outputs, axis=-1).max(axis=(1, 2)) < 1e-3
    assert near(grey.mean(), 0.2)
    expected = random_images() @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(outputs[grey][..., 0], expected[grey], atol=1e-2)


def test_blur_smooths_the_stated_fraction():
    images = random_images()
    outputs = only(blur_probability=0.5)(images).numpy()
    # A sigma below 0.25 on 3 taps changes next to nothing: 0.15 / 1.9 of those blurred.
    changed = np.abs(outputs - images).max(axis=(1, 2, 3)) > 1.0
    assert 0.40 < changed.mean() < 0.53
    assert outputs[changed].std() < images[changed].std()


def test_the_draws_of_the_steps_are_independent():
    images = random_images()
    outputs = only(flip=True, grayscale_probability=0.5)(images).numpy()
    grey = np.ptp(outputs, axis=-1).max(axis=(1, 2)) < 1e-3
    luma = images @ np.array([0.299, 0.587, 0.114])
    flipped = np.abs(outputs @ np.array([0.299, 0.587, 0.114]) - luma[:, :, ::-1]).max((1, 2)) < 1.0
    assert abs(np.corrcoef(grey, flipped)[0, 1]) < 4 / np.sqrt(COUNT)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_parts_have_the_papers_parameters(strength):
    layer = SimCLRAugmentation((224, 192), strength=strength, value_range=(0, 1))
    jitter = RandomColorJitter(
        *(0.8 * strength,) * 3, 0.2 * strength, (0, 1), name="x", seed=0
    ).get_config()
    assert {**layer.color_jitter.get_config(), "name": "x"} == jitter
    crop = RandomResizedCrop(224, 192, (0.08, 1.0), (3 / 4, 4 / 3), name="x", seed=0).get_config()
    assert {**layer.crop.get_config(), "name": "x"} == crop
    blur = RandomGaussianBlur(0.5, (0.1, 2.0), None, name="x", seed=0).get_config()
    assert {**layer.blur.get_config(), "name": "x"} == blur


def test_the_order_is_crop_jitter_grey_blur():
    images = tf.constant(random_images(12, (16, 20)))
    layer = SimCLRAugmentation((8, 8), flip=False, grayscale_probability=0.5, seed=1)
    seed = tf.constant([3, 4], tf.int32)
    seeds = layer.split(seed, 6)
    crop_seed, _, jitter_choice, jitter_seed, gray_choice, blur_seed = seeds

    expected = layer.crop.augment(images, crop_seed)
    jittered = layer.color_jitter.augment(expected, jitter_seed)
    expected = layer.apply_to_some(jitter_choice, 0.8, jittered, expected)
    grey = tf.image.grayscale_to_rgb(
        tf.reduce_sum(expected * [0.299, 0.587, 0.114], axis=-1, keepdims=True)
    )
    expected = layer.apply_to_some(gray_choice, 0.5, grey, expected)
    expected = layer.blur.augment(expected, blur_seed)
    np.testing.assert_allclose(layer.augment(images, seed), expected, atol=1e-2)


@pytest.mark.parametrize("value_range", [(0, 255), (0, 1), (-1, 1)])
def test_values_stay_in_the_range(value_range):
    low, high = value_range
    images = low + random_images(200, (16, 16)) / 255.0 * (high - low)
    outputs = SimCLRAugmentation(8, value_range, seed=1)(images.astype("float32")).numpy()
    assert outputs.min() >= low and outputs.max() <= high
    wild = SimCLRAugmentation(8, value_range, strength=0.0, seed=1)(images * 3.0).numpy()
    assert wild.min() >= low and wild.max() <= high


def test_one_channel_skips_what_only_colour_has():
    images = random_images(64, (12, 12), channels=1)
    outputs = SimCLRAugmentation(8, seed=1)(images)
    assert outputs.shape == (64, 8, 8, 1)
    without = SimCLRAugmentation(8, grayscale_probability=0.0, seed=1)(images)
    np.testing.assert_array_equal(outputs, without)


def test_two_calls_are_two_views():
    images, layer = random_images(32, (16, 16)), SimCLRAugmentation(16, seed=1)
    first, second = layer(images).numpy(), layer(images).numpy()
    assert (np.abs(first - second).max(axis=(1, 2, 3)) > 1.0).mean() > 0.95


def test_no_weights():
    layer = SimCLRAugmentation((8, 8), seed=1)
    layer(random_images(2))
    assert layer.weights == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 1}, "`image_size` must be an integer or a pair"),
        ({"image_size": (32,)}, "`image_size` must be an integer or a pair"),
        ({"image_size": (32, 0)}, "`image_size` must be"),
        ({"image_size": 32.0}, "`image_size` must be"),
        ({"value_range": (1, 0)}, "`value_range` must be a pair"),
        ({"crop_scale": (1.0, 0.1)}, "`crop_scale` must be a pair"),
        ({"crop_scale": (0.1, 2.0)}, "`crop_scale` must be a pair"),
        ({"strength": -1}, "`strength` must be a number in"),
        ({"strength": 3.0}, "`strength` must be a number in"),
        ({"color_jitter_probability": 1.1}, "`color_jitter_probability` must be"),
        ({"grayscale_probability": -0.1}, "`grayscale_probability` must be"),
        ({"blur_probability": "half"}, "`blur_probability` must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimCLRAugmentation(**{"image_size": 8, **arguments})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 32, 32, 2), "1 channel or 3"),
        ((4, 3, 3, 3), "smallest crop"),
        ((2, 2, 32, 32, 3), "one image"),
    ],
)
def test_bad_images_are_refused_in_eager_code_and_in_a_model(shape, message):
    with pytest.raises(ValueError, match=message):
        SimCLRAugmentation(8)(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=message):
        SimCLRAugmentation(8)(keras.Input(shape[1:]))
