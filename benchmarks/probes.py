"""What the probes of pretraining cost: an epoch of `fit` with each callback and without, and the probe alone.

    python benchmarks/probes.py                         # the table below
    python benchmarks/probes.py --samples 2048 --train 512 --test 256 --rounds 2

SimCLR on random 32×32 images, the small encoder of `cifar10_ssl.py`, batch 256. Every round fits some epochs
without callbacks and with each, in another order each time, on one model whose functions have been made.
"At the start" is what a callback does when `fit` begins, "an epoch" its measurement, medians both; "the rest"
is by how much longer an epoch took than the one without callbacks of the same round, less both: what a probe
slows training by beyond its own time.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--samples", type=int, default=10_240, help="of an epoch (10240)")
parser.add_argument("--train", type=int, default=5_000, help="labelled, to compare with (5000)")
parser.add_argument("--test", type=int, default=1_000, help="labelled, to measure (1000)")
parser.add_argument("--health", type=int, default=512, help="of RepresentationHealth (512)")
parser.add_argument("--epochs", type=int, default=2, help="of one `fit` (2)")
parser.add_argument("--rounds", type=int, default=5, help="(5)")
arguments = parser.parse_args()

import cifar10_methods
import keras
import numpy as np

import keras_sslmeta as ksm


class Clocked:
    """A callback whose work is timed."""

    def __init__(self, probe):
        self.probe, self.seconds = probe, {"start": [], "epoch": []}
        probe.on_train_begin = self.timed(probe.on_train_begin, "start")
        probe._values = self.timed(probe._values, "epoch")

    def timed(self, function, name):
        def call(*args, **kwargs):
            began = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[name].append(time.perf_counter() - began)
            return result

        return call

    def of_last_fit(self):
        return self.seconds["start"][-1] + sum(self.seconds["epoch"][-arguments.epochs :])


def made_model():
    model = ksm.SimCLR(cifar10_methods.encoder("conv4"), cifar10_methods.augmentation())
    model.compile(keras.optimizers.Adam(1e-3))
    return model


def labelled(random, count):
    return random.integers(0, 256, (count, 32, 32, 3)).astype("uint8"), random.integers(
        0, 10, count
    )


def main():
    random = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model, (x, _) = made_model(), labelled(random, arguments.samples)
    train, test = labelled(random, arguments.train), labelled(random, arguments.test)
    clocks = {
        "KNNProbe": Clocked(ksm.callbacks.KNNProbe(train, test)),
        "LinearProbe": Clocked(ksm.callbacks.LinearProbe(train, test)),
        "RepresentationHealth": Clocked(
            ksm.callbacks.RepresentationHealth(test[0][: arguments.health], alarm=False)
        ),
    }
    rests = {name: [] for name in clocks}
    epochs = []

    def epoch_of(clock=None):
        began = time.perf_counter()
        callbacks = [clock.probe] if clock else []
        model.fit(x, batch_size=256, epochs=arguments.epochs, verbose=0, callbacks=callbacks)
        own = clock.of_last_fit() if clock else 0.0
        return (time.perf_counter() - began - own) / arguments.epochs

    for number in range(1 + arguments.rounds):  # The first makes the functions.
        names = [None, *clocks]
        names = names[number % 4 :] + names[: number % 4]
        seconds = {name: epoch_of(clocks.get(name)) for name in names}
        if number:
            epochs.append(seconds[None])
            for name, values in rests.items():
                values.append(seconds[name] - seconds[None])
        else:
            for clock in clocks.values():
                clock.seconds["start"].clear()
                clock.seconds["epoch"].clear()
    whole = statistics.median(epochs)
    print(f"An epoch of {arguments.samples:,} images without probes: {whole:.2f} s")
    print("| callback | at the start, s | an epoch, s | the rest, % of the epoch |")
    print("|---|---|---|---|")
    for name, clock in clocks.items():
        start, each = (statistics.median(clock.seconds[part]) for part in ("start", "epoch"))
        rest = 100 * statistics.median(rests[name]) / whole
        print(f"| {name} | {start:.2f} | {each:.2f} | {rest:+.1f} |")


main()
