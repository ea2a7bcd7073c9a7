"""Images per second of the self-supervised methods against the least that they need, and against lightly.

    python benchmarks/ssl_step.py [--encoder conv4 resnet18] [--methods SimCLR BYOL] [--batch 256]
                                  [--rounds 5] [--steps N] [--torch-python PATH] [--out DIRECTORY]

Training steps on views that lie in memory, float32, two of 32×32 an image, without augmentation. Columns:

* `fit`: the method's own `fit`, from the beginning of its first batch to the end of its last, callbacks,
  metrics and Python between batches included;
* `networks`: a hand-written `tf.function` that runs all networks of the method on the same views, heads and
  momentum network too, and trains them with the same optimiser on a trivial loss, the mean of squares. What
  `fit` takes beyond is the method's loss, queue and moving average, and Keras's training loop;
* `encoder`: the same of the encoder alone, on those views of which it gets a gradient (MoCo: one);
* `lightly`: its heads, losses, memory banks and moving averages in PyTorch, in the loop that its examples
  have; pytorch-metric-learning's loss for SupCon, PyTorch's cross-entropy for MoCo v3: lightly lacks both.

Encoders: `resnet18` with a 3×3 stem and no max-pooling, and `conv4`, four 3×3 convolutions; heads 512 wide,
the same for all columns (ssl_networks.py); a queue of 4,096; SGD with momentum 0.9. Both sides start from the
same weights, and their mean losses over the first steps, which are not timed and for which PyTorch normalises
both views at once as we do, must agree within 0.1% (10% for LeJEPA, whose directions are random; NNCLR's
differ: lightly's takes the other view's samples for negatives too).

The contestants take turns, and medians of the rounds are compared. `--torch-python` names an interpreter with
PyTorch and lightly where they are not in this one; without, their column is empty. A step of ResNet-18 at
batch 256 is 1.7 TFLOP and takes some 20 s on two cores, so one is timed a round, and twenty of `conv4`.

The last rows are of the input pipeline: images per second, two views each, of `SimCLRAugmentation` for
CIFAR-10 as a model calls it, and from `data.two_views`, which is `tf.data`; of lightly's `SimCLRTransform` in
one process; and how long the step of SimCLR takes in comparison. Below 1, the pipeline is the bottleneck.

Prints a table, and writes ssl_step.md, ssl_step.json and ssl_step.png. What ssl_step.json in that folder
holds already is kept: a run of some methods replaces their rows alone.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import contextlib
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ssl_networks import ENCODERS, HEADS
from worker import Worker

COLUMNS = ("fit", "networks", "encoder", "lightly")
PIPELINES = ("in the model", "tf.data", "SimCLRTransform")
STEPS = {"conv4": 20, "resnet18": 1}
RATE, MOMENTUM = 0.01, 0.99
QUEUE = 4096
# Relative differences of mean losses that ours and lightly's may have.
TOLERANCES = dict.fromkeys(HEADS["short"], 0.001) | {"LeJEPA": 0.1, "NNCLR": None}


@dataclasses.dataclass
class Setting:
    method: str = "SimCLR"
    encoder: str = "conv4"
    batch: int = 256
    steps: int = 1

    def heads(self):
        return HEADS["short"][self.method]

    def views(self):
        """Coarse patterns with noise, `(batch, 2, 32, 32, 3)` from 0 to 255, and ten labels."""
        rng = np.random.default_rng(0)
        coarse = rng.uniform(0, 255, size=(self.batch, 1, 4, 4, 3)).repeat(8, 2).repeat(8, 3)
        noise = rng.uniform(0, 255, size=(self.batch, 2, 32, 32, 3))
        return ((coarse + noise) / 2).astype("float32"), np.arange(self.batch) % 10

    def queue(self):
        """Unit vectors, of which queues are full at first."""
        vectors = np.random.default_rng(1).standard_normal((QUEUE, self.heads()[0].output_dim))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")

    def images(self):
        return self.views()[0][:, 0].astype("uint8")


def timed_loop(step, steps):
    """A function that takes so many steps, and gives their mean value and seconds a step."""

    def run():
        start = time.perf_counter()
        values = [step() for _ in range(steps)]
        return sum(values) / steps, (time.perf_counter() - start) / steps

    return run


def answering(makers):
    """For `serve`: a question prepares its contestant when it first comes, and is answered by a run."""
    kept = {}

    def prepare(contestant, setting):
        key = contestant, *setting.values()
        if key not in kept:
            kept[key] = makers[contestant](Setting(**setting))
        return kept[key]

    return prepare


# ------------------------------------------------------------------ the run


def workers_of(arguments):
    """Workers by contestant, each waiting for its turn. Those of TensorFlow share one."""
    here = Path(__file__)
    ours = Worker([sys.executable, str(here.with_name("ssl_step_keras.py"))])
    workers = dict.fromkeys((*COLUMNS[:3], *PIPELINES[:2]), ours)
    python = arguments.torch_python or sys.executable
    reference = str(here.with_name("ssl_step_torch.py"))
    command = [python, "-W", "ignore", "-c", "import torch, lightly"]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        theirs = Worker([python, "-W", "ignore", reference])
        workers |= {"lightly": theirs, "SimCLRTransform": theirs}
    else:
        print("lightly is not installed here: its column is empty (see --torch-python).")
    return workers


def measure(workers, contestants, setting, rounds):
    """Contestant → median seconds a step."""
    contestants = [name for name in contestants if name in workers]
    question = dataclasses.asdict(setting)
    times = {name: [] for name in contestants}
    with contextlib.ExitStack() as stack:
        used = {workers[name] for name in contestants}
        asks = {worker: stack.enter_context(worker.fresh()) for worker in used}

        def ask(name):
            return asks[workers[name]]({"prepare": [name, question]})["value"]

        first = {name: ask(name)[0] for name in contestants}
        check(setting, first)
        for _ in range(rounds):
            for name in contestants:
                times[name].append(ask(name)[1])
    return {name: statistics.median(several) for name, several in times.items()}


def check(setting, losses):
    """Ours and lightly's must agree before they are compared."""
    tolerance = TOLERANCES[setting.method]
    if {"fit", "lightly"} <= losses.keys() and tolerance is not None:
        difference = abs(losses["fit"] - losses["lightly"])
        assert difference <= tolerance * max(1, abs(losses["fit"])), (setting, losses)


HEADER = [
    "method",
    "encoder",
    "batch",
    "fit, images/s",
    "networks",
    "encoder alone",
    "lightly",
    "fit over networks",
    "fit over encoder",
    "fit : lightly",
]
PIPELINE_HEADER = ["augmentation", "batch", "images/s"]


def line_of(row):
    """A row of the table. Overheads are of time, the ratio is of speeds."""
    seconds = row["seconds"]
    speeds = [f"{row['batch'] / seconds[c]:,.1f}" if c in seconds else "–" for c in COLUMNS]
    overheads = [f"{100 * (seconds['fit'] / seconds[c] - 1):+.1f}%" for c in COLUMNS[1:3]]
    ratio = f"{seconds['lightly'] / seconds['fit']:.2f}" if "lightly" in seconds else "–"
    cells = [row["method"], row["encoder"], str(row["batch"]), *speeds, *overheads, ratio]
    return "| " + " | ".join(cells) + " |"


def pipeline_lines(table):
    """The augmentation against the step of SimCLR, encoder by encoder."""
    lines = []
    for row in (row for row in table.values() if "pipeline" in row):
        steps = {
            encoder: table[f"SimCLR {encoder} {row['batch']}"]["seconds"]["fit"]
            for encoder in ENCODERS
            if f"SimCLR {encoder} {row['batch']}" in table
        }
        head = [*PIPELINE_HEADER, *(f"SimCLR's step on {name}, × as long" for name in steps)]
        lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for name, seconds in row["seconds"].items():
            ratios = [f"{step / seconds:.1f}" for step in steps.values()]
            cells = [name, str(row["batch"]), f"{row['batch'] / seconds:,.0f}", *ratios]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from keras_sslmeta.visualization import palette

    groups = list(dict.fromkeys((row["encoder"], row["batch"]) for row in rows))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(5.5 * len(groups), 5.4), squeeze=False, layout="constrained"
    )
    for ax, group in zip(axes[0], groups, strict=True):
        members = [row for row in rows if (row["encoder"], row["batch"]) == group]
        for i, column in enumerate(COLUMNS):
            points = [
                (place + 0.2 * (i - 1.5), group[1] / row["seconds"][column])
                for place, row in enumerate(members)
                if column in row["seconds"]
            ]
            if points:
                ax.barh(*zip(*points, strict=True), 0.19, color=palette.COLORS[i], label=column)
        ax.set_yticks(range(len(members)), [row["method"] for row in members])
        ax.invert_yaxis()
        ax.set(title=f"{group[0]}, batch {group[1]}", xlabel="images a second")
        ax.grid(axis="x", alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def write(table, about, out):
    """The stored rows as a table and a picture."""
    order = [f"{method} {encoder}" for encoder in ENCODERS for method in HEADS["short"]]
    rows = [row for row in table.values() if "pipeline" not in row]
    rows.sort(key=lambda row: (order.index(f"{row['method']} {row['encoder']}"), row["batch"]))
    head = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines = [*about, "", *head, *map(line_of, rows), *pipeline_lines(table)]
    (out / "ssl_step.md").write_text("\n".join(lines) + "\n")
    (out / "ssl_step.json").write_text(json.dumps(table, indent=1) + "\n")
    if rows:
        draw(rows, out / "ssl_step.png")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(HEADS["short"])
    parser.add_argument("--encoder", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--batch", type=int, default=256, help="(256)")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken (5)")
    parser.add_argument("--steps", type=int, help="a round (20 of conv4, 1 of resnet18)")
    parser.add_argument("--torch-python", help="interpreter with PyTorch and lightly")
    parser.add_argument("--out", type=Path, default=Path(), help="folder (the current one)")
    arguments = parser.parse_args()
    workers = workers_of(arguments)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    about = [
        f"Training steps on ready-made views of 32×32, {len(os.sched_getaffinity(0))} cores, "
        f"{platform.machine()}, load before the run {load}; medians of {arguments.rounds} "
        "interleaved rounds",
        "overheads are of time; `fit : lightly` is of speeds",
    ]
    print("\n".join(about), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = arguments.out / "ssl_step.json"
    table = json.loads(stored.read_text()) if stored.exists() else {}
    for encoder in arguments.encoder:
        for method in arguments.methods:
            steps = arguments.steps or STEPS[encoder]
            setting = Setting(method, encoder, arguments.batch, steps)
            seconds = measure(workers, COLUMNS, setting, arguments.rounds)
            row = {**dataclasses.asdict(setting), "seconds": seconds}
            table[f"{method} {encoder} {arguments.batch}"] = row
            write(table, about, arguments.out)
            print(line_of(row), flush=True)
    setting = Setting(batch=arguments.batch, steps=arguments.steps or STEPS["conv4"])
    seconds = measure(workers, PIPELINES, setting, arguments.rounds)
    table[f"pipeline {arguments.batch}"] = {
        "pipeline": True,
        "batch": arguments.batch,
        "seconds": seconds,
    }
    write(table, about, arguments.out)
    print("\n".join(pipeline_lines(table)))
    for worker in set(workers.values()):
        worker.close()
    print(f"Wrote ssl_step.md, ssl_step.json and ssl_step.png in {arguments.out}")


if __name__ == "__main__":
    main()
