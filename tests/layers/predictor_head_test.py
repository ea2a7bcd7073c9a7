import numpy as np
import pytest

from keras_sslmeta.layers import PredictorHead


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({}, [(5, 8), (8,), (8,), (8, 5), (5,)]),
        ({"output_bias": False}, [(5, 8), (8,), (8,), (8, 5)]),
        ({"output_normalization": "plain"}, [(5, 8), (8,), (8,), (8, 5)]),
        ({"batch_normalization": False}, [(5, 8), (8,), (8, 5), (5,)]),
    ],
    ids=str,
)
def test_gives_as_many_dimensions_as_it_gets(settings, shapes):
    head = PredictorHead(8, **settings)
    x = np.random.default_rng(0).normal(size=(6, 2, 5)).astype("float32")
    assert head(x).shape == x.shape == head.compute_output_shape(x.shape)
    assert [tuple(w.shape) for w in head.trainable_variables] == shapes
    copy = PredictorHead.from_config(head.get_config())
    copy.build(x.shape)
    copy.set_weights(head.get_weights())
    np.testing.assert_array_equal(copy(x), head(x))


def test_by_hand():
    head = PredictorHead(8, batch_normalization=False)
    x = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    outputs = head(x)
    a, b, c, d = head.get_weights()
    np.testing.assert_allclose(outputs, np.maximum(x @ a + b, 0) @ c + d, rtol=1e-4, atol=1e-6)


def test_refused():
    with pytest.raises(ValueError, match="`hidden_dim` must"):
        PredictorHead(0)
    with pytest.raises(ValueError, match="`output_normalization` must"):
        PredictorHead(8, output_normalization="none")
