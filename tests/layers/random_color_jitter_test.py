"""Against Pillow's ImageEnhance (which torchvision's ColorJitter calls) and colorsys."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance

from keras_sslmeta.layers import RandomColorJitter
from keras_sslmeta.layers.random_color_jitter import turn_hue

COUNT = 1000


def random_images(count, low, high, channels=3):
    shape = (count, 6, 7, channels)
    return np.random.default_rng(0).integers(low, high, shape).astype("float32")


def luma(images):
    return images @ np.array([[0.299], [0.587], [0.114]])


BASE = {
    "brightness": np.zeros_like,
    "contrast": lambda images: luma(images).mean(axis=(1, 2, 3), keepdims=True),
    "saturation": luma,
}
ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def factors(step, images, outputs):
    """The factor of `f · image + (1 - f) · base` in each image, by least squares."""
    base = BASE[step](images)
    away = (images - base).reshape(len(images), -1)
    return ((outputs - base).reshape(len(images), -1) * away).sum(1) / (away**2).sum(1)


@pytest.mark.parametrize("step", BASE)
def test_factors_are_uniform_and_each_images_own(step):
    images = random_images(COUNT, 100, 126)  # no clipping at these
    outputs = RandomColorJitter(**{step: 0.8}, seed=1)(images).numpy()
    found = factors(step, images, outputs)
    rebuilt = found.reshape(-1, 1, 1, 1) * (images - BASE[step](images)) + BASE[step](images)
    np.testing.assert_allclose(outputs, rebuilt, atol=1e-2)
    uniform = np.linspace(0.2, 1.8, COUNT)
    assert np.abs(np.sort(found) - uniform).max() / 1.6 < 1.95 / np.sqrt(COUNT)


def test_the_steps_are_drawn_independently_and_in_order():
    images = random_images(COUNT, 100, 126)
    strengths = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    outputs, found = images, []
    for step, strength in strengths.items():  # the same seed draws each step's factor again
        alone = RandomColorJitter(**{step: strength}, seed=1)(images).numpy()
        found.append(factors(step, images, alone))
        base = BASE[step](outputs)
        outputs = found[-1].reshape(-1, 1, 1, 1) * (outputs - base) + base
    np.testing.assert_allclose(RandomColorJitter(**strengths, seed=1)(images), outputs, atol=2e-2)
    correlation = np.corrcoef(found)
    assert np.abs(correlation[~np.eye(3, dtype=bool)]).max() < 4 / np.sqrt(COUNT)


@pytest.mark.parametrize("step", BASE)
def test_each_step_is_pillows_with_clipping(step):
    calm, wild = random_images(20, 100, 126), random_images(20, 0, 256)
    found = factors(step, calm, RandomColorJitter(**{step: 0.8}, seed=2)(calm).numpy())
    outputs = RandomColorJitter(**{step: 0.8}, seed=2)(wild).numpy()
    assert outputs.min() >= 0.0 and outputs.max() <= 255.0
    assert np.isin(outputs, (0.0, 255.0)).mean() > np.isin(wild, (0.0, 255.0)).mean()
    for image, factor, output in zip(wild, found, outputs, strict=True):
        pillow = ENHANCE[step](Image.fromarray(image.astype("uint8"))).enhance(float(factor))
        np.testing.assert_allclose(output, np.asarray(pillow, "float32"), atol=2.0)


def test_a_strength_above_one_never_turns_an_image_negative():
    images = random_images(COUNT, 40, 60)
    outputs = RandomColorJitter(brightness=1.5, seed=1)(images).numpy()
    found = factors("brightness", images, outputs)
    uniform = np.linspace(0.0, 2.5, COUNT)  # not clipped from [-0.5, 2.5], which would heap at 0
    assert np.abs(np.sort(found) - uniform).max() / 2.5 < 1.95 / np.sqrt(COUNT)


def test_turn_hue_equals_colorsys():
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(6, 5, 5, 3))
    images[0, 0] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 1, 0], [0.2, 0.7, 0.7]]
    turns = np.array([0.0, 0.5, -0.5, 0.2, -0.13, 0.37])
    planes = tf.constant(np.transpose(images, (0, 3, 1, 2)))
    outputs = np.transpose(turn_hue(planes, turns.reshape(-1, 1, 1, 1)), (0, 2, 3, 1))
    for image, turn, output in zip(images, turns, outputs, strict=True):
        for pixel, actual in zip(image.reshape(-1, 3), output.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
            np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_hue_turns_are_uniform_and_each_images_own():
    images = np.zeros((COUNT, 2, 2, 3), "float32") + [200.0, 100.0, 50.0]
    outputs = RandomColorJitter(hue=0.2, seed=1)(images).numpy() / 255.0
    before = colorsys.rgb_to_hsv(200 / 255, 100 / 255, 50 / 255)[0]
    turns = [(colorsys.rgb_to_hsv(*output[0, 0])[0] - before + 0.5) % 1 - 0.5 for output in outputs]
    uniform = np.linspace(-0.2, 0.2, COUNT)
    assert np.abs(np.sort(turns) - uniform).max() / 0.4 < 1.95 / np.sqrt(COUNT)


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1)])
def test_the_range_of_values_only_scales(value_range):
    low, high = value_range
    images = random_images(16, 0, 256)
    expected = RandomColorJitter(0.8, 0.8, 0.8, 0.2, seed=1)(images).numpy()
    layer = RandomColorJitter(0.8, 0.8, 0.8, 0.2, value_range=value_range, seed=1)
    scaled = layer(low + images / 255.0 * (high - low)).numpy()
    np.testing.assert_allclose((scaled - low) / (high - low) * 255.0, expected, atol=5e-3)


def test_one_channel_has_brightness_and_contrast_alone():
    images = random_images(8, 0, 256, channels=1)
    changed = RandomColorJitter(brightness=0.8, contrast=0.8, seed=1)(images)
    assert changed.shape == images.shape and not np.allclose(changed, images)
    color_too = RandomColorJitter(0.8, 0.8, 0.8, 0.2, seed=1)(images)
    np.testing.assert_array_equal(color_too, changed)
    np.testing.assert_array_equal(RandomColorJitter(saturation=0.8, hue=0.2)(images), images)


def test_half_precision_does_not_overflow_in_the_mean():
    images = np.full((2, 64, 64, 3), 200.0, "float32")  # sums far above 65504
    outputs = RandomColorJitter(contrast=0.8, dtype="float16")(images)
    np.testing.assert_allclose(outputs, images, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness": -0.1}, "`brightness` must be a number of at least 0"),
        ({"contrast": "strong"}, "`contrast` must be a number"),
        ({"saturation": float("inf")}, "`saturation` must be a number"),
        ({"hue": 0.6}, "`hue` must be a number in"),
        ({"value_range": (255, 0)}, "`value_range` must be a pair"),
        ({"value_range": (1, 1)}, "`value_range` must be a pair"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomColorJitter(**arguments)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(channels):
    with pytest.raises(ValueError, match="`images` must have 1 channel or 3"):
        RandomColorJitter(brightness=0.5)(np.zeros((2, 8, 8, channels), "float32"))
