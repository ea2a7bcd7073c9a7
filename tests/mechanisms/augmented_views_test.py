import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import augmented_views

IMAGES = tf.constant(np.arange(4 * 6 * 6, dtype="float32").reshape(4, 6, 6, 1))


def test_one_augmentation_draws_for_each_view_and_sample_and_keeps_them_together():
    views = augmented_views.make(
        IMAGES, lambda x: x + 1000 * tf.random.uniform(tf.shape(x)[:1])[:, None, None, None], 3
    )
    assert views.shape == (4, 3, 6, 6, 1)
    shifts = (views - IMAGES[:, None]).numpy()
    assert np.ptp(shifts, axis=(2, 3, 4)).max() < 0.1  # each view is its own sample, shifted
    assert len(np.unique(np.round(shifts[:, :, 0, 0, 0], 3))) == 12


def test_a_list_has_one_augmentation_a_view():
    views = augmented_views.make(
        {"a": IMAGES}, [lambda x: {"a": x["a"]}, lambda x: {"a": -x["a"]}], 2
    )
    np.testing.assert_array_equal(views["a"][:, 0], IMAGES)
    np.testing.assert_array_equal(views["a"][:, 1], -IMAGES)


def test_integers_and_floats_make_floats():
    views = augmented_views.make(tf.constant([[1, 2]]), [tf.identity, lambda x: x / 2], 2)
    assert views.dtype == tf.float64
    np.testing.assert_array_equal(views, [[[1, 2], [0.5, 1]]])


@pytest.mark.parametrize("rows", [None, 4])
def test_rows_that_get_lost_are_refused(rows):
    make = tf.function(
        lambda x: augmented_views.make(x, lambda x: tf.concat([x, x], 0), 2),
        input_signature=[tf.TensorSpec([rows, 6, 6, 1])],
    )
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="keep the batch axis"):
        make(IMAGES)


def test_layers_augment_whatever_the_model_around_is_doing():
    class Outside(keras.layers.Layer):
        def call(self, x, training=None):
            return augmented_views.make(x, keras.layers.RandomTranslation(0.4, 0.4, seed=1), 2)

    views = Outside()(IMAGES, training=False)
    assert not np.array_equal(views[:, 0], views[:, 1])


def test_layers_without_a_training_argument_and_builtins_will_do():
    assert augmented_views.make(IMAGES, keras.layers.Rescaling(2.0), 2).shape == (4, 2, 6, 6, 1)
    assert augmented_views.make(IMAGES, tf.negative, 2).shape == (4, 2, 6, 6, 1)


def test_views_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape.*\(4, 3, 6, 1\)"):
        augmented_views.make(IMAGES, [lambda x: x, lambda x: x[:, :3]], 2)
