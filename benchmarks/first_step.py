"""How long the first step of `fit` takes, which is traced then, with and without our remedy.

    python benchmarks/first_step.py                     # the table below
    python benchmarks/first_step.py --rounds 1

Keras 3 builds the optimizer and the metrics within the first trace, and TensorFlow traces once more:
`mechanisms/single_trace.py` says why. Fits each model on one batch, the same network anew each time, in
turns; the median of the rounds, after one that is not counted. The network is the small encoder of
`benchmarks/cifar10_ssl.py`, and that of `benchmarks/omniglot.py` for meta-learners.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--rounds", type=int, default=5, help="(5)")
arguments = parser.parse_args()

import cifar10_methods
import few_shot_methods
import keras
import numpy as np
import tensorflow as tf

import keras_sslmeta as ksm

tf.get_logger().setLevel("ERROR")  # It warns of models that are made in a loop.

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (64, 32, 32, 3)).astype("uint8")
SETTING = few_shot_methods.Setting()
EPISODES = {
    "support_x": RANDOM.integers(0, 256, (4, 5, 28, 28, 1)).astype("uint8"),
    "support_y": np.tile(np.arange(5), (4, 1)),
    "query_x": RANDOM.integers(0, 256, (4, 5, 28, 28, 1)).astype("uint8"),
}
CLASSIFY = {
    "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "metrics": ["accuracy"],
}


def self_supervised(kind):
    return kind(cifar10_methods.encoder("conv4"), cifar10_methods.augmentation())


def adapting(kind, **kwargs):
    return kind(few_shot_methods.conv4((28, 28, 1), SETTING, 5), inner_steps=5, **kwargs)


MODELS = {
    "SimCLR": (ksm.SimCLR, self_supervised, (IMAGES,), {}),
    "BYOL": (ksm.BYOL, self_supervised, (IMAGES,), {}),
    "MAML, 5 steps, accuracy": (ksm.MAML, adapting, (EPISODES, EPISODES["support_y"]), CLASSIFY),
    "MAML++, 5 steps, accuracy": (
        ksm.MAMLPlusPlus,
        lambda kind: adapting(kind, inner_learning_rate=0.1),
        (EPISODES, EPISODES["support_y"]),
        CLASSIFY,
    ),
}


def without_remedy(kind):
    """The class as it is with Keras's own way of building."""

    class Plain(kind):
        def _is_to_build(self, part):
            return False

    return Plain


def first_step(kind, build, data, settings):
    """Seconds of `fit` on one batch."""
    keras.backend.clear_session()
    model = build(kind)
    model.compile("adam", **settings)
    began = time.perf_counter()
    model.fit(*data, batch_size=len(data[-1]), verbose=0)
    return time.perf_counter() - began


def main():
    keras.utils.set_random_seed(0)
    print("| model | first step without, s | with, s | ratio |\n|---|---|---|---|")
    for name, (kind, build, data, settings) in MODELS.items():
        kinds = [without_remedy(kind), kind]
        seconds = [
            [first_step(k, build, data, settings) for k in kinds]
            for _ in range(1 + arguments.rounds)
        ]
        without, ours = (statistics.median(column) for column in zip(*seconds[1:], strict=True))
        print(f"| {name} | {without:.1f} | {ours:.1f} | {ours / without:.2f} |", flush=True)


if __name__ == "__main__":
    main()
