"""Dropped tokens: how many, which never, and what comes in their place."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.layers import TokenDropout

COUNT = 4000
MASK = 99


def texts(lengths, time=8):
    """Tokens 10, 11, … of each length, then padding."""
    position = np.arange(time)
    return np.where(position < np.asarray(lengths)[:, None], 10 + position, 0)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_each_token_goes_with_the_stated_probability(rate, length):
    outputs = TokenDropout(rate, MASK, seed=1)(texts([length] * COUNT)).numpy()
    dropped = outputs[:, :length] == MASK
    expected = rate - rate**length / length
    assert np.abs(dropped.mean(axis=0) - expected).max() <= 4.5 * np.sqrt(
        expected * (1 - expected) / COUNT
    )
    assert (outputs[:, length:] == 0).all() and (~dropped).any(axis=1).all()


def test_tokens_go_independently():
    dropped = TokenDropout(0.3, MASK, seed=1)(texts([8] * COUNT)).numpy() == MASK
    correlation = np.corrcoef(dropped.T)[~np.eye(8, dtype=bool)]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(COUNT)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "float32"])
def test_deleting_closes_the_gaps_that_masking_shows(dtype):
    tokens = texts(np.arange(200) % 9).astype(dtype)
    masked = TokenDropout(0.5, MASK, seed=1)(tokens).numpy()
    deleted = TokenDropout(0.5, seed=1)(tokens).numpy()
    assert masked.dtype == deleted.dtype == tokens.dtype
    for before, row, after in zip(tokens, masked, deleted, strict=True):
        np.testing.assert_array_equal(row[row != MASK], before[row != MASK])
        kept = row[row != MASK]
        np.testing.assert_array_equal(after[: len(kept)], kept)
        assert (after[len(kept) :] == 0).all()
        assert (before == 0).all() or (after != 0).any()


def test_kept_tokens_and_a_padding_of_ones_own():
    tokens = np.array([[7, 1, 2, 3, 8, 5, 5]] * 300)
    outputs = TokenDropout(0.9, MASK, pad_token=5, keep_tokens=[7, 8], seed=1)(tokens).numpy()
    np.testing.assert_array_equal(outputs[:, [0, 4, 5, 6]], tokens[:, [0, 4, 5, 6]])
    assert ((outputs[:, 1:4] != MASK).sum(axis=1) >= 1).all()
    outputs = TokenDropout(1.0, pad_token=5, keep_tokens=[7, 8], seed=1)(tokens).numpy()
    assert (outputs[:, 0] == 7).all() and (outputs[:, 2] == 8).all()
    assert set(outputs[:, 1]) == {1, 2, 3} and (outputs[:, 3:] == 5).all()


def test_without_padding_every_token_may_go():
    outputs = TokenDropout(0.5, MASK, pad_token=None, seed=1)(np.zeros((500, 4), int)).numpy()
    assert set(np.unique(outputs)) == {0, MASK}


def test_large_tokens_survive_mixed_precision():
    tokens = np.full((4, 6), 30_001.0, "float32")
    outputs = TokenDropout(0.5, MASK, dtype="mixed_float16", seed=1)(tokens).numpy()
    assert set(np.unique(outputs)) == {30_001.0, float(MASK)}


def test_a_symbolic_call_keeps_the_dtype():
    inputs = keras.Input((6,), dtype="int32")
    outputs = TokenDropout(0.5)(inputs)
    assert outputs.shape == (None, 6) and outputs.dtype == "int32"


def test_sim_clr_trains_on_texts():
    encoder = keras.Sequential(
        [
            keras.Input((8,), dtype="int32"),
            keras.layers.Embedding(20, 4),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    model = ksm.SimCLR(encoder, augmentation=TokenDropout(0.3, seed=1))
    model.compile("sgd")
    history = model.fit(texts([8] * 16).astype("int32"), batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_in_tf_data_with_its_own_dtype():
    tokens = tf.data.Dataset.from_tensors(texts([8] * 4)).map(TokenDropout(0.3, seed=1))
    assert tokens.element_spec == tf.TensorSpec((4, 8), tf.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.5}, "`rate` must be a number in"),
        ({"mask_token": 1.5}, "`mask_token` must be an integer or None. Received: mask_token=1.5"),
        ({"pad_token": "x"}, "`pad_token` must be an integer or None"),
        ({"keep_tokens": [None]}, "`keep_tokens` must be integers"),
        ({"pad_token": None}, "`pad_token` must be an integer where tokens are deleted"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenDropout(**{"rate": 0.1, **arguments})
