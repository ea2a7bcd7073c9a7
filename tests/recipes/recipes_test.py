"""Schedules against NumPy, and that every recipe trains its method."""

import keras
import numpy as np
import pytest
from small_methods import LABELS, head, predictor

import keras_sslmeta as ksm
from keras_sslmeta import recipes

IMAGES = np.random.default_rng(0).uniform(0, 255, size=(12, 8, 8, 3)).astype("float32")
SGD, LARS, ADAM_W = (getattr(ksm.optimizers, name) for name in ("SGD", "LARS", "AdamW"))
# Recipe, largest rate for a batch of 512, epochs of warm-up, end, optimizer, decay: of SGD ten times the
# papers', whose decay goes through a momentum of 0.9.
RATES = {
    "sim_clr": (0.6, 10, 0.0, LARS, 1e-6),
    "sup_con": (0.25, 10, 0.0, SGD, 1e-3),
    "moco": (0.06, 0, 0.0, SGD, 1e-3),
    "moco_v3": (3e-4, 40, 0.0, ADAM_W, 0.1),
    "byol": (0.4, 10, 0.0, LARS, 1.5e-6),
    "sim_siam": (0.1, 0, 0.0, SGD, 1e-3),
    "barlow_twins": (0.4, 10, 1e-3, LARS, 1e-6),
    "vic_reg": (0.4, 10, 1e-3, LARS, 1e-6),
    "small_images": (0.24, 0, 0.0, SGD, 5e-3),
}
METHODS = {
    "sim_clr": ksm.SimCLR,
    "sup_con": ksm.SupCon,
    "moco": ksm.MoCo,
    "moco_v3": ksm.MoCoV3,
    "byol": ksm.BYOL,
    "sim_siam": ksm.SimSiam,
    "barlow_twins": ksm.BarlowTwins,
    "vic_reg": ksm.VICReg,
    "small_images": ksm.DCL,
}


def test_every_recipe_is_here():
    assert {*recipes.__all__} - {"Recipe"} == RATES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", RATES)
def test_rates_and_decay(name):
    largest, warmup_epochs, end, optimizer, decay = RATES[name]
    recipe = getattr(recipes, name)(51_100, batch_size=512, epochs=1000, image_size=32)
    assert recipe.steps == 100_000 and recipe.fit == {"batch_size": 512, "epochs": 1000}
    ours = recipe.compile["optimizer"]
    assert type(ours) is optimizer and float(ours.weight_decay) == pytest.approx(decay)
    warmup = 100 * warmup_epochs
    for step in (0, 1, 500, 999, 1000, 4000, 4001, 50_000, 99_999, 100_000):
        if step < warmup:
            expected = largest * step / warmup
        else:
            remaining = (1 + np.cos(np.pi * (step - warmup) / (100_000 - warmup))) / 2
            expected = largest * (end + (1 - end) * remaining)
        rate = float(ours._learning_rate(step))
        np.testing.assert_allclose(rate, expected, rtol=1e-3, atol=1e-6 * largest)


def test_a_short_run_warms_up_for_a_tenth_of_it():
    recipe = recipes.sim_clr(1000, batch_size=100, epochs=5)
    rate = recipe.compile["optimizer"]._learning_rate
    assert float(rate(5)) == pytest.approx(0.3 * 100 / 256)
    assert float(rate(4)) < float(rate(5)) > float(rate(6))


@pytest.mark.parametrize(
    ("epochs", "start", "rate"),
    [(50, 0.97, 0.45), (100, 0.99, 0.45), (300, 0.99, 0.3), (1000, 0.996, 0.2)],
)
def test_byols_momentum_goes_to_one(epochs, start, rate):
    recipe = recipes.byol(1000, batch_size=256, epochs=epochs)
    momentum = recipe.model["momentum"]
    assert float(momentum(0)) == pytest.approx(start)
    assert float(momentum(recipe.steps)) == pytest.approx(1.0)
    assert float(momentum(recipe.steps // 2)) == pytest.approx((1 + start) / 2, abs=1e-4)


@pytest.mark.parametrize("name", RATES)
def test_small_images_are_not_blurred_and_arguments_reach_the_augmentation(name):
    small = getattr(recipes, name)(100, image_size=32, value_range=(0, 1), flip=False)
    layers = small.model["augmentation"]
    for layer in layers if isinstance(layers, list) else [layers]:
        config = layer.get_config()
        assert config["blur_probability"] == 0 and config["flip"] is False
        assert tuple(config["value_range"]) == (0, 1)
    if name != "small_images":
        layers = getattr(recipes, name)(100, image_size=224).model["augmentation"]
        first = layers[0] if isinstance(layers, list) else layers
        assert first.get_config()["blur_probability"] > 0


@pytest.mark.first(1)
@pytest.mark.parametrize("name", RATES)
def test_every_recipe_trains_its_method(name, tmp_path):
    """As its docstring says, and the model saves and loads with its schedules."""
    recipe = getattr(recipes, name)(len(IMAGES), batch_size=6, epochs=2, image_size=8)
    body = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    body.add(keras.layers.Dense(8))
    heads = {"projector": head()}
    if name in ("moco_v3", "byol", "sim_siam"):
        heads["predictor"] = predictor()
    if name == "moco":
        heads["queue_size"] = 16
    model = METHODS[name](body, **heads, **recipe.model)
    model.compile(**recipe.compile)
    labels = LABELS if name == "sup_con" else None
    history = model.fit(IMAGES, labels, **recipe.fit, verbose=0).history
    assert np.isfinite(history["loss"]).all() and int(model.optimizer.iterations) == recipe.steps
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == recipe.steps


def test_refused():
    with pytest.raises(ValueError, match="`samples` must"):
        recipes.sim_clr(0)
    with pytest.raises(ValueError, match="`batch_size` must"):
        recipes.byol(100, batch_size=2.5)


@pytest.mark.parametrize("name", RATES)
def test_at_the_papers_own_length_warm_up_is_the_papers(name):
    recipe = getattr(recipes, name)(51_200)
    warmup = RATES[name][1]
    steps_per_epoch = recipe.steps // recipe.fit["epochs"]
    rate = recipe.compile["optimizer"]._learning_rate
    peak = warmup * steps_per_epoch
    assert all(float(rate(peak)) > float(rate(k)) for k in (peak - 1, peak + 50) if k >= 0)
