"""Schedules, exclusion, LARS's ratio: eight steps on two replicas equal those on one device."""

import keras
import numpy as np
import pytest

from keras_sslmeta import optimizers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 3)).astype("float32")
Y = RNG.normal(size=(32, 2)).astype("float32")
START = [RNG.normal(size=(3, 2)), 1 + RNG.normal(size=2)]
CASES = {
    "AdamW": (optimizers.AdamW, {}),
    "SGD": (optimizers.SGD, {"momentum": 0.8}),
    "LARS": (optimizers.LARS, {"trust_coefficient": 0.05}),
    "LARS, averaged": (
        optimizers.LARS,
        {"trust_coefficient": 0.05, "use_ema": True, "ema_momentum": 0.7},
    ),
}


def weights_after_fit(strategy, kind, settings, decay=(0.1, 2.0, 12)):
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.set_weights(START)
        optimizer = kind(
            learning_rate=optimizers.CosineSchedule(0.1, 0.02, 12),
            weight_decay=optimizers.CosineSchedule(*decay),
            exclude=optimizers.is_bias_or_norm,
            **settings,
        )
        if keras.config.dtype_policy().name == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
        model.compile(optimizer, "mse", jit_compile=False)
    model.fit(X, Y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_is_exact(name, replicas):
    # Keras 3.15 itself fails here with `steps_per_execution` or accumulation, and clips each share.
    expected = weights_after_fit(replicas(1), *CASES[name])
    for a, b in zip(weights_after_fit(replicas(2), *CASES[name]), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The comparison could fail: a decay that stands still is felt.
    constant = weights_after_fit(replicas(1), *CASES[name], decay=(0.1, 0.1, 12))
    assert np.abs(constant[0] - expected[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamW", "SGD", "LARS"])
def test_half_precision(name, replicas):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        one, two = (weights_after_fit(replicas(count), *CASES[name]) for count in (1, 2))
    finally:
        keras.config.set_dtype_policy("float32")
    for a, b in zip(two, one, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)
