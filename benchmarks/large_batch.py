"""SimCLR on batches larger than memory: peak memory and seconds with `micro_batch_size` and without.

    python benchmarks/large_batch.py                                      # the table below
    python benchmarks/large_batch.py --rows 32768:256 --steps 2

A step of SimCLR on 32×32 images, four convolutions of 32 to 256 filters with group normalisation, views made
in the model. Each row is a process of its own, `BATCH:PART`, or `BATCH:0` for the whole batch at once. Memory
is the process's peak above what it was before the first step, with TensorFlow, model and images (bytes) in
place; seconds are the median of the steps after the first. Parts draw other views than the whole batch does,
so losses differ a little; `tests/ssl/micro_batch_test.py` compares gradients.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import statistics
import subprocess
import sys
import time

ROWS = ["512:0", "512:128", "2048:0", "2048:256", "8192:256", "32768:256"]

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--rows", nargs="+", default=ROWS, help=f"({' '.join(ROWS)})")
parser.add_argument("--steps", type=int, default=2, help="steps measured, after the first (2)")
parser.add_argument("--worker", help=argparse.SUPPRESS)
arguments = parser.parse_args()


def measure(row):
    """One row, in this process."""
    import keras
    import numpy as np
    from peak_memory import PeakMemory

    import keras_sslmeta as ksm

    batch, part = map(int, row.split(":"))
    keras.utils.set_random_seed(0)
    layers = [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255)]
    for width in (32, 64, 128, 256):
        layers += [
            keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False),
            keras.layers.GroupNormalization(8),
            keras.layers.ReLU(),
        ]
    encoder = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])
    augmentation = ksm.layers.SimCLRAugmentation(32, strength=0.5, blur_probability=0.0, seed=1)
    model = ksm.SimCLR(encoder, augmentation, micro_batch_size=part or None)
    model.compile(keras.optimizers.SGD(0.1))
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3)).astype("uint8")
    seconds, first = [], 0.0
    with PeakMemory() as memory:
        for step in range(1 + arguments.steps):
            began = time.perf_counter()
            loss = float(model.train_on_batch(images))
            seconds.append(time.perf_counter() - began)
            first = loss if step == 0 else first
    return {
        "batch": batch,
        "part": part,
        "loss": first,
        "megabytes": memory.megabytes,
        "seconds": statistics.median(seconds[1:]),
    }


if arguments.worker:
    print(json.dumps(measure(arguments.worker)))
    sys.exit()

print("| batch | at once | peak memory, MB | seconds a step | loss of the first step |")
print("|---|---|---|---|---|")
for row in arguments.rows:
    command = [sys.executable, __file__, "--worker", row, "--steps", str(arguments.steps)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    record = json.loads(output.splitlines()[-1])
    print(
        f"| {record['batch']:,} | {record['part'] or 'all'} | {record['megabytes']:,.0f} | "
        f"{record['seconds']:.1f} | {record['loss']:.5f} |",
        flush=True,
    )
