"""Boxes against torchvision's loop written out in NumPy, pixels against crop-then-resize."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers import RandomResizedCrop


def torchvision_box(generator, height, width, scale, ratio):
    """The algorithm that torchvision documents, one image at a time."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = generator.integers(0, height - h + 1)
            return top, generator.integers(0, width - w + 1), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def draw(layer, count, height, width, seed=(1, 2)):
    boxes = layer.draw_boxes(tf.constant(seed, tf.int32), count, height, width)
    return np.stack([edge.numpy() for edge in boxes], axis=1).astype("float64")


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (8, 8, (0.08, 1.0), (3 / 4, 4 / 3)),
        (60, 20, (0.3, 1.0), (3 / 4, 4 / 3)),  # few draws fit, so the number of tries shows
        (48, 64, (0.2, 0.4), (0.3, 2.0)),
    ],
)
def test_boxes_have_torchvisions_distribution(height, width, scale, ratio):
    count = 6000
    layer = RandomResizedCrop(16, 16, scale, ratio)
    actual = draw(layer, count, height, width)
    generator = np.random.default_rng(0)
    expected = np.array(
        [torchvision_box(generator, height, width, scale, ratio) for _ in range(count)]
    )
    bound = 1.95 * math.sqrt(2 / count)  # Kolmogorov-Smirnov, 1 in 1000
    area = [boxes[:, 2] * boxes[:, 3] for boxes in (actual, expected)]
    aspect = [boxes[:, 3] / boxes[:, 2] for boxes in (actual, expected)]
    pairs = [area, aspect, *zip(actual.T, expected.T, strict=True)]
    for ours, theirs in pairs:
        grid = np.unique(np.concatenate([ours, theirs]))
        ours, theirs = np.sort(ours), np.sort(theirs)
        gap = np.searchsorted(ours, grid, "right") - np.searchsorted(theirs, grid, "right")
        assert np.abs(gap).max() / count < bound
    top, left, box_height, box_width = actual.T
    assert (actual == np.round(actual)).all() and (actual[:, 2:] >= 1).all()
    assert (top >= 0).all() and (top + box_height <= height).all()
    assert (left >= 0).all() and (left + box_width <= width).all()


def test_area_aspect_row_and_column_are_drawn_independently():
    top, left, height, width = draw(RandomResizedCrop(8, 8, (0.1, 0.3)), 4000, 500, 500).T
    draws = [height * width, width / height, top / (500 - height), left / (500 - width)]
    correlation = np.corrcoef(draws)
    assert np.abs(correlation[~np.eye(4, dtype=bool)]).max() < 4 / np.sqrt(4000)


@pytest.mark.parametrize("size", [(100, 10), (10, 100), (16, 17)])
def test_what_never_fits_falls_back_to_the_centre(size):
    scale = (1.0, 1.0)
    ratio = (3 / 4, 4 / 3) if size != (16, 17) else (1.5, 1.6)
    boxes = draw(RandomResizedCrop(16, 16, scale, ratio), 50, *size)
    expected = torchvision_box(np.random.default_rng(0), *size, scale, ratio)
    np.testing.assert_array_equal(boxes, [expected] * 50)


@pytest.mark.parametrize("antialias", [True, False])
def test_pixels_are_the_drawn_box_resized(antialias):
    layer = RandomResizedCrop(12, 9, antialias=antialias)
    images = np.random.default_rng(0).uniform(0, 255, (6, 30, 40, 3)).astype("float32")
    boxes = draw(layer, 6, 30, 40, seed=(5, 6)).astype(int)
    actual = layer.augment(tf.constant(images), tf.constant([5, 6], tf.int32))
    for image, (top, left, height, width), output in zip(images, boxes, actual, strict=True):
        box = image[top : top + height, left : left + width]
        expected = tf.image.resize(box, (12, 9), antialias=antialias)
        np.testing.assert_allclose(output, expected, atol=2e-3)


def test_the_gradient_is_that_of_a_linear_map():
    layer = RandomResizedCrop(8, 8)
    images = tf.random.stateless_uniform((3, 16, 16, 1), [0, 1])
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(layer.augment(images, tf.constant([1, 2])))
    gradient = tape.gradient(total, images)
    np.testing.assert_allclose(tf.reduce_sum(gradient * images), total, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0}, "`height` must be an integer of at least 2"),
        ({"width": 8.5}, "`width` must be an integer"),
        ({"scale": (0.9, 0.1)}, "`scale` must be a pair of positive numbers"),
        ({"scale": (0.0, 1.0)}, "`scale` must be a pair of positive numbers"),
        ({"scale": (0.5, 1.5)}, "of at most 1"),
        ({"scale": 0.5}, "`scale` must be a pair"),
        ({"ratio": (4 / 3, 3 / 4)}, "`ratio` must be a pair"),
        ({"ratio": (-1.0, 1.0)}, "`ratio` must be a pair"),
        ({"ratio": (float("nan"), 1.0)}, "`ratio` must be a pair"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**{"height": 8, "width": 8, **arguments})


@pytest.mark.parametrize("shape", [(4, 3, 3, 1), (4, 1, 32, 3), (32, 1, 3)])
def test_images_too_small_for_the_crop_are_refused(shape):
    with pytest.raises(ValueError, match="smallest crop"):
        RandomResizedCrop(8, 8)(np.zeros(shape, "float32"))


def test_small_images_are_taken_where_the_crop_allows():
    assert RandomResizedCrop(8, 8, scale=(0.5, 1.0))(np.zeros((4, 3, 3, 1))).shape == (4, 8, 8, 1)
