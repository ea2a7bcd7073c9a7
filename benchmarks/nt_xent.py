"""NT-Xent, loss and gradient: time and memory against dense formulas, from one run.

    python benchmarks/nt_xent.py [--batch 4096] [--dim 128] [--rounds 7]

Three contestants take turns, and medians are compared: `keras_sslmeta.losses.NTXent`; the dense formula as
SimCLR's authors wrote it (four blocks of logits, one-hot labels, softmax cross-entropy); and the leanest
dense formula that we know (one product, diagonal set to −inf, log-sum-exp). Memory is each one's peak
above inputs and traced graph, in a process of its own. The multiply rate is that of large square float32
matrices on the same machine; our loss needs 4·N²·D floating-point operations for N = 2·batch rows.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tensorflow as tf

import keras_sslmeta as ksm

TEMPERATURE = 0.1


def ours(z):
    return ksm.losses.NTXent(TEMPERATURE)(None, z)


def dense_lean(z):
    """One similarity matrix; the positive is computed apart, as the lean way to write it."""
    batch = z.shape[0]
    z = tf.math.l2_normalize(z, axis=-1)
    z = tf.concat([z[:, 0], z[:, 1]], axis=0)
    logits = tf.matmul(z, z, transpose_b=True) / TEMPERATURE
    logits = tf.linalg.set_diag(logits, tf.fill([2 * batch], float("-inf")))
    positive = tf.reduce_sum(z * tf.roll(z, batch, axis=0), axis=1) / TEMPERATURE
    return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - positive)


def dense_published(z):
    """Four blocks of logits, masked by a large number, and softmax cross-entropy on one-hot labels."""
    batch = z.shape[0]
    z = tf.math.l2_normalize(z, axis=-1)
    a, b = z[:, 0], z[:, 1]
    labels = tf.one_hot(tf.range(batch), 2 * batch)
    mask = tf.one_hot(tf.range(batch), batch) * 1e9
    aa = tf.matmul(a, a, transpose_b=True) / TEMPERATURE - mask
    bb = tf.matmul(b, b, transpose_b=True) / TEMPERATURE - mask
    ab = tf.matmul(a, b, transpose_b=True) / TEMPERATURE
    ba = tf.matmul(b, a, transpose_b=True) / TEMPERATURE
    for_a = tf.nn.softmax_cross_entropy_with_logits(labels, tf.concat([ab, aa], axis=1))
    for_b = tf.nn.softmax_cross_entropy_with_logits(labels, tf.concat([ba, bb], axis=1))
    return tf.reduce_mean(for_a + for_b) / 2


CONTESTANTS = {"ours": ours, "dense, published": dense_published, "dense, lean": dense_lean}


def step_of(loss, batch, dim):
    """The traced function from embeddings to loss and gradient."""

    @tf.function(input_signature=[tf.TensorSpec([batch, 2, dim])])
    def step(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(z)
        return value, tape.gradient(value, z)

    return step.get_concrete_function()


def inputs(batch, dim):
    return tf.random.stateless_normal([batch, 2, dim], seed=[0, 1])


def measure_memory(name, batch, dim):
    """In this process: the peak above inputs and graph, in bytes."""
    z = inputs(batch, dim)
    step = step_of(CONTESTANTS[name], batch, dim)
    # Load the libraries' own code before counting.
    step_of(CONTESTANTS[name], 64, dim)(inputs(64, dim))
    before = peak_memory()
    step(z)[1].numpy()
    return peak_memory() - before


def peak_memory():
    """Of this process since it began, in bytes (Linux; `ru_maxrss` would count the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory(name, batch, dim):
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        name,
        "--batch",
        str(batch),
        "--dim",
        str(dim),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)[-1].numpy()
    return time.perf_counter() - start


def multiply_rate():
    """Floating-point operations a second of large float32 matrix products, at their best."""
    size = 2048
    a = tf.random.stateless_normal([size, size], seed=[0, 1])
    times = [seconds(lambda: [tf.matmul(a, a)]) for _ in range(20)]
    return 2 * size**3 / min(times)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large-batch", type=int, default=32768, help="memory only; 0 for none")
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batch, dim = arguments.batch, arguments.dim
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, batch, dim))
        return

    z = inputs(batch, dim)
    steps = {name: step_of(loss, batch, dim) for name, loss in CONTESTANTS.items()}
    values = {name: float(step(z)[0]) for name, step in steps.items()}
    rate = multiply_rate()
    times = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, z))
    median = {name: statistics.median(times[name]) for name in times}
    peak = {name: memory(name, batch, dim) for name in steps}

    cores = len(os.sched_getaffinity(0))
    print(
        f"NT-Xent, loss and gradient, batch {batch} × 2 views × {dim}, {cores} cores, T = {TEMPERATURE}"
    )
    print(f"median of {arguments.rounds} interleaved rounds; memory above inputs and graph\n")
    header = (
        f"{'':18s}{'loss':>9s}{'ms':>8s}{'min ms':>8s}{'MB':>8s}{'ours is … times as fast':>26s}"
    )
    print(header + f"{'of its memory':>16s}")
    for name in steps:
        print(
            f"{name:18s}{values[name]:9.5f}{1e3 * median[name]:8.0f}{1e3 * min(times[name]):8.0f}"
            f"{peak[name] / 2**20:8.0f}{median[name] / median['ours']:26.2f}"
            f"{100 * peak['ours'] / peak[name]:15.0f}%"
        )
    operations = 4 * (2 * batch) ** 2 * dim
    achieved = operations / median["ours"]
    print(
        f"\nmultiply rate {rate / 1e9:.0f} GFLOP/s; ours runs at {achieved / 1e9:.0f} GFLOP/s, "
        f"{100 * achieved / rate:.0f}% of it"
    )
    if arguments.large_batch:
        peak_large = memory("ours", arguments.large_batch, dim)
        matrix = 4 * (2 * arguments.large_batch) ** 2
        print(
            f"batch {arguments.large_batch} × 2 × {dim}: {peak_large / 2**20:.0f} MB above inputs and graph"
            f" (the similarity matrix alone would take {matrix / 2**30:.0f} GB)"
        )


if __name__ == "__main__":
    main()
