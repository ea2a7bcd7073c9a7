"""Corrupted features: how many, and where their values come from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.layers import FeatureCorruption


def table(rows, features, start=0.0):
    """Every value tells its row and its feature: `start + 100 · row + feature`."""
    return (start + 100.0 * np.arange(rows)[:, None] + np.arange(features)).astype("float32")


@pytest.mark.parametrize(
    ("rate", "features", "corrupted"),
    [(0.6, 5, 3), (0.6, 7, 4), (0.29, 100, 29), (0.0, 5, 0), (1.0, 5, 5), (0.6, 1, 0)],
)
def test_each_row_has_so_many_corrupted_features(rate, features, corrupted):
    rows = table(40, features)
    outputs = FeatureCorruption(rate, seed=1)(rows).numpy()
    np.testing.assert_array_equal((outputs != rows).sum(axis=1), corrupted)


def test_every_subset_of_features_is_as_likely():
    rows = table(6000, 4)
    changed = FeatureCorruption(0.5, seed=1)(rows).numpy() != rows
    counts = np.bincount(changed @ [1, 2, 4, 8], minlength=16)
    assert (counts > 0).sum() == 6  # of two features of four
    assert np.abs(counts[counts > 0] - 1000).max() < 4.5 * np.sqrt(1000 * 5 / 6)


def test_values_are_those_of_the_same_feature_in_every_other_row():
    rows, count, drawn = table(5, 3), 2000, np.zeros((5, 3, 5))
    layer = tf.function(FeatureCorruption(1.0, seed=1))
    for _ in range(count):
        outputs = layer(rows).numpy()
        origin, feature = np.divmod(outputs.astype(int), 100)
        assert (feature == np.arange(3)).all()
        drawn += origin[..., None] == np.arange(5)
    assert (drawn[np.arange(5), :, np.arange(5)] == 0).all()
    others = drawn[np.broadcast_to(~np.eye(5, dtype=bool)[:, None], (5, 3, 5))] / count
    assert np.abs(others - 1 / 4).max() < 4.5 * np.sqrt(3 / 16 / count)


def test_features_of_a_row_come_from_rows_of_their_own():
    outputs = FeatureCorruption(1.0, seed=1)(table(3000, 2)).numpy()
    origin = (outputs // 100).astype(int)
    assert (origin[:, 0] == origin[:, 1]).mean() < 0.01
    assert abs(np.corrcoef(origin.T)[0, 1]) < 4 / np.sqrt(3000)


@pytest.mark.parametrize("as_dataset", [False, True])
def test_after_adapt_values_are_those_of_the_reference(as_dataset):
    reference, rows = table(7, 3, start=10_000.0), table(3500, 3)
    layer = FeatureCorruption(1.0, seed=1)
    data = tf.data.Dataset.from_tensor_slices(reference).batch(3) if as_dataset else reference
    layer.adapt(data)
    origin, feature = np.divmod(layer(rows).numpy().astype(int) - 10_000, 100)
    assert (feature == np.arange(3)).all()
    for column in origin.T:
        counts = np.bincount(column, minlength=7)
        assert len(counts) == 7 and np.abs(counts - 500).max() < 4.5 * np.sqrt(500 * 6 / 7)
    assert layer.trainable_weights == []
    # A batch of one has a reference to draw from.
    assert (layer(rows[:1]).numpy() >= 10_000).all()


def test_a_batch_of_one_row_has_no_others():
    np.testing.assert_array_equal(FeatureCorruption(1.0)(table(1, 4)), table(1, 4))


def test_the_reference_may_be_changed_for_as_many_rows():
    layer = FeatureCorruption(1.0, seed=1)
    layer.adapt(table(7, 3))
    function = tf.function(layer)
    function(table(2, 3))
    layer.adapt(table(7, 3, start=10_000.0))
    assert (function(table(2, 3)).numpy() >= 10_000).all()
    with pytest.raises(ValueError, match="`adapt` must come before .* the layer holds \\(7, 3\\)"):
        layer.adapt(table(8, 3))


def test_adapting_too_late_is_refused():
    layer = FeatureCorruption()
    layer(table(4, 3))
    with pytest.raises(ValueError, match="`adapt` must come before the layer is first called"):
        layer.adapt(table(4, 3))


def test_the_reference_is_saved_with_a_model_of_its_own(tmp_path):
    layer = FeatureCorruption(0.6, seed=1)
    layer.adapt(table(7, 5, start=10_000.0))
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    rows = table(4, 5)
    np.testing.assert_array_equal(loaded(rows, training=True), model(rows, training=True))


@pytest.mark.slow
def test_scarf_pretrains_on_a_row_and_its_corrupted_copy(tmp_path):
    rows = np.random.default_rng(0).normal(size=(32, 5)).astype("float32")
    encoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
    corruption = FeatureCorruption(seed=1)
    corruption.adapt(-rows)
    model = ksm.SimCLR(encoder, augmentation=[keras.layers.Identity(), corruption])
    views = model.views_of(tf.constant(rows)).numpy()
    np.testing.assert_array_equal(views[:, 0], rows)
    assert ((views[:, 1] != rows).sum(axis=1) == 3).all()
    model.compile("adam")
    model.fit(rows, batch_size=16, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.augmentation[1].reference, -rows)
    np.testing.assert_allclose(loaded.evaluate(rows, verbose=0), model.evaluate(rows, verbose=0))


@pytest.mark.parametrize("data", [np.zeros((0, 3)), np.zeros(3), np.zeros((2, 3, 4))])
def test_bad_reference_rows_are_refused(data):
    with pytest.raises(ValueError, match="`data` must be rows"):
        FeatureCorruption().adapt(data)


def test_other_features_than_adapted_are_refused():
    layer = FeatureCorruption()
    layer.adapt(table(7, 3))
    with pytest.raises(ValueError, match="as many features as the rows given to `adapt`"):
        layer(table(4, 2))
    with pytest.raises(ValueError, match="`inputs` must have .* known in advance"):
        FeatureCorruption()(keras.Input((None,)))


@pytest.mark.parametrize("value", [-0.1, 1.1, None])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match="`rate` must be a number in"):
        FeatureCorruption(value)
