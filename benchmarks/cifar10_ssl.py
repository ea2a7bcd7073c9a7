"""Every self-supervised method on CIFAR-10, for the same images seen: neighbours and linear probes.

    python benchmarks/cifar10_ssl.py --data_dir DIR                            # all methods, two cores
    python benchmarks/cifar10_ssl.py --data_dir DIR --methods SimCLR BYOL --seeds 0 1 2
    python benchmarks/cifar10_ssl.py --data_dir DIR --recipe long --policy mixed_float16       # a GPU

Pretrains an encoder with each method on the 50,000 training images, without labels but for SupCon, and
measures its features: accuracy of weighted nearest neighbours among all training images (k = 200,
T = 0.1), and of a linear probe (logistic regression) on all labels and on 10% of them, on the 10,000
test images, beside raw pixels and the encoder before training. Intervals are 95%, over test images; they say
nothing about other seeds, which are rows of their own. The learning curves are of neighbours among the
first 10,000 training images, for the first 2,000 test images.

The short recipe, for two cores: four convolutions (`conv4`), heads 512 wide, batch 256, AdamW, 12 epochs,
which are 599,040 images seen, each as two views. The long recipe is that of lightly's CIFAR-10 benchmark:
ResNet-18 for 32×32, batch 128, SGD at 0.06 · batch / 128 with momentum 0.9 and decay 5e-4, along a cosine,
T = 0.5 for SimCLR, its heads and temperatures where it has the method, 200 epochs (`--epochs 800`). Both:
SimCLR's augmentation with jitter of half the strength and no blur. Three things differ from lightly's: MoCo
has one direction and batch normalisation over the whole batch, NNCLR the paper's negatives, and decay does
not go through the momentum. The settings of each method are in cifar10_methods.py, the networks in
ssl_networks.py.

A run saves itself in --work after every epoch of the short recipe, every tenth of the long one; called again,
the command goes on where it stopped, skips what is done, and makes the table and the picture of all runs in
--work: cifar10_ssl.md, cifar10_ssl.json and cifar10_ssl.png there.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import dataclasses
import json
import pathlib
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", help="where TFDS keeps its data sets")
parser.add_argument("--download", action="store_true", help="let TFDS download CIFAR-10")
parser.add_argument("--recipe", choices=("short", "long"), default="short")
parser.add_argument("--methods", nargs="+", help="such as SimCLR BYOL MoCo (all)")
parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(0)")
parser.add_argument("--epochs", type=int, help="of pretraining (12; 200)")
parser.add_argument("--batch", type=int, help="(256; 128)")
parser.add_argument("--train_size", type=int, help="training images (all)")
parser.add_argument("--test_size", type=int, help="test images (all)")
parser.add_argument("--stop_after", type=int, help="epochs of this call a run; it can go on later")
parser.add_argument("--k", type=int, default=200, help="neighbours (200)")
parser.add_argument("--policy", default="float32", help="dtype policy, such as mixed_float16")
parser.add_argument(
    "--work",
    type=pathlib.Path,
    default=pathlib.Path("cifar10_runs"),
    help="what runs save, and table and picture (cifar10_runs)",
)
parser.add_argument("--table", action="store_true", help="train nothing, only show what is done")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
from cifar10_methods import METHODS, RECIPES, compiled

import keras_sslmeta as ksm

CURVE = 10_000, 2_000  # Training and test images of the learning curve.
BASELINES = ("raw pixels", "untrained encoder")
MEASURES = {"knn": "neighbours", "linear": "linear", "linear_10": "linear, 10% of labels"}
# Inverse penalty of the probe on raw pixels, on all labels: choosing it on 3,072 numbers of 50,000 images
# would take longer than a run. Features choose theirs.
PIXELS_C = 1e-4


def cifar10():
    data = ksm.data.load("cifar10", arguments.data_dir, download=arguments.download)
    train, test = slice(arguments.train_size), slice(arguments.test_size)
    return dataclasses.replace(
        data,
        train_x=data.train_x[train],
        train_y=data.train_y[train],
        test_x=data.test_x[test],
        test_y=data.test_y[test],
    )


def setting_of(data):
    changes = {name: getattr(arguments, name) for name in ("epochs", "batch")}
    changes = {name: value for name, value in changes.items() if value is not None}
    changes["train_size"] = len(data.train_x)
    return dataclasses.replace(RECIPES[arguments.recipe], **changes)


# ------------------------------------------------------------------------------------- pretraining


def files(name, seed):
    return [arguments.work / f"{name}_{seed}.{end}" for end in ("keras", "json")]


def record_of(name, seed, setting):
    """What is kept of a run, or a new one."""
    kept = files(name, seed)[1]
    form = {**vars(setting), "policy": arguments.policy}
    if not kept.exists():
        return {
            "method": name,
            "seed": seed,
            "setting": form,
            "seconds": 0.0,
            "loss": [],
            "curve": {},
        }
    record = json.loads(kept.read_text())
    if record["setting"] != form:
        raise SystemExit(f"{kept} was made with other settings: choose another --work")
    return record


def trained(name, seed, data, setting):
    """The learner after all epochs, or those of this call, and its record; goes on from what is saved."""
    saved, kept = files(name, seed)
    record = record_of(name, seed, setting)
    if record["loss"]:
        learner = keras.models.load_model(saved)
    else:
        keras.utils.set_random_seed(seed)
        learner = compiled(name, setting)
    every = 1 if setting.recipe == "short" else 10
    last = min(setting.epochs, len(record["loss"]) + (arguments.stop_after or setting.epochs))
    while len(record["loss"]) < last:
        epoch = len(record["loss"])
        # A function of seed and epoch, so that a resumed run sees the same batches.
        order = np.random.default_rng((seed, epoch)).permutation(len(data.train_x))
        order = order[: len(order) // setting.batch * setting.batch]
        x, y = data.train_x[order], data.train_y[order]
        began = time.perf_counter()
        history = learner.fit(x, y, batch_size=setting.batch, shuffle=False, verbose=0)
        record["seconds"] += time.perf_counter() - began
        record["loss"].append(float(history.history["loss"][0]))
        done = epoch + 1
        if done % every == 0 or done == last:
            record["curve"][str(done)] = on_the_curve(learner, data)
            learner.save(saved)
            kept.write_text(json.dumps(record))
            print(
                f"{name}, seed {seed}: {done} epochs, {record['seconds']:.0f} s, loss "
                f"{record['loss'][-1]:.3f}, neighbours {100 * record['curve'][str(done)]:.1f}%",
                flush=True,
            )
    return learner, record


# --------------------------------------------------------------------------------------- measuring


def features_of(learner, images):
    """The encoder's, or pixels where there is no learner."""
    if learner is None:
        return images.reshape(len(images), -1).astype("float32") / 255
    return learner.predict(images, batch_size=256, verbose=0)


def on_the_curve(learner, data):
    train, test = (slice(n) for n in CURVE)
    return ksm.evaluation.knn_accuracy(
        features_of(learner, data.train_x[train]),
        data.train_y[train],
        features_of(learner, data.test_x[test]),
        data.test_y[test],
        k=arguments.k,
    )


def measured(learner, data):
    """Which test images each measure has right, as hexadecimal bits."""
    train = features_of(learner, data.train_x), data.train_y
    test = features_of(learner, data.test_x), data.test_y
    predicted = ksm.evaluation.knn_predict(*train, test[0], k=arguments.k)
    hits = {"knn": predicted == data.test_y}
    for name, fraction in (("linear", 1.0), ("linear_10", 0.1)):
        strength = PIXELS_C / fraction if learner is None else None
        result = ksm.evaluation.linear_probe(None, train, test, C=strength, fraction=fraction)
        hits[name] = result.ranks == 0
    return {name: np.packbits(right).tobytes().hex() for name, right in hits.items()}


def finish(record, learner, data):
    """Adds the measures to a record."""
    record |= {"hits": measured(learner, data), "test_size": len(data.test_x)}
    files(record["method"], record["seed"])[1].write_text(json.dumps(record))


def is_finished(record, data, epochs):
    return len(record["loss"]) >= epochs and record.get("test_size") == len(data.test_x)


def measure_baselines(data, setting, seed):
    for name in BASELINES:
        # Pixels have no seed: one row.
        record = record_of(name, 0 if name == "raw pixels" else seed, setting)
        if is_finished(record, data, epochs=0):
            continue
        keras.utils.set_random_seed(seed)
        learner = None if name == "raw pixels" else compiled("SimCLR", setting)
        record["curve"] = {"0": on_the_curve(learner, data)}
        finish(record, learner, data)


# ----------------------------------------------------------------------------------------- showing


def right(record, measure):
    """Per test image, 1 where it is right."""
    bits = np.frombuffer(bytes.fromhex(record["hits"][measure]), "uint8")
    return np.unpackbits(bits)[: record["test_size"]].astype(float)


def mean_and_half(values):
    """Percent, and half its 95% interval."""
    return 100 * values.mean(), 196 * values.std(ddof=1) / len(values) ** 0.5


def show():
    """The table of all runs, and their picture."""
    paths = sorted(arguments.work.glob("*_*.json"))
    records = [json.loads(path.read_text()) for path in paths if path.stem != "cifar10_ssl"]
    records = [record for record in records if "hits" in record]
    if not records:
        print(f"No run is finished in {arguments.work} yet.")
        return
    order = [*BASELINES, *METHODS]
    records.sort(key=lambda r: (order.index(r["method"]), r["seed"]))
    best = max(records, key=lambda r: right(r, "knn").mean())
    head = [
        "method",
        "seed",
        "epochs",
        MEASURES["knn"],
        "less the best",
        *list(MEASURES.values())[1:],
    ]
    lines = ["| " + " | ".join([*head, "seconds"]) + " |", "|" + " --- |" * (len(head) + 1)]
    table = []
    for r in records:
        values = {name: mean_and_half(right(r, name)) for name in MEASURES}
        versus = ""
        if r is not best and r["test_size"] == best["test_size"]:
            versus = "{:.1f} ± {:.1f}".format(*mean_and_half(right(r, "knn") - right(best, "knn")))
        cells = ["{:.1f} ± {:.1f}".format(*values[name]) for name in MEASURES]
        cells.insert(1, versus)
        seconds = f"{r['seconds']:.0f}" if r["loss"] else ""
        cells = [r["method"], str(r["seed"]), str(len(r["loss"])), *cells, seconds]
        lines.append("| " + " | ".join(cells) + " |")
        row = {name: [round(float(x), 2) for x in pair] for name, pair in values.items()}
        kept = {name: r[name] for name in ("method", "seed", "setting", "seconds", "loss", "curve")}
        table.append({**kept, **row})
    print("\n".join(lines))
    (arguments.work / "cifar10_ssl.md").write_text("\n".join(lines) + "\n")
    (arguments.work / "cifar10_ssl.json").write_text(json.dumps(table, indent=1) + "\n")
    draw(table, arguments.work / "cifar10_ssl.png")


def draw(table, path):
    """Learning curves, and the measures, of the first seed of each method."""
    firsts = {row["method"]: row for row in reversed(table)}
    firsts = {row["method"]: firsts[row["method"]] for row in table}
    colors = ksm.visualization.palette.COLORS
    picture = matplotlib.figure.Figure(figsize=(12.5, 4.8), layout="constrained")
    left, bars = picture.subplots(1, 2)
    for i, (name, row) in enumerate(firsts.items()):
        if name in BASELINES:
            dashes = ":" if name == "raw pixels" else "--"
            left.axhline(100 * row["curve"]["0"], color="#333333", linestyle=dashes, label=name)
        else:
            epochs = [int(epoch) for epoch in row["curve"]]
            values = [100 * value for value in row["curve"].values()]
            # Ten colours for eleven methods.
            style = "-" if i < len(colors) else "-."
            left.plot(epochs, values, style, color=colors[i % len(colors)], label=name, marker=".")
    left.set(xlabel="epoch", ylabel="neighbours' accuracy, % (10,000 and 2,000 images)")
    left.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    places = np.arange(len(firsts))
    for i, (measure, title) in enumerate(MEASURES.items()):
        pairs = np.array([row[measure] for row in firsts.values()])
        bars.barh(
            places + 0.27 * (i - 1),
            pairs[:, 0],
            0.25,
            xerr=pairs[:, 1],
            color=colors[i],
            label=title,
        )
    bars.set_yticks(places, list(firsts))
    bars.invert_yaxis()
    bars.set_xlabel("accuracy on the test images, %")
    bars.legend(fontsize=8)
    picture.savefig(path, dpi=110)


def main():
    keras.mixed_precision.set_dtype_policy(arguments.policy)
    unknown = set(arguments.methods or ()) - METHODS.keys()
    if unknown:
        raise SystemExit(f"--methods must be of {', '.join(METHODS)}. Received: {sorted(unknown)}")
    if not arguments.table:
        data = cifar10()
        arguments.work.mkdir(parents=True, exist_ok=True)
        setting = setting_of(data)
        for seed in arguments.seeds:
            measure_baselines(data, setting, seed)
            for name in arguments.methods or METHODS:
                if not is_finished(record_of(name, seed, setting), data, setting.epochs):
                    learner, record = trained(name, seed, data, setting)
                    if len(record["loss"]) == setting.epochs:
                        finish(record, learner, data)
                keras.backend.clear_session()
    show()


if __name__ == "__main__":
    main()
