"""Solarisation, against Pillow's."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_sslmeta.layers import RandomSolarization

BYTES = np.arange(256, dtype="uint8").reshape(16, 16)


def test_bytes_become_what_pillow_makes_of_them():
    expected = np.asarray(ImageOps.solarize(Image.fromarray(BYTES)))
    outputs = RandomSolarization(1.0)(BYTES[..., None]).numpy()[..., 0]
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 1.0])
def test_another_threshold(threshold):
    expected = np.where(np.less(BYTES, 255 * threshold), BYTES, 255 - BYTES)
    outputs = RandomSolarization(1.0, threshold)(BYTES[..., None]).numpy()[..., 0]
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (10.0, 14.0)])
def test_another_range(low, high):
    images = (low + (high - low) * BYTES[..., None] / 255.0).astype("float32")
    outputs = RandomSolarization(1.0, value_range=(low, high))(images).numpy()[..., 0]
    expected = np.where(BYTES < 128, BYTES, 255 - BYTES) / 255.0 * (high - low) + low
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_whole_images_with_the_probability(probability):
    images = np.full((3000, 2, 2, 3), 250.0, "float32")
    outputs = RandomSolarization(probability, seed=1)(images).numpy().reshape(3000, -1)
    assert (outputs == outputs[:, :1]).all()
    four_sigma = 4 * np.sqrt(probability * (1 - probability) / 3000)
    assert abs((outputs[:, 0] == 5.0).mean() - probability) <= four_sigma


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 2.0}, "`probability` must be a number in"),
        ({"threshold": 128}, "`threshold` must be a number in"),
        ({"value_range": (1, 0)}, "`value_range` must be a pair"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomSolarization(**arguments)
