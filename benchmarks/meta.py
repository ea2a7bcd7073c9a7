"""MAML's meta-steps per second against learn2learn's, side by side, from one run.

    python benchmarks/meta.py [--rounds 7] [--size 28 84] [--torch-python PATH] [--quick] [--out DIRECTORY]

Two settings, first and second order each: that of learn2learn's Omniglot example with its OmniglotCNN
(5-way 1-shot, 32 tasks a step, 1 query a class, 1 inner step at 0.5, four strided convolutions of 64
filters, 28×28), and that of mini-ImageNet with its MiniImagenetCNN of 32 filters (5-way 1-shot, 4 tasks, 15
queries a class, 5 inner steps at 0.01, max-pooling; `--size`: 28×28×1, or else three channels). Both sides
have the same weights and the same synthetic episodes in memory, cross-entropy, accuracy of the queries and
Adam outside. A meta-step is what their users run, its Python included: the function that `fit` calls for
each batch, metrics and all, and learn2learn's loop over tasks (clone, adapt, backward, average, step).
After two steps both must have the same loss.

The contestants take turns, each in a process of its own, and medians are compared. TensorFlow runs with its
default threads, with one intra-op thread and two inter-op threads (two tasks at once), and with one of
either; PyTorch with its default and with one. `--torch-python` names an interpreter with PyTorch and
learn2learn where they are not in this one; without, their columns are empty.

Floating-point operations are those that the mathematics needs: convolutions and the head, forward
2·k²·cin·cout·h·w an image, backward twice that; second order adds twice forward and backward of every inner
step; what is done again to save memory does not count. They are divided by what large float32 matrices
reach on as many cores. Memory and traces by number of inner steps: maml_memory.py.

Prints a table, and writes meta_speed.md.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import contextlib
import dataclasses
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from worker import Worker, serve

WAYS = 5
META_LEARNING_RATE = 0.003  # learn2learn's examples'.
MATRIX = 2048  # Side of those whose products measure the machine.
WARM_UP = 2  # Steps before any is measured; the loss after them is compared.


@dataclasses.dataclass
class Setting:
    """Episodes and network. Classes have one support sample each."""

    title: str
    tasks: int
    queries: int
    inner_steps: int
    inner_learning_rate: float
    filters: int
    size: int
    channels: int
    is_pooled: bool  # Max-pooling and a head on all features, or strides and their mean.

    def sides(self):
        """Sides of the outputs of the four convolutions."""
        if not self.is_pooled:
            return [-(-self.size // 2**i) for i in range(1, 5)]
        return [self.size // 2**i for i in range(4)]

    def features(self):
        return self.filters * ((self.size // 16) ** 2 if self.is_pooled else 1)

    def weights(self):
        """Kernel, bias, scale and offset of each convolution, kernel and bias of the head; as in Keras."""
        rng, weights, channels = np.random.default_rng(0), [], self.channels
        for _ in range(4):
            kernel = rng.standard_normal((3, 3, channels, self.filters)) / np.sqrt(4.5 * channels)
            zeros = np.zeros(self.filters)
            weights += [kernel, zeros, rng.uniform(size=self.filters), zeros]
            channels = self.filters
        head = rng.standard_normal((self.features(), WAYS)) / np.sqrt(self.features())
        return [w.astype("float32") for w in (*weights, head, np.zeros(WAYS))]

    def episodes(self):
        """Images, `(tasks, samples, size, size, channels)`, of support and queries, and their labels."""
        rng = np.random.default_rng(1)
        shape = (self.size, self.size, self.channels)
        means = rng.uniform(size=(self.tasks, WAYS, 1, *shape))
        parts = {}
        for part, each in (("support", 1), ("query", self.queries)):
            noise = rng.uniform(size=(self.tasks, WAYS, each, *shape))
            images = ((means + noise) / 2).reshape(self.tasks, WAYS * each, *shape)
            parts[f"{part}_x"] = images.astype("float32")
            parts[f"{part}_y"] = np.tile(np.repeat(np.arange(WAYS), each), (self.tasks, 1))
        return parts

    def operations(self, second_order):
        """Floating-point operations of one meta-step."""
        forward, channels = 2 * self.features() * WAYS, self.channels
        for side in self.sides():
            forward += 2 * 9 * channels * self.filters * side**2
            channels = self.filters
        passes = self.inner_steps * (9 if second_order else 3) + 3 * self.queries
        return self.tasks * WAYS * passes * forward


def omniglot(tasks=32):
    return Setting("OmniglotCNN 64, 28×28×1", tasks, 1, 1, 0.5, 64, 28, 1, is_pooled=False)


def mini_imagenet(size, tasks=4):
    channels = 1 if size == 28 else 3
    title = f"MiniImagenetCNN 32, {size}×{size}×{channels}"
    return Setting(title, tasks, 15, 5, 0.01, 32, size, channels, is_pooled=True)


# ------------------------------------------------------------------ ours


def network_of(setting):
    import keras

    layers = [keras.Input((setting.size, setting.size, setting.channels))]
    for _ in range(4):
        strides = 1 if setting.is_pooled else 2
        layers += [
            keras.layers.Conv2D(setting.filters, 3, strides, padding="same"),
            keras.layers.BatchNormalization(epsilon=1e-5),  # PyTorch's.
            keras.layers.ReLU(),
            *([keras.layers.MaxPooling2D()] if setting.is_pooled else []),
        ]
    pooling = keras.layers.Flatten if setting.is_pooled else keras.layers.GlobalAveragePooling2D
    network = keras.Sequential([*layers, pooling(), keras.layers.Dense(WAYS)])
    weights = setting.weights()
    assert network.count_params() - 8 * setting.filters == sum(w.size for w in weights)
    for variable, value in zip(network.trainable_variables, weights, strict=True):
        variable.assign(value)
    return network


def step_of(setting, second_order):
    """A function that takes a meta-step and gives the mean loss of those since the warm-up."""
    import keras
    import tensorflow as tf

    import keras_sslmeta as ksm

    maml = ksm.MAML(
        network_of(setting),
        inner_steps=setting.inner_steps,
        inner_learning_rate=setting.inner_learning_rate,
        second_order=second_order,
    )
    maml.compile(
        keras.optimizers.Adam(META_LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    episodes = setting.episodes()
    query_y = episodes.pop("query_y")
    batches = iter(tf.data.Dataset.from_tensors((episodes, query_y)).repeat())
    maml.make_train_function()  # What `fit` calls.

    def run():
        return float(maml.train_function(batches)["loss"])

    for _ in range(WARM_UP):
        run()
    maml.reset_metrics()
    return run


def multiplication():
    """One product of large matrices, after a few to warm up."""
    import tensorflow as tf

    a = tf.random.stateless_normal([MATRIX, MATRIX], seed=[0, 1])
    for _ in range(5):
        tf.matmul(a, a).numpy()
    return lambda: float(tf.matmul(a, a)[0, 0])


def prepare_tensorflow():
    import tensorflow as tf

    import keras_sslmeta  # noqa: F401  (before the worker forks)

    def prepare(threads, setting, second_order):
        intra, inter = threads
        tf.config.threading.set_intra_op_parallelism_threads(intra)
        tf.config.threading.set_inter_op_parallelism_threads(inter)
        if setting is None:
            return multiplication()
        return step_of(Setting(**setting), second_order)

    return prepare


# ------------------------------------------------------------------ the run

# Contestant → its threads, 0 for the library's default: intra-op and inter-op ones for TensorFlow.
OURS = {"ours": (0, 0), "ours, 1 + 2": (1, 2), "ours, 1": (1, 1)}
THEIRS = {"learn2learn": 0, "learn2learn, 1": 1}


def workers_of(arguments):
    """Workers by contestant, each waiting for its turn."""
    workers = {name: Worker([sys.executable, __file__, "--worker"]) for name in OURS}
    python = arguments.torch_python or sys.executable
    reference = str(Path(__file__).with_name("meta_torch.py"))
    command = [python, "-W", "ignore", "-c", "import torch, learn2learn"]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        workers |= {name: Worker([python, "-W", "ignore", reference]) for name in THEIRS}
    else:
        print("learn2learn is not installed here: its columns are empty (see --torch-python).")
    return workers


def multiply_rate(worker, threads):
    """Floating-point operations a second of large float32 products, at their best."""
    question = [threads, None, False]
    with worker.fresh() as ask:
        ask({"prepare": question})
        best = min(ask({"run": question})["seconds"] for _ in range(10))
    return 2 * MATRIX**3 / best


def measure(workers, setting, second_order, rounds):
    """Contestant → seconds of a meta-step."""
    threads = {**OURS, **THEIRS}
    times, values = {name: [] for name in workers}, {}
    questions = {
        name: [threads[name], dataclasses.asdict(setting), second_order] for name in workers
    }
    with contextlib.ExitStack() as stack:
        asks = {name: stack.enter_context(w.fresh()) for name, w in workers.items()}
        for name, ask in asks.items():
            values[name] = ask({"prepare": questions[name]})["value"]
        spread = max(values.values()) - min(values.values())
        assert spread < 0.02 * max(1, values["ours"]), (setting, second_order, values)
        for _ in range(rounds):
            for name, ask in asks.items():
                times[name].append(ask({"run": questions[name]})["seconds"])
    return {name: statistics.median(several) for name, several in times.items()}


HEADER = [
    "network, images",
    "order",
    *(f"{name}: steps/s" for name in (*OURS, *THEIRS)),
    "best : best",
    "default : default",
    "1 : 1",
    "GFLOP a step",
    "ours: % of rate",
    "learn2learn: % of rate",
]


def line_of(setting, second_order, seconds, rate):
    """A row of the table. Ratios are speeds, ours to learn2learn's."""

    def ratio(ours, theirs):
        known = [seconds[name] for name in theirs if name in seconds]
        return f"{min(known) / min(seconds[name] for name in ours):.2f}" if known else "–"

    def share(names):
        known = [seconds[name] for name in names if name in seconds]
        return f"{100 * operations / min(known) / rate:.0f}" if known else "–"

    operations = setting.operations(second_order)
    cells = [
        setting.title,
        "second" if second_order else "first",
        *(f"{1 / seconds[n]:.2f}" if n in seconds else "–" for n in (*OURS, *THEIRS)),
        ratio(OURS, THEIRS),
        ratio(["ours"], ["learn2learn"]),
        ratio(["ours, 1"], ["learn2learn, 1"]),
        f"{operations / 1e9:.1f}",
        share(OURS),
        share(THEIRS),
    ]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--size", type=int, nargs="+", default=[28, 84], help="mini-ImageNet's side"
    )
    parser.add_argument("--torch-python", help="interpreter with PyTorch and learn2learn")
    parser.add_argument("--quick", action="store_true", help="few tasks, one round, 28×28 alone")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(prepare_tensorflow())
        return

    settings = [omniglot(), *(mini_imagenet(size) for size in arguments.size)]
    rounds = arguments.rounds
    if arguments.quick:
        settings, rounds = [omniglot(tasks=4), mini_imagenet(28, tasks=2)], 1
    workers = workers_of(arguments)
    rates = {name: multiply_rate(workers["ours"], OURS[name]) for name in ("ours", "ours, 1")}
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    lines = [
        f"MAML, {WAYS}-way 1-shot, {len(os.sched_getaffinity(0))} cores, {platform.machine()}, load "
        f"before the run {load}; medians of {rounds} interleaved rounds",
        f"multiply rate {rates['ours'] / 1e9:.0f} GFLOP/s, on one thread {rates['ours, 1'] / 1e9:.0f}; "
        "% of it are of the best column's, with all cores",
        "threads: default, `1 + 2` (one intra-op, two inter-op), `1` (one in all)",
        "ratios are of speeds, ours to learn2learn's",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    print("\n".join(lines), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for setting in settings:
        for second_order in (False, True):
            seconds = measure(workers, setting, second_order, rounds)
            lines.append(line_of(setting, second_order, seconds, rates["ours"]))
            print(lines[-1], flush=True)
            (arguments.out / "meta_speed.md").write_text("\n".join(lines) + "\n")
    for worker in workers.values():
        worker.close()
    print(f"Wrote meta_speed.md in {arguments.out}")


if __name__ == "__main__":
    main()
