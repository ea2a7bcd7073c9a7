"""Blur against SciPy, one sigma an image."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from keras_sslmeta.layers import RandomGaussianBlur


def scipy_blur(image, sigma, radius):
    # SciPy calls "mirror" what NumPy and torchvision call "reflect".
    blurred = ndimage.gaussian_filter1d(image, sigma, axis=0, mode="mirror", radius=radius)
    return ndimage.gaussian_filter1d(blurred, sigma, axis=1, mode="mirror", radius=radius)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 6.0])
def test_a_fixed_sigma_equals_scipy(sigma):
    images = np.random.default_rng(0).uniform(0, 255, (3, 20, 26, 3)).astype("float32")
    layer = RandomGaussianBlur(probability=1.0, sigma=(sigma, sigma), kernel_size=9)
    for image, output in zip(images, layer(images), strict=True):
        np.testing.assert_allclose(output, scipy_blur(image, sigma, 4), atol=2e-3)


def sigmas(outputs):
    """Sigma from the impulse responses: two taps along a row have the ratio exp(-1 / 2 sigma²)."""
    ratio = outputs[:, 8, 9, 0] / outputs[:, 8, 8, 0]
    return np.sqrt(-0.5 / np.log(ratio))


def test_each_image_has_its_own_sigma_uniform_in_the_range():
    impulse = np.zeros((4000, 17, 17, 1), "float32")
    impulse[:, 8, 8] = 1.0
    layer = RandomGaussianBlur(probability=1.0, sigma=(0.5, 2.0), kernel_size=7, seed=1)
    drawn = np.sort(sigmas(layer(impulse).numpy()))
    assert drawn[0] >= 0.499 and drawn[-1] <= 2.001
    uniform = np.linspace(0.5, 2.0, 4000)
    assert np.abs(drawn - uniform).max() / 1.5 < 1.95 / np.sqrt(4000)


def test_the_probability_is_that_of_an_image():
    images = np.random.default_rng(0).uniform(size=(2000, 8, 8, 1)).astype("float32")
    layer = RandomGaussianBlur(probability=0.3, sigma=(1.0, 2.0), seed=2)
    untouched = (layer(images).numpy() == images).all(axis=(1, 2, 3))
    assert abs(untouched.mean() - 0.7) < 4 * np.sqrt(0.21 / 2000)


@pytest.mark.parametrize(("side", "taps"), [(224, 23), (96, 9), (32, 3), (8, 3), (2, 3)])
def test_the_default_kernel_is_a_tenth_of_the_side(side, taps):
    impulse = np.zeros((1, side, side, 1), "float32")
    impulse[:, side // 2, side // 2] = 1.0
    wide = RandomGaussianBlur(probability=1.0, sigma=(50.0, 50.0))
    touched = np.count_nonzero(wide(impulse).numpy()[0, side // 2, :, 0] > 1e-6)
    assert touched == min(taps, side)


def test_a_constant_image_stays_constant_up_to_its_borders():
    images = np.full((8, 32, 32, 3), 100.0, "float32")
    outputs = RandomGaussianBlur(probability=1.0, seed=3)(images)
    np.testing.assert_allclose(outputs, images, rtol=1e-5)


def test_an_unknown_size_gives_the_same_as_a_known_one():
    images = np.random.default_rng(0).uniform(size=(4, 40, 60, 3)).astype("float32")
    dynamic = tf.function(
        RandomGaussianBlur(seed=4), input_signature=[tf.TensorSpec([None, None, None, 3])]
    )
    np.testing.assert_allclose(dynamic(images), RandomGaussianBlur(seed=4)(images), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, "`probability` must be a number in"),
        ({"probability": True}, "`probability` must be a number in"),
        ({"sigma": (2.0, 0.1)}, "`sigma` must be a pair"),
        ({"sigma": (0.0, 1.0)}, "`sigma` must be a pair"),
        ({"kernel_size": 4}, "`kernel_size` must be a positive odd integer"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomGaussianBlur(**arguments)


def test_a_kernel_wider_than_the_reflected_image_is_refused():
    with pytest.raises(ValueError, match="`kernel_size` must be less than twice"):
        RandomGaussianBlur(kernel_size=17)(np.zeros((2, 32, 8, 3), "float32"))
