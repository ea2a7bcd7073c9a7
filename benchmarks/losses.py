"""The losses on the tiled kernel against dense formulas and PyTorch: time and memory, from one run.

    python benchmarks/losses.py [--losses NTXent CLIP] [--batches 256 1024 4096] [--rounds 7]
                                [--torch-python PATH] [--out DIRECTORY]

Loss and gradient in the embeddings, dimension 128, two views or modalities a sample. For each loss and batch
the contestants take turns, and medians are compared: `keras_sslmeta`; the leanest dense TensorFlow formula we
know (one product, log-sum-exps of its rows), for NT-Xent also the one that SimCLR's authors published; and
PyTorch, if the interpreter has it: lightly's class for NTXent and DecoupledContrastive,
pytorch-metric-learning's for SupervisedContrastive, the dense formula for the others.
`--torch-python` names an interpreter with PyTorch and these where they are not in this one.

Memory is the peak of resident memory in the first call of a fresh process, above inputs and traced graph
(Linux; about 20 MB of it are TensorFlow's own). A dense contestant whose matrices would not fit into
`--memory-limit` is left out. The multiply rate is that of large square float32 matrices on the same machine;
NT-Xent is counted as 4·N²·D floating-point operations, N = 2·batch.

Prints a table, and writes losses.md, losses.json and the curves, losses.png. What losses.json in that folder
holds already is kept: a run of some losses or batches replaces their rows alone.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from worker import Worker, serve

DIM = 128
TEMPERATURE = 0.1
LOSSES = ("NTXent", "SupervisedContrastive", "DecoupledContrastive", "InfoNCE", "CLIP", "SigLIP")
# Rows of the similarity matrix a sample, and how many matrices of its size a dense step holds at once.
ROWS = {"NTXent": 2, "SupervisedContrastive": 2, "DecoupledContrastive": 2}
MATRICES = 5
NAMES = {"ours": "ours", "dense": "dense", "published": "published", "torch": "PyTorch"}


# ------------------------------------------------------------------ what is timed, in TensorFlow


def of_ours(name):
    import keras_sslmeta as ksm

    loss = getattr(ksm.losses, name)(TEMPERATURE)
    return lambda labels, z: loss(labels if name == "SupervisedContrastive" else None, z)


def of_dense(name):
    import tensorflow as tf

    def logits_of(z, both=True):
        z = tf.math.l2_normalize(z, axis=-1)
        if not both:
            return tf.matmul(z[:, 0], z[:, 1], transpose_b=True) / TEMPERATURE
        z = tf.concat([z[:, 0], z[:, 1]], axis=0)
        logits = tf.matmul(z, z, transpose_b=True) / TEMPERATURE
        return tf.linalg.set_diag(logits, tf.fill([z.shape[0]], float("-inf")))

    def positives(z):
        z = tf.math.l2_normalize(z, axis=-1)
        return tf.tile(tf.reduce_sum(z[:, 0] * z[:, 1], axis=1) / TEMPERATURE, [2])

    def nt_xent(labels, z):
        return tf.reduce_mean(tf.reduce_logsumexp(logits_of(z), axis=1) - positives(z))

    def decoupled(labels, z):
        batch = z.shape[0]
        logits = logits_of(z)
        for k in (batch, -batch):
            logits = tf.linalg.set_diag(logits, tf.fill([batch], float("-inf")), k=k)
        return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - positives(z))

    def supervised(labels, z):
        logits, labels = logits_of(z), tf.tile(labels, [2])
        same = tf.equal(labels[:, None], labels)
        same = tf.linalg.set_diag(same, tf.zeros([logits.shape[0]], tf.bool))
        sums = tf.reduce_sum(tf.where(same, logits, tf.zeros_like(logits)), axis=1)
        counts = tf.reduce_sum(tf.cast(same, tf.float32), axis=1)
        return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - sums / counts)

    def info_nce(labels, z):
        logits = logits_of(z, both=False)
        return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - tf.linalg.diag_part(logits))

    def clip(labels, z):
        logits = logits_of(z, both=False)
        ways = [tf.reduce_logsumexp(logits, axis=axis) for axis in (0, 1)]
        return tf.reduce_mean((ways[0] + ways[1]) / 2 - tf.linalg.diag_part(logits))

    def sig_lip(labels, z):
        logits = logits_of(z, both=False) - 10
        own = tf.linalg.diag_part(logits)
        total = tf.reduce_sum(tf.math.softplus(logits))
        return (total - tf.reduce_sum(own)) / z.shape[0]  # softplus(−x) = softplus(x) − x

    return dict(
        zip(LOSSES, (nt_xent, supervised, decoupled, info_nce, clip, sig_lip), strict=True)
    )[name]


def of_published(name):
    """NT-Xent as SimCLR's authors wrote it: four blocks of logits, cross-entropy on one-hot labels."""
    import tensorflow as tf

    def nt_xent(labels, z):
        batch = z.shape[0]
        z = tf.math.l2_normalize(z, axis=-1)
        a, b = z[:, 0], z[:, 1]
        own = tf.one_hot(tf.range(batch), 2 * batch)
        mask = tf.one_hot(tf.range(batch), batch) * 1e9
        aa = tf.matmul(a, a, transpose_b=True) / TEMPERATURE - mask
        bb = tf.matmul(b, b, transpose_b=True) / TEMPERATURE - mask
        ab = tf.matmul(a, b, transpose_b=True) / TEMPERATURE
        ba = tf.matmul(b, a, transpose_b=True) / TEMPERATURE
        for_a = tf.nn.softmax_cross_entropy_with_logits(own, tf.concat([ab, aa], axis=1))
        for_b = tf.nn.softmax_cross_entropy_with_logits(own, tf.concat([ba, bb], axis=1))
        return tf.reduce_mean(for_a + for_b) / 2

    return nt_xent


def prepare_tensorflow():
    """What a worker makes of a contestant, a loss and a batch: a function to time, that gives the value."""
    import numpy as np
    import tensorflow as tf

    import keras_sslmeta  # noqa: F401  (before the worker forks)

    makers = {"ours": of_ours, "dense": of_dense, "published": of_published}

    def prepare(contestant, name, batch):
        z, labels = (tf.constant(x) for x in inputs(np, batch))
        loss = makers[contestant](name)

        @tf.function(autograph=False)
        def step(z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                value = loss(labels, z)
            return value, tape.gradient(value, z)

        graph = step.get_concrete_function(z)

        def run():
            value, gradient = graph(z)
            gradient.numpy()
            return float(value)

        return run

    return prepare


def inputs(np, batch):
    rng = np.random.default_rng(0)
    z = rng.standard_normal(size=(batch, 2, DIM), dtype="float32")
    return z, np.arange(batch) // 4


def multiply_rate():
    """Floating-point operations a second of large float32 matrix products, at their best."""
    import time

    import tensorflow as tf

    size = 2048
    a = tf.random.stateless_normal([size, size], seed=[0, 1])
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        tf.matmul(a, a).numpy()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# ------------------------------------------------------------------ the run


def workers_of(arguments):
    """Workers, all alive, each waiting for its turn, by contestant. Those of TensorFlow share one, since
    small calls of a process that has been idle are slower."""
    ours = Worker([sys.executable, __file__, "--worker"])
    workers = dict.fromkeys(("ours", "dense", "published"), ours)
    python = arguments.torch_python or sys.executable
    reference = str(Path(__file__).with_name("losses_torch.py"))
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    if found.returncode == 0:
        workers["torch"] = Worker([python, reference])
    else:
        print("PyTorch is not installed here: its column is left out (see --torch-python).")
    return workers


def fits(contestant, name, batch, limit):
    matrix = 4 * (ROWS.get(name, 1) * batch) ** 2
    if contestant == "published":
        return name == "NTXent" and 2 * MATRICES * matrix < limit
    return contestant == "ours" or MATRICES * matrix < limit


def measure(workers, name, batch, arguments):
    """Contestant → seconds and megabytes, of those that take part."""
    limit = arguments.memory_limit * 2**30
    first = {}
    for contestant, worker in workers.items():
        if fits(contestant, name, batch, limit):
            with worker.fresh() as ask:
                first[contestant] = ask({"prepare": [contestant, name, batch]})
    first = {contestant: answer for contestant, answer in first.items() if answer}
    values = [answer["value"] for answer in first.values()]
    assert max(values) - min(values) < 1e-3 * max(1, abs(values[0])), (name, batch, first)
    slowest = max(answer["first"] for answer in first.values())
    # A call of many seconds is not repeated: warming up does not show in it.
    rounds = 0 if slowest > 15 else min(arguments.rounds, 3) if slowest > 2 else arguments.rounds
    times = race(workers, list(first), name, batch, rounds)
    return {
        contestant: {
            "seconds": statistics.median(times[contestant] or [answer["first"]]),
            "megabytes": answer["bytes"] / 2**20,
        }
        for contestant, answer in first.items()
    }


def race(workers, contestants, name, batch, rounds):
    """Contestant → seconds of each round."""
    times = {contestant: [] for contestant in contestants}
    if not rounds:
        return times
    with contextlib.ExitStack() as stack:
        asks = {worker: stack.enter_context(worker.fresh()) for worker in set(workers.values())}
        for contestant in contestants:
            asks[workers[contestant]]({"prepare": [contestant, name, batch]})
        for _ in range(rounds):
            for contestant in contestants:
                answer = asks[workers[contestant]]({"run": [contestant, name, batch]})
                times[contestant].append(answer["seconds"])
    return times


def line_of(name, batch, results):
    """A row of the table."""
    ours = results["ours"]

    def against(contestant, key):
        return f"{results[contestant][key] / ours[key]:.1f}" if contestant in results else "–"

    cells = [name, f"{batch:,}", f"{1e3 * ours['seconds']:,.1f}", f"{ours['megabytes']:,.0f}"]
    for contestant in ("dense", "published", "torch"):
        cells += [against(contestant, "seconds"), against(contestant, "megabytes")]
    return "| " + " | ".join(cells) + " |"


HEADER = [
    "loss",
    "batch",
    "ms",
    "MB",
    *(
        f"{who}: {what}"
        for who in ("dense", "published", "PyTorch")
        for what in ("× time", "× memory")
    ),
]


def draw(table, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from keras_sslmeta.visualization import palette

    names = list(dict.fromkeys(name for name, _ in table))
    figure, axes = plt.subplots(
        2, len(names), figsize=(2.6 * len(names), 5.4), sharex=True, sharey="row", squeeze=False
    )
    colors = dict(zip(NAMES, palette.COLORS, strict=False))
    for column, name in enumerate(names):
        for row, key in enumerate(("seconds", "megabytes")):
            for contestant in NAMES:
                points = [
                    (batch, r[contestant][key])
                    for (n, batch), r in table.items()
                    if n == name and contestant in r
                ]
                if points:
                    axes[row, column].loglog(
                        *zip(*points, strict=True),
                        "o-",
                        ms=3,
                        color=colors[contestant],
                        label=NAMES[contestant],
                    )
            axes[row, column].grid(alpha=0.3)
        axes[0, column].set_title(name, fontsize=9)
        axes[1, column].set_xlabel("batch")
    axes[0, 0].set_ylabel("seconds, loss and gradient")
    axes[1, 0].set_ylabel("peak MB above inputs")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[64, 256, 1024, 4096, 16384, 65536]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-limit", type=float, default=12, help="GB for a dense contestant")
    parser.add_argument("--torch-python", help="interpreter with PyTorch and lightly")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(prepare_tensorflow())
        return

    rate = multiply_rate()
    workers = workers_of(arguments)
    cores = len(os.sched_getaffinity(0))
    about = [
        f"Loss and gradient, dimension {DIM}, two views a sample, T = {TEMPERATURE}; {cores} cores, "
        f"{platform.machine()}; multiply rate {rate / 1e9:.0f} GFLOP/s",
        f"medians of {arguments.rounds} interleaved rounds (3 where one takes seconds, one above 15 s)",
        "× is how many times as long, or as much memory, as ours",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    print("\n".join(about), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = arguments.out / "losses.json"
    table = json.loads(stored.read_text()) if stored.exists() else {}
    for name in arguments.losses:
        for batch in arguments.batches:
            results = measure(workers, name, batch, arguments)
            table[f"{name} {batch}"] = results
            stored.write_text(json.dumps(table, indent=1) + "\n")
            print(line_of(name, batch, results), flush=True)
    for worker in set(workers.values()):
        worker.close()

    rows = {(key.split()[0], int(key.split()[1])): results for key, results in table.items()}
    rows = dict(sorted(rows.items(), key=lambda row: (LOSSES.index(row[0][0]), row[0][1])))
    lines = [*about, *(line_of(name, batch, results) for (name, batch), results in rows.items())]
    if ("NTXent", 4096) in rows:
        achieved = 4 * 8192**2 * DIM / rows["NTXent", 4096]["ours"]["seconds"]
        share = f"{achieved / 1e9:.0f} GFLOP/s, {100 * achieved / rate:.0f}% of the multiply rate"
        lines.append(f"\nNTXent at 4,096: {share}")
        print(lines[-1])
    (arguments.out / "losses.md").write_text("\n".join(lines) + "\n")
    draw(rows, arguments.out / "losses.png")
    print(f"Wrote losses.md, losses.json and losses.png in {arguments.out}")


if __name__ == "__main__":
    main()
