import keras
import numpy as np
import pytest

from keras_sslmeta.layers import ProjectionHead


def test_the_papers_head():
    head = ProjectionHead()
    x = np.random.default_rng(0).normal(size=(4, 2, 16)).astype("float32")
    first, second = [block for block in (head(x), head.blocks)[1] if hasattr(block, "kernel")]
    assert first.kernel.shape == (16, 16) and second.kernel.shape == (16, 128)
    hidden = np.maximum(x @ first.kernel.numpy() + first.bias.numpy(), 0)
    np.testing.assert_allclose(
        head(x), hidden @ second.kernel.numpy() + second.bias.numpy(), rtol=1e-4, atol=1e-5
    )


def test_deeper_with_batch_normalisation():
    head = ProjectionHead(8, hidden_dim=32, hidden_layers=2, batch_normalization=True)
    x = np.random.default_rng(0).normal(size=(64, 2, 16)).astype("float32")
    z = head(x, training=True).numpy().reshape(-1, 8)
    # The last layer is normalised too, over samples and views together.
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-2)
    norms = [b for b in head.blocks if isinstance(b, keras.layers.BatchNormalization)]
    assert len(norms) == 3 and all(norm.synchronized for norm in norms)
    assert all(not b.use_bias for b in head.blocks if hasattr(b, "use_bias"))


def test_config_and_dtype_policy():
    head = ProjectionHead(8, hidden_dim=4, hidden_layers=0, dtype="mixed_bfloat16")
    again = ProjectionHead.from_config(head.get_config())
    assert again.get_config() == head.get_config()
    assert again(np.ones((2, 3), "float32")).dtype == "bfloat16"


@pytest.mark.parametrize(
    "bad", [{"output_dim": 0}, {"hidden_dim": 1.5}, {"hidden_layers": -1}, {"output_dim": True}]
)
def test_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        ProjectionHead(**bad)


@pytest.mark.parametrize("normalization", [None, True, False, "plain"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer(normalization, bias):
    """Dense layers have a bias where nothing normalises them, and "plain" statistics no scale and shift."""
    head = ProjectionHead(
        3, 4, batch_normalization=True, output_normalization=normalization, output_bias=bias
    )
    head.build((None, 5))
    shapes = [tuple(w.shape) for w in head.trainable_variables]
    first = [(5, 4), (4,), (4,), (4, 3)]
    last = {None: [(3,), (3,)], True: [(3,), (3,)], "plain": [], False: [(3,)] if bias else []}
    assert shapes == first + last[normalization]
    copy = ProjectionHead.from_config(head.get_config())
    copy.build((None, 5))
    assert [tuple(w.shape) for w in copy.trainable_variables] == shapes


def test_refused_normalization():
    with pytest.raises(ValueError, match=r"`output_normalization` must .* 'batch'"):
        ProjectionHead(output_normalization="batch")
