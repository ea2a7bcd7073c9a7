"""MoCo v2's, BYOL's and VICReg's augmentations: the papers' figures, seen in the images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.layers import (
    BYOLAugmentation,
    MoCoV2Augmentation,
    RandomResizedCrop,
    SimCLRAugmentation,
    VICRegAugmentation,
)

COUNT = 3000
# Crop's smallest area; brightness, contrast, saturation, hue; jitter, grey, blur, solarisation.
PAPERS = {
    "SimCLR": (lambda **kw: SimCLRAugmentation(8, **kw), 0.08, (0.8, 0.8, 0.8, 0.2), 0.5, 0.0),
    "MoCo v2": (lambda **kw: MoCoV2Augmentation(8, **kw), 0.2, (0.4, 0.4, 0.4, 0.1), 0.5, 0.0),
    "BYOL's first": (
        lambda **kw: BYOLAugmentation.pair(8, **kw)[0], 0.08, (0.4, 0.4, 0.2, 0.1), 1.0, 0.0
    ),
    "BYOL's second": (
        lambda **kw: BYOLAugmentation.pair(8, **kw)[1], 0.08, (0.4, 0.4, 0.2, 0.1), 0.1, 0.2
    ),
    "VICReg": (lambda **kw: VICRegAugmentation(8, **kw), 0.08, (0.4, 0.4, 0.2, 0.1), 0.5, 0.1),
}  # fmt: skip
every_paper = pytest.mark.parametrize("name", PAPERS)


def whole(layer):
    """The layer with the whole image as its crop and no flip, so that the steps can be seen."""
    layer.crop = RandomResizedCrop(8, 8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    layer.flip = False
    return layer


def images():
    return np.random.default_rng(0).uniform(0, 255, (COUNT, 8, 8, 3)).astype("float32")


def near(fraction, probability):
    deviation = np.sqrt(probability * (1 - probability) / COUNT)
    return abs(fraction - probability) <= 4.5 * deviation


@every_paper
def test_the_figures_of_the_paper(name):
    make, smallest, jitter, blur, solarize = PAPERS[name]
    layer = make(seed=1)
    assert layer.crop_scale == layer.crop.scale == (smallest, 1.0)
    parts = layer.color_jitter
    actual = (parts.brightness, parts.contrast, parts.saturation, parts.hue)
    np.testing.assert_allclose(actual, jitter)
    assert (layer.color_jitter_probability, layer.grayscale_probability) == (0.8, 0.2)
    assert layer.blur_probability == layer.blur.probability == blur
    assert layer.blur.sigma == (0.1, 2.0)
    assert getattr(layer, "solarize_probability", 0.0) == solarize


@every_paper
def test_the_stated_fraction_is_solarized(name):
    """White stays white through jitter of no strength, grey and blur, and becomes black."""
    make, _, _, _, solarize = PAPERS[name]
    layer = whole(make(seed=1, strength=0.0))
    outputs = layer(np.full((COUNT, 8, 8, 3), 255.0, "float32")).numpy()
    black = (np.abs(outputs) < 1e-2).all(axis=(1, 2, 3))
    assert (black | (np.abs(outputs - 255.0) < 1e-2).all(axis=(1, 2, 3))).all()
    assert near(black.mean(), solarize)


@every_paper
def test_the_stated_fraction_is_blurred(name):
    make, _, _, blur, _ = PAPERS[name]
    layer = whole(make(seed=1, strength=0.0, grayscale_probability=0.0))
    dark = images() / 4.0  # solarisation leaves it
    changed = np.abs(layer(dark).numpy() - dark).max(axis=(1, 2, 3)) > 1e-2
    # Below a sigma of 0.19, on 3 taps, blur changes less than that: some 0.09 / 1.9 of those.
    assert 0.93 * blur - 0.035 < changed.mean() < blur + 0.035


@every_paper
def test_a_fifth_is_grey(name):
    make, *_ = PAPERS[name]
    layer = whole(make(seed=1))
    outputs = layer(images()).numpy()
    assert near((np.ptp(outputs, axis=-1).max(axis=(1, 2)) < 1e-2).mean(), 0.2)


def test_saturation_is_half_of_the_other_strengths():
    """On images of one colour without hue and contrast, it moves them towards their grey."""
    layer = whole(BYOLAugmentation(8, seed=1, color_jitter_probability=1.0))
    layer.grayscale_probability = 0.0
    layer.color_jitter.brightness = layer.color_jitter.contrast = layer.color_jitter.hue = 0.0
    color = np.array([150.0, 100.0, 120.0], "float32")
    outputs = layer(np.broadcast_to(color, (COUNT, 8, 8, 3)).copy()).numpy()[:, 4, 4]
    factor = np.ptp(outputs, axis=-1) / np.ptp(color)
    grid = np.linspace(0.8, 1.2, COUNT)
    assert np.abs(np.sort(factor) - grid).max() / 0.4 < 1.95 / np.sqrt(COUNT)


def test_solarization_comes_last_and_by_a_draw_of_its_own():
    layer = VICRegAugmentation(8, seed=1, solarize_probability=0.5)
    seed = tf.constant([3, 4], tf.int32)
    batch = tf.constant(images()[:400])
    parent_seed, solarize_seed = layer.split(seed)
    before = layer.augment(batch, seed)
    layer.solarize_probability = 0.0
    without = layer.augment(batch, seed).numpy()
    solarized = np.where(without < 127.5, without, 255.0 - without)
    chosen = layer.uniform(solarize_seed, [400]).numpy() < 0.5
    expected = np.where(chosen[:, None, None, None], solarized, without)
    np.testing.assert_allclose(before, expected, atol=1e-2)
    assert near_half(chosen.mean(), 400)
    flips = layer.uniform(layer.split(parent_seed, 6)[1], [400]).numpy()
    assert abs(np.corrcoef(chosen, flips)[0, 1]) < 4 / np.sqrt(400)


def near_half(fraction, count):
    return abs(fraction - 0.5) < 2.25 / np.sqrt(count)


@pytest.mark.parametrize("value_range", [(0, 255), (0, 1), (-1, 1)])
@pytest.mark.parametrize("policy", [MoCoV2Augmentation, BYOLAugmentation, VICRegAugmentation])
def test_values_stay_in_the_range(policy, value_range):
    low, high = value_range
    batch = low + images()[:300] / 255.0 * (high - low)
    outputs = policy(8, value_range, seed=1)(batch).numpy()
    assert outputs.min() >= low and outputs.max() <= high


def test_the_pair_draws_independently_and_again_by_its_seed():
    batch = images()[:16]
    pair, again = BYOLAugmentation.pair(8, seed=1), BYOLAugmentation.pair(8, seed=1)
    for layer, copy in zip(pair, again, strict=True):
        np.testing.assert_array_equal(layer(batch), copy(batch))
    alike = BYOLAugmentation.pair(8, (0.0, 0.0), (0.0, 0.0), seed=1)
    first, second = (layer(batch).numpy() for layer in alike)
    assert (np.abs(first - second).max(axis=(1, 2, 3)) > 1.0).all()
    keras.utils.set_random_seed(1)
    first, second = (layer(batch).numpy() for layer in BYOLAugmentation.pair(8))
    assert (np.abs(first - second).max(axis=(1, 2, 3)) > 1.0).all()


def test_arguments_reach_both_views():
    for layer in BYOLAugmentation.pair((8, 6), (0.0, 0.0), value_range=(0, 1), strength=1.0):
        assert layer.image_size == (8, 6) and layer.value_range == (0, 1)
        assert layer.blur_probability == 0.0 and layer.color_jitter.saturation == 0.4


@pytest.mark.slow
def test_a_model_trains_on_the_pair_and_comes_back(tmp_path):
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    model = ksm.SimCLR(encoder, augmentation=BYOLAugmentation.pair(8, seed=1))
    model.compile("sgd")
    batch = images()[:16] / 255.0
    model.fit(batch, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    configs = [[layer.get_config() for layer in m.augmentation] for m in (model, loaded)]
    assert configs[0] == configs[1]
    np.testing.assert_allclose(loaded.evaluate(batch, verbose=0), model.evaluate(batch, verbose=0))


@pytest.mark.parametrize("policy", [MoCoV2Augmentation, BYOLAugmentation, VICRegAugmentation])
def test_the_config_is_complete(policy):
    arguments = {
        "image_size": (8, 6),
        "value_range": (0.0, 1.0),
        "crop_scale": (0.5, 0.9),
        "strength": 0.25,
        "flip": False,
        "color_jitter_probability": 0.1,
        "grayscale_probability": 0.3,
        "blur_probability": 0.4,
        "seed": 7,
    }
    if policy is not MoCoV2Augmentation:
        arguments["solarize_probability"] = 0.6
    config = policy(**arguments).get_config()
    assert {key: config[key] for key in arguments} == arguments
    copy = policy.from_config(config)
    batch = images()[:4] / 255.0
    np.testing.assert_array_equal(copy(batch), policy(**arguments)(batch))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BYOLAugmentation(8, solarize_probability=2.0), "`solarize_probability` must be"),
        (lambda: VICRegAugmentation(8, solarize_probability=-1), "`solarize_probability` must be"),
        (lambda: BYOLAugmentation.pair(8, (0.5,)), "must be pairs"),
        (lambda: MoCoV2Augmentation(1), "`image_size` must be"),
        (lambda: VICRegAugmentation(8, strength=3.0), "`strength` must be a number in"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
