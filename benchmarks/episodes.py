"""Episodes a second out of memory: what the input pipeline alone can deliver.

    python benchmarks/episodes.py [--ways 5] [--shots 1] [--queries 15] [--tasks 32] [--seconds 5]

Images are as many as Omniglot's training set has, 964 classes of 20, of 28×28 8-bit pixels; what they show
makes no difference. Episodes come in batches of `--tasks`, as `fit` reads them. Each round reads batches for
`--seconds`, after some to warm up, and the median of the rounds is printed with the slowest.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import time

import numpy as np

import keras_sslmeta as ksm

CLASSES, DRAWINGS, SIDE = 964, 20, 28


def rate(dataset, tasks, seconds):
    """Episodes a second of one pass over a dataset of batches."""
    batches = iter(dataset)
    for _ in range(10):
        next(batches)
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += tasks
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    ways, shots, queries = arguments.ways, arguments.shots, arguments.queries

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (CLASSES * DRAWINGS, SIDE, SIDE, 1), dtype="uint8")
    data = (images, np.repeat(np.arange(CLASSES), DRAWINGS))
    sizes = {"ways": ways, "shots": shots, "queries": queries}
    contestants = {
        "episodes": ksm.data.episodes(data, **sizes, seed=0),
        "episodes, rotations": ksm.data.episodes(data, **sizes, seed=0, rotations=True),
        "sinusoids": ksm.data.sinusoids(seed=0),
    }
    batches = {name: dataset.batch(arguments.tasks) for name, dataset in contestants.items()}
    rates = {name: [] for name in batches}
    for _ in range(arguments.rounds):
        for name, dataset in batches.items():
            rates[name].append(rate(dataset, arguments.tasks, arguments.seconds))

    print(
        f"{ways}-way {shots}-shot, {queries} queries a class, {SIDE}×{SIDE} pixels "
        f"(sinusoids: 10 + 10 points), in batches of {arguments.tasks}, {len(os.sched_getaffinity(0))} cores"
    )
    print(f"\n{'':22s}{'episodes a second':>18s}{'slowest round':>15s}")
    for name, measured in rates.items():
        print(f"{name:22s}{statistics.median(measured):18,.0f}{min(measured):15,.0f}")


if __name__ == "__main__":
    main()
