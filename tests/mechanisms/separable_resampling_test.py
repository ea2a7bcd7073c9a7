"""Against `tf.image.resize` on cut-out boxes and a padded NumPy convolution."""

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import separable_resampling


def random_images(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(dtype)


def resize(images, boxes, out_size, antialias, mirrored=None):
    """Resizes box (top, left, height, width) of each image."""
    boxes = tf.constant(np.array(boxes).T, images.dtype)
    top, left, height, width = tf.unstack(boxes)
    rows = separable_resampling.resize_operator(
        top, height, images.shape[1], out_size[0], antialias
    )
    columns = separable_resampling.resize_operator(
        left, width, images.shape[2], out_size[1], antialias, mirrored
    )
    planes = separable_resampling.resample(np.transpose(images, (0, 3, 1, 2)), rows, columns)
    return np.transpose(planes, (0, 2, 3, 1))


BOXES = [(0, 0, 17, 23), (3, 5, 9, 14), (0, 20, 5, 3), (16, 22, 1, 1), (12, 0, 5, 23)]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("out_size", [(17, 23), (6, 7), (40, 31), (2, 30)])
def test_a_box_is_cut_out_and_resized_as_tf_image_does(out_size, antialias):
    images = random_images((len(BOXES), 17, 23, 3))
    actual = resize(images, BOXES, out_size, antialias)
    for image, (top, left, height, width), output in zip(images, BOXES, actual, strict=True):
        box = image[top : top + height, left : left + width]
        expected = tf.image.resize(box, out_size, "bilinear", antialias=antialias)
        np.testing.assert_allclose(output, expected, atol=2e-3)  # of 255


def test_nothing_is_read_from_outside_the_box():
    images = random_images((1, 17, 23, 3))
    painted = images.copy()
    painted[:, :3], painted[:, 12:], painted[:, :, :5], painted[:, :, 19:] = -900, -900, 900, 900
    box = [(3, 5, 9, 14)]
    np.testing.assert_array_equal(
        resize(images, box, (6, 6), True), resize(painted, box, (6, 6), True)
    )


def test_mirrored_boxes_are_flipped_and_the_others_are_not():
    images = random_images((3, 16, 16, 3))
    boxes = [(2, 3, 10, 9), (2, 3, 10, 9), (0, 0, 16, 16)]
    plain = resize(images, boxes, (8, 8), True)
    mirrored = resize(images, boxes, (8, 8), True, tf.constant([True, False, True]))
    np.testing.assert_allclose(mirrored[0], plain[0, :, ::-1], atol=1e-3)
    np.testing.assert_allclose(mirrored[1], plain[1], atol=1e-3)
    np.testing.assert_allclose(mirrored[2], plain[2, :, ::-1], atol=1e-3)


def test_float64_is_exact_on_a_linear_ramp():
    ramp = np.tile(np.arange(32.0)[None, None, :, None], (1, 32, 1, 1))
    output = resize(ramp, [(0, 0, 32, 32)], (8, 8), True)
    # Each output pixel averages symmetrically about its centre, away from the borders.
    np.testing.assert_allclose(output[0, 3, 1:-1, 0], (np.arange(8) * 4 + 1.5)[1:-1], rtol=1e-14)


def blur_oracle(image, sigma, radius):
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    pad = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    height, width, _ = image.shape
    rows = sum(w * pad[k : k + height] for k, w in enumerate(kernel))
    return sum(w * rows[:, k : k + width] for k, w in enumerate(kernel))


@pytest.mark.parametrize("radius", [0, 1, 3, 8])
def test_blur_is_a_reflected_convolution(radius):
    images = random_images((3, 9, 14, 3), "float64")
    sigma = np.array([0.1, 1.0, 2.5])
    rows = separable_resampling.blur_operator(tf.constant(sigma), radius, 9)
    columns = separable_resampling.blur_operator(tf.constant(sigma), radius, 14)
    planes = separable_resampling.resample(np.transpose(images, (0, 3, 1, 2)), rows, columns)
    for image, width, output in zip(images, sigma, np.transpose(planes, (0, 2, 3, 1)), strict=True):
        np.testing.assert_allclose(output, blur_oracle(image, width, radius), rtol=1e-10)


def test_sizes_may_be_unknown_until_the_graph_runs():
    images = random_images((2, 11, 13, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
    def blur(images):
        planes = tf.transpose(images, [0, 3, 1, 2])
        shape = tf.shape(planes)
        sigma = tf.ones(shape[:1])
        rows = separable_resampling.blur_operator(sigma, tf.minimum(2, shape[2] - 1), shape[2])
        columns = separable_resampling.blur_operator(sigma, tf.minimum(2, shape[3] - 1), shape[3])
        return tf.transpose(separable_resampling.resample(planes, rows, columns), [0, 2, 3, 1])

    for image, output in zip(images, blur(images), strict=True):
        np.testing.assert_allclose(output, blur_oracle(image, 1.0, 2), rtol=1e-4)
