import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import view_axis


def test_merge_and_split_are_inverse_and_keep_samples_together():
    x = np.arange(24.0).reshape(4, 2, 3)
    merged = view_axis.merge(tf.constant(x))
    np.testing.assert_array_equal(merged, x.reshape(8, 3))
    np.testing.assert_array_equal(view_axis.split(merged, 2), x)


def test_structures_unknown_batches_and_empty_shares():
    @tf.function(
        input_signature=[{"a": tf.TensorSpec([None, 2, 3]), "b": tf.TensorSpec([None, 2])}]
    )
    def there_and_back(x):
        merged = view_axis.merge(x)
        assert merged["a"].shape.as_list() == [None, 3]
        return view_axis.split(merged, view_axis.count(x))

    for batch in (0, 5):
        back = there_and_back({"a": tf.ones([batch, 2, 3]), "b": tf.ones([batch, 2])})
        assert back["a"].shape == (batch, 2, 3) and back["b"].shape == (batch, 2)


def test_views_must_be_countable():
    with pytest.raises(ValueError, match="second axis"):
        view_axis.count([tf.ones([4, 2, 3]), tf.ones([4, 3, 3])])
    with pytest.raises(ValueError, match="second axis"):
        view_axis.count(tf.ones([4]))
