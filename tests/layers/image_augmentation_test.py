"""A user's own augmentation, and the choice of images."""

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers import ImageAugmentation


class AddNoise(ImageAugmentation):
    def augment(self, images, seed):
        return images + tf.random.stateless_normal(tf.shape(images), seed)


class Halve(ImageAugmentation):
    def augment(self, images, seed):
        return images[:, ::2]


def test_a_subclass_needs_augment_alone():
    layer = AddNoise(seed=1)
    images = np.zeros((2000, 4, 4, 1), "float32")
    outputs = layer(images).numpy()
    assert abs(outputs.mean()) < 0.02 and abs(outputs.std() - 1.0) < 0.02
    np.testing.assert_array_equal(layer(images, training=False), images)


def test_augment_is_required():
    with pytest.raises(TypeError, match="augment"):
        ImageAugmentation()


def test_a_shape_that_was_not_declared_is_refused():
    with pytest.raises(ValueError, match="shape"):
        tf.function(Halve())(np.zeros((2, 8, 8, 1), "float32"))


SEEDS = ([1, 2], [-1197927508, 0], [5, -9], [-5, -9])  # XLA would differ on the negative ones


@pytest.mark.first(1)
@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_is_uniform_and_the_same_under_xla_and_in_every_dtype(seed):
    count, low, high = 5000, -1.5, 0.5
    seed = tf.constant(seed, tf.int32)
    expected = ImageAugmentation.uniform(seed, [count], low, high).numpy()
    grid = np.linspace(low, high, count)
    assert np.abs(np.sort(expected) - grid).max() / (high - low) < 1.95 / np.sqrt(count)

    @tf.function(jit_compile=True)
    def draw(seed):
        single, double = (
            ImageAugmentation.uniform(seed, [count], low, high, dtype)
            for dtype in ("float32", "float64")
        )
        return single, double, ImageAugmentation.uniform(seed, [50, 100], low, high)

    for actual in draw(seed):
        np.testing.assert_allclose(np.ravel(actual), expected, atol=2e-7)


@pytest.mark.first(1)
@pytest.mark.parametrize("seed", SEEDS)
def test_split_seeds_are_independent_and_the_same_under_xla(seed):
    def draws(seed):
        return tf.stack([AddNoise.uniform(part, [5000]) for part in AddNoise.split(seed, 4)])

    seed = tf.constant(seed, tf.int32)
    eager = draws(seed).numpy()
    np.testing.assert_allclose(tf.function(draws, jit_compile=True)(seed), eager, atol=2e-7)
    correlation = np.corrcoef(eager)
    assert np.abs(correlation[~np.eye(4, dtype=bool)]).max() < 4 / np.sqrt(5000)


def test_uniform_never_reaches_its_end():
    draws = ImageAugmentation.uniform([3, 4], [10**6]).numpy()
    assert draws.min() >= 0.0 and draws.max() < 1.0


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_apply_to_some_takes_whole_images_with_the_probability(probability):
    images = tf.zeros((4000, 2, 3, 1))
    chosen = AddNoise.apply_to_some([1, 2], probability, images + 1.0, images).numpy()
    per_image = chosen.reshape(4000, -1)
    assert (per_image == per_image[:, :1]).all()
    four_sigma = 4 * np.sqrt(probability * (1 - probability) / 4000)
    assert abs(per_image[:, 0].mean() - probability) <= four_sigma
