"""How long after their last step epochs end: a plain Keras model, SimCLR, and SimCLR without our remedy.

    python benchmarks/epoch_ends.py                     # the table below
    python benchmarks/epoch_ends.py --epochs 4 --samples 5000 --plain_samples 20000

TensorFlow 2.21 tunes a dataset by a thread that sleeps for twice as long each time, 10 ms at first; the end
of the dataset's iterator, one an epoch, often has to wait for it: `mechanisms/prompt_epochs.py` says why.
Fits a classifier by Keras's own `fit`, and SimCLR on the same small encoder, on random images, one epoch a
`fit`, in turns. Seconds from the start to `on_train_end`, and from there until `fit` returns; without the
first `fit`, which traces.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--epochs", type=int, default=10, help="measured, of each model (10)")
parser.add_argument("--samples", type=int, default=10_000, help="an epoch of SimCLR (10000)")
parser.add_argument("--plain_samples", type=int, default=30_000, help="of the classifier (30000)")
arguments = parser.parse_args()

import cifar10_methods
import keras
import numpy as np

import keras_sslmeta as ksm
from keras_sslmeta.mechanisms.multi_worker import MultiWorkerFit


class LastStep(keras.callbacks.Callback):
    def on_train_end(self, logs=None):
        self.time = time.perf_counter()


class WithoutRemedy(ksm.SimCLR):
    _maybe_symbolic_build = MultiWorkerFit._maybe_symbolic_build


def made_models():
    classifier = keras.Sequential([cifar10_methods.encoder("conv4"), keras.layers.Dense(10)])
    classifier.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    models = {"Keras, a classifier": classifier}
    for name, kind in (("SimCLR", ksm.SimCLR), ("SimCLR without the remedy", WithoutRemedy)):
        models[name] = kind(cifar10_methods.encoder("conv4"), cifar10_methods.augmentation())
        models[name].compile("adam")
    return models


def main():
    random = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    models = made_models()
    count = max(arguments.plain_samples, arguments.samples)
    x = random.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    y = random.integers(0, 10, len(x))
    seconds = {name: [] for name in models}
    for epoch in range(1 + arguments.epochs):
        for name, model in models.items():
            last, is_ours = LastStep(), isinstance(model, ksm.SimCLR)
            count = arguments.samples if is_ours else arguments.plain_samples
            labels = () if is_ours else (y[:count],)
            began = time.perf_counter()
            model.fit(x[:count], *labels, batch_size=256, verbose=0, callbacks=[last])
            if epoch:
                seconds[name].append((last.time - began, time.perf_counter() - last.time))
    print("| model | steps, s | waited after them, s, mean | most | epochs that waited 0.1 s |")
    print("|---|---|---|---|---|")
    for name, pairs in seconds.items():
        steps, ends = zip(*pairs, strict=True)
        late = sum(end > 0.1 for end in ends)
        print(
            f"| {name} | {min(steps):.1f} to {max(steps):.1f} | {statistics.mean(ends):.2f} | "
            f"{max(ends):.2f} | {late} of {len(ends)} |"
        )


main()
