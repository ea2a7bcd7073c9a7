"""Every meta-learner on the same unseen characters: 5-way 1-shot Omniglot, or any folder of images a class.

    python benchmarks/omniglot.py --data_dir DIR                          # all methods, small protocol
    python benchmarks/omniglot.py --data_dir DIR --methods MAML --seeds 0 1 2
    python benchmarks/omniglot.py --data_dir DIR --full --steps 60000     # the papers' protocol
    python benchmarks/omniglot.py --folder mini_imagenet --size 84 --width 32 --tasks 4 --queries 15 \\
        --inner_steps 5 --inner_rate 0.05 --steps 60000

Trains each method for --steps steps of --tasks tasks on the training classes, with their rotations, and tests
it on 600 episodes of the test classes, the same for all: 15 queries a class, and one query a class as
learn2learn's example has it. Conv4 on batch statistics; prototypes on moving ones. The settings of each
method are in few_shot_methods.py.

--folder holds `train` and `test`, each with a folder of images for every class.

A run saves itself in --work after every epoch of 100 steps; called again, the command goes on where it
stopped, skips what is done, and makes the table and the picture of all runs in --work: omniglot.md and
omniglot.png there.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import pathlib
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", help="where TFDS keeps its data sets")
parser.add_argument("--download", action="store_true", help="let TFDS download Omniglot")
parser.add_argument("--folder", help="a folder of images a class, in place of Omniglot")
parser.add_argument("--size", type=int, default=28, help="side of the images (28)")
parser.add_argument("--full", action="store_true", help="all of Omniglot, not the small protocol")
parser.add_argument("--methods", nargs="+", help="which (all)")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--tasks", type=int, default=32)
parser.add_argument("--ways", type=int, default=5)
parser.add_argument("--shots", type=int, default=1)
parser.add_argument("--queries", type=int, default=1, help="a class, in training (1)")
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--inner_steps", type=int, default=1)
parser.add_argument("--inner_rate", type=float, default=0.5)
parser.add_argument("--episodes", type=int, default=600, help="test episodes (600)")
parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("omniglot_runs"))
parser.add_argument("--default_threads", action="store_true", help="leave TensorFlow's threads be")
parser.add_argument("--table", action="store_true", help="train nothing, only show what is done")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf
from few_shot_methods import METHODS, Setting, train_episodes

import keras_sslmeta as ksm

EPOCH = 100


def omniglot():
    data = ksm.data.load(
        "omniglot",
        arguments.data_dir,
        download=arguments.download,
        image_size=arguments.size,
        splits=("train", "test") if arguments.full else ("small1", "small2"),
    )
    unseen = ~np.isin(data.train_y, data.test_y)  # small1 and small2 share two alphabets.
    train = data.train_x[unseen][..., :1], data.train_y[unseen]
    return ksm.data.ImageData(
        "omniglot", *train, data.test_x[..., :1], data.test_y, data.class_names
    )


def of_folder():
    parts = []
    for part in ("train", "test"):
        dataset = keras.utils.image_dataset_from_directory(
            pathlib.Path(arguments.folder) / part,
            image_size=(arguments.size, arguments.size),
            batch_size=None,
            shuffle=False,
            verbose=False,
        )
        names = dataset.class_names
        pairs = [(image.numpy().round().astype("uint8"), int(label)) for image, label in dataset]
        parts += [np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs])]
    return ksm.data.ImageData("folder", *parts, names)


def load(saved, name, data, setting, seed):
    if saved.exists():
        return keras.models.load_model(saved)
    keras.utils.set_random_seed(seed)
    learner = METHODS[name].build(data.train_x.shape[1:], setting)
    learner.compile(
        METHODS[name].optimizer(setting), loss=METHODS[name].loss(), metrics=["accuracy"]
    )
    return learner


def trained(name, data, setting, seed):
    """The learner after all steps, and its record; goes on from what is saved."""
    saved, kept = (arguments.work / f"{name}_{seed}.{end}" for end in ("keras", "json"))
    record = {"method": name, "seed": seed, "setting": vars(setting), "seconds": 0.0}
    record |= {"loss": [], "accuracy": []}
    if kept.exists():
        before = json.loads(kept.read_text())
        if before["setting"] | {"steps": 0} != vars(setting) | {"steps": 0}:
            raise SystemExit(f"{kept} was made with other settings: choose another --work")
        record = before
    learner = load(saved, name, data, setting, seed)
    done = len(record["loss"])
    if done * EPOCH >= setting.steps:
        return learner, record
    start = done * EPOCH * setting.tasks
    batches = iter(train_episodes(name, data, setting, seed, start, arguments.work))
    while done * EPOCH < setting.steps:
        began = time.perf_counter()
        totals = []
        for _ in range(EPOCH):
            logs = learner.train_on_batch(*next(batches), return_dict=True)
            totals.append([float(logs[key]) for key in ("loss", "accuracy")])
        learner.reset_metrics()
        record["seconds"] += time.perf_counter() - began
        # Keras's values are means since the last reset.
        for key, value in zip(("loss", "accuracy"), totals[-1], strict=True):
            record[key].append(round(value, 4))
        done += 1
        learner.save(saved)
        kept.write_text(json.dumps(record))
        print(
            f"{name}, seed {seed}: {done * EPOCH} steps, {record['seconds']:.0f} s, training accuracy "
            f"{record['accuracy'][-1]:.3f}",
            flush=True,
        )
    return learner, record


def tested(learner, record, data):
    """Adds test results to the record."""
    test = data.test_x, data.test_y
    form = {"ways": arguments.ways, "shots": arguments.shots, "episodes": arguments.episodes}
    for key, queries in (("test", 15), ("test_one_query", 1)):
        result = ksm.evaluation.few_shot(learner, test, queries=queries, seed=1, verbose=0, **form)
        record[key] = [round(100 * result.accuracy, 2), round(100 * result.half_interval, 2)]
        record[key + "_episodes"] = [round(float(x), 4) for x in result.per_episode]
    if hasattr(learner, "predict_along"):
        episodes = ksm.data.episodes(test, queries=1, seed=1, **form)
        curve = ksm.evaluation.adaptation_curve(
            learner,
            episodes.batch(32),
            steps=5,
            metric=keras.metrics.sparse_categorical_accuracy,
            verbose=0,
        )
        record["after"] = [round(100 * float(x), 2) for x in curve.mean]
    kept = arguments.work / f"{record['method']}_{record['seed']}.json"
    kept.write_text(json.dumps(record))


def show():
    """The table of all runs, and their picture."""
    records = [json.loads(path.read_text()) for path in sorted(arguments.work.glob("*_*.json"))]
    records = [r for r in records if "test" in r]
    if not records:
        return
    records.sort(key=lambda r: (list(METHODS).index(r["method"]), r["seed"]))
    best = max(records, key=lambda r: r["test"][0])
    head = "| method | seed | steps | 15 queries | less the best | one query | after 1 step | seconds |"
    lines = [head, "|" + " --- |" * 8]
    for r in records:
        difference = np.subtract(r["test_episodes"], best["test_episodes"])
        half = 196 * difference.std(ddof=1) / len(difference) ** 0.5
        versus = "" if r is best else f"{100 * difference.mean():.1f} ± {half:.1f}"
        cells = [
            r["method"],
            str(r["seed"]),
            str(EPOCH * len(r["loss"])),
            *(f"{r[k][0]:.1f} ± {r[k][1]:.1f}" for k in ("test",)),
            versus,
            "{:.1f} ± {:.1f}".format(*r["test_one_query"]),
            f"{r['after'][1]:.1f}" if "after" in r else "",
            f"{r['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    print(text)
    (arguments.work / "omniglot.md").write_text(text + "\n")
    picture = matplotlib.figure.Figure(figsize=(11, 4.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    firsts = {r["method"]: r for r in reversed(records)}
    for name in METHODS:
        if name in firsts:
            accuracy = firsts[name]["accuracy"]
            left.plot(EPOCH * np.arange(1, len(accuracy) + 1), accuracy, label=name)
    left.set(xlabel="step", ylabel="accuracy on the method's own training tasks")
    left.legend(fontsize=8)
    results = {
        name: ksm.evaluation.FewShotResult(np.array(firsts[name]["test_episodes"]))
        for name in METHODS
        if name in firsts
    }
    ksm.visualization.plot_few_shot(results, ax=right)
    picture.savefig(arguments.work / "omniglot.png", dpi=110)


def main():
    if not arguments.default_threads:
        # Two tasks run at once, and small operations gain little from more than their share.
        tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 2) // 2))
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = ("ways", "shots", "queries", "tasks", "steps", "width", "inner_steps", "inner_rate")
    setting = Setting(
        **{name: getattr(arguments, name) for name in names}, invert=not arguments.folder
    )
    if not arguments.table:
        data = of_folder() if arguments.folder else omniglot()
        for seed in arguments.seeds:
            for name in arguments.methods or METHODS:
                learner, record = trained(name, data, setting, seed)
                if "test" not in record or len(record["test_episodes"]) != arguments.episodes:
                    tested(learner, record, data)
                keras.backend.clear_session()
    show()


if __name__ == "__main__":
    main()
