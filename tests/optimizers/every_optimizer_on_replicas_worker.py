"""Asserts of every optimiser that two replicas take one device's steps; prints a line for each.

Run by `every_optimizer_on_replicas_test.py`:  python every_optimizer_on_replicas_worker.py
"""

import contextlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

import keras_sslmeta as ksm
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


def weights_after_fit(kind, settings, strategy=None, decay=(0.1, 2.0, 12)):
    with strategy.scope() if strategy else contextlib.nullcontext():
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


def main():
    ksm.testing.configure_replicas(2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for name, (kind, settings) in CASES.items():
        # Keras 3.15 itself fails here with `steps_per_execution` or accumulation, and clips each share.
        expected = weights_after_fit(kind, settings)
        got = weights_after_fit(kind, settings, strategy)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        # The comparison could fail: a decay that stands still is felt.
        constant = weights_after_fit(kind, settings, decay=(0.1, 0.1, 12))
        assert np.abs(constant[0] - expected[0]).max() > 1e-3
        report(f"same: {name}")
    keras.config.set_dtype_policy("mixed_float16")
    for name, (kind, settings) in list(CASES.items())[:3]:
        expected = weights_after_fit(kind, settings)
        got = weights_after_fit(kind, settings, strategy)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)
        report(f"same: {name}, half precision")


def report(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
