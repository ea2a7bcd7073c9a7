"""Learns which labels to trust: one weight a training sample, by the gradient through the training itself.

    python examples/learn_sample_weights.py --data_dir ~/tensorflow_datasets
    python examples/learn_sample_weights.py --data_dir ~/tensorflow_datasets --download

Of some thousands of handwritten digits 40% carry a wrong label, nobody knows which, and for a few hundred
others the labels are sure. A network takes some tens of training steps on the doubtful digits, each weighed
by the sigmoid of a number of its own; how many of the sure ones it then gets right has an exact gradient
with respect to all these numbers, through every one of the steps. Each round starts from fresh weights and
in another order, so that what is learnt are the samples and not one course of training.

Then networks train in full on the doubtful and the sure digits together, and count on test images: with
all labels alike, with the learnt weights, and with the right labels only, as if somebody knew them; and one
on the sure digits alone. That last network is a detector too: a label that it finds unlikely is suspect.
What its probabilities do as weights stands beside.

Writes learn_sample_weights.png and learn_sample_weights.json into the current folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import time


def positive(text):
    """A positive whole number of the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return int(text)


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", help="where TFDS keeps its data sets")
parser.add_argument("--download", action="store_true", help="let TFDS download MNIST")
parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run for each (0 1 2)"
)
parser.add_argument("--samples", type=positive, default=5000, help="doubtful digits (5000)")
parser.add_argument("--sure", type=positive, default=500, help="digits with sure labels (500)")
parser.add_argument("--wrong", type=float, default=0.4, help="fraction of wrong labels (0.4)")
parser.add_argument("--steps", type=positive, default=40, help="steps to differentiate (40)")
parser.add_argument("--rounds", type=positive, default=80, help="steps of the weights (80)")
parser.add_argument("--epochs", type=positive, default=20, help="of the last trainings (20)")
arguments = parser.parse_args()
if arguments.samples < arguments.steps or not 0 < arguments.wrong < 1:
    parser.error("--samples must be at least --steps, and --wrong between 0 and 1")

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import scipy.stats
import tensorflow as tf
from sklearn.metrics import precision_recall_curve, roc_auc_score

import keras_sslmeta as ksm

started = time.perf_counter()

# ---------------------------------------------------------------------------------------- data
try:
    data = ksm.data.load("mnist", arguments.data_dir, download=arguments.download)
except ValueError as error:
    remedy = "\nAdd --download to let it." if "would download" in str(error) else ""
    raise SystemExit(f"{error}{remedy}") from None
train_x, test_x = (
    x.reshape(len(x), -1).astype("float32") / 255 for x in (data.train_x, data.test_x)
)
print(
    f"{data}\n{arguments.samples} digits, {100 * arguments.wrong:.0f}% of their labels wrong; "
    f"{arguments.sure} with sure labels; {arguments.rounds} rounds through {arguments.steps} steps"
)


def draw(random):
    """Digits with doubtful labels, whether each is wrong, and digits with sure ones."""
    chosen = random.permutation(len(train_x))[: arguments.samples + arguments.sure]
    x, y = train_x[chosen], data.train_y[chosen]
    is_wrong = random.random(arguments.samples) < arguments.wrong
    others = (y[: arguments.samples] + random.integers(1, 10, arguments.samples)) % 10
    given = np.where(is_wrong, others, y[: arguments.samples])
    doubtful = x[: arguments.samples], given
    return doubtful, is_wrong, (x[arguments.samples :], y[arguments.samples :])


def network(dropout=0.0):
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(64, activation="relu", kernel_initializer="he_normal"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


# ------------------------------------------------------------------------- learning the weights
def learn_weights(doubtful, sure, random):
    """A weight from 0 to 1 for each doubtful digit."""
    x, y = doubtful
    model = network(dropout=0.3)
    fit = ksm.meta.DifferentiableFit(model, keras.optimizers.Adam(3e-3), steps=arguments.steps)
    batch = len(x) // arguments.steps
    trust = tf.Variable(tf.zeros(len(x)))
    # Momentum, and one scale for all: Adam's scale for each would move the many digits whose
    # gradient is next to nothing as far as those that do harm.
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build([trust])
    bar = keras.utils.Progbar(arguments.rounds, unit_name="round", stateful_metrics=["sure"])
    for _ in range(arguments.rounds):
        order = random.permutation(len(x))[: batch * arguments.steps]
        order = order.reshape(arguments.steps, batch)
        start = network().trainable_variables
        with tf.GradientTape() as tape:
            weights = tf.gather(tf.sigmoid(trust), order)
            fitted = fit(x[order], y[order], weights, weights=start)
            # The probability of being right is bounded: cross-entropy would serve the few sure
            # digits that are hardest to read.
            chances = tf.nn.softmax(fitted(sure[0]))
            objective = 1 - tf.reduce_mean(tf.gather(chances, sure[1], batch_dims=1))
        gradient = tf.convert_to_tensor(tape.gradient(objective, trust))
        gradient /= tf.sqrt(tf.reduce_mean(gradient**2)) + 1e-12
        optimizer.apply([gradient], [trust])
        bar.add(1, values=[("sure", float(1 - objective))])
    return tf.sigmoid(trust).numpy()


# ---------------------------------------------------------------------------- the last trainings
def train(x, y, weights, random):
    """A trained network, and its test accuracy after each epoch of 50 steps."""
    model = network()
    order = random.permutation(len(x))
    batches = (
        tf.data.Dataset.from_tensor_slices((x[order], y[order], weights[order]))
        .shuffle(len(x), seed=int(random.integers(2**31)))
        .repeat()
        .batch(100)
    )
    history = model.fit(
        batches,
        steps_per_epoch=50,
        epochs=arguments.epochs,
        validation_data=(test_x, data.test_y),
        validation_batch_size=1000,
        shuffle=False,
        verbose=0,
    )
    return model, history.history["val_accuracy"]


TITLES = {
    "all": "all labels alike",
    "sure": "the sure digits alone",
    "likely": "by the sure digits' network",
    "learnt": "learnt weights",
    "right": "right labels only (bound)",
}
curves = {key: [] for key in TITLES}
detection = {"likely": [], "learnt": []}
below_half = {"precision": [], "recall": []}
seconds = []
for seed in arguments.seeds:
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    doubtful, is_wrong, sure = draw(random)
    print(f"\nSeed {seed}")
    began = time.perf_counter()
    weights = {"learnt": learn_weights(doubtful, sure, random)}
    seconds.append(round(time.perf_counter() - began, 1))
    ones = np.ones(arguments.sure, "float32")
    model, curve = train(*sure, ones, random)
    curves["sure"].append(curve)
    chances = keras.ops.softmax(model.predict(doubtful[0], batch_size=1000, verbose=0))
    weights["likely"] = np.take_along_axis(np.array(chances), doubtful[1][:, np.newaxis], 1)[:, 0]
    for key in detection:
        detection[key].append(float(roc_auc_score(~is_wrong, weights[key])))
    is_suspect = weights["learnt"] < 0.5
    below_half["precision"].append(100 * float(np.mean(is_wrong[is_suspect])))
    below_half["recall"].append(100 * float(np.mean(is_suspect[is_wrong])))
    weights["all"] = np.ones(arguments.samples, "float32")
    weights["right"] = (~is_wrong).astype("float32")
    x, y = (np.concatenate(pair) for pair in zip(doubtful, sure, strict=True))
    for key, values in weights.items():
        # A sample of weight 0 is one that isn't there: no batch has fewer of the others by it.
        values = np.concatenate([values, ones])
        kept = values > 0
        curves[key].append(train(x[kept], y[kept], values[kept], random)[1])
    print(
        f"AUC {detection['learnt'][-1]:.3f}, test accuracy "
        + ", ".join(f"{TITLES[key]} {100 * curves[key][-1][-1]:.1f}" for key in TITLES)
    )


def with_interval(values):
    """The mean over the seeds, and half its 95% interval (Student's t)."""
    if len(values) == 1:
        return [float(values[0]), None]
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return [float(np.mean(values)), float(half)]


# --------------------------------------------------------------------------------------- picture
COLORS = {
    "all": "#94a4a2",
    "sure": "#ffa90e",
    "likely": "#832db6",
    "learnt": "#3f90da",
    "right": "#333333",
}
picture = matplotlib.figure.Figure(figsize=(14, 4.2), layout="constrained")
histogram, recall_axes, accuracy_axes = picture.subplots(1, 3)
bins = np.linspace(0, 1, 26)
for of, color, title in ((~is_wrong, "#3f90da", "right"), (is_wrong, "#bd1f01", "wrong")):
    learnt = weights["learnt"][of]
    histogram.hist(learnt, bins, color=color, alpha=0.7, label=f"{title} label ({len(learnt)})")
histogram.set(
    xlabel="learnt weight", ylabel="samples", title=f"Weights, seed {arguments.seeds[-1]}"
)
for key in detection:
    precision, recall, _ = precision_recall_curve(is_wrong, -weights[key])
    auc = detection[key][-1]
    recall_axes.plot(
        recall, precision, color=COLORS[key], label=f"{TITLES[key]} (ROC AUC {auc:.3f})"
    )
recall_axes.axhline(is_wrong.mean(), color=COLORS["all"], linestyle=":", label="by chance")
recall_axes.set(
    xlabel="recall: of the wrong labels, found", ylabel="precision", title="Finding wrong labels"
)
recall_axes.set_ylim(0, 1.02)
trained = 50 * np.arange(1, arguments.epochs + 1)
for key, title in TITLES.items():
    runs = 100 * np.array(curves[key])
    accuracy_axes.plot(trained, runs.mean(0), color=COLORS[key], label=title)
    accuracy_axes.fill_between(
        trained, runs.min(0), runs.max(0), color=COLORS[key], alpha=0.15, linewidth=0
    )
accuracy_axes.set(
    xlabel="training step",
    ylabel="test accuracy, %",
    title=f"Trained in full, {len(arguments.seeds)} seed{'s' * (len(arguments.seeds) > 1)}",
)
for ax in (histogram, recall_axes, accuracy_axes):
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
picture.savefig("learn_sample_weights.png", dpi=110)

# ---------------------------------------------------------------------------------------- figures
record = {
    "accuracy": {k: with_interval([100 * c[-1] for c in runs]) for k, runs in curves.items()},
    "auc": {key: with_interval(values) for key, values in detection.items()},
    "below_half": {key: with_interval(values) for key, values in below_half.items()},
    "learning_seconds": seconds,
    "seconds": round(time.perf_counter() - started, 1),
    "arguments": {**vars(arguments), "data_dir": None},
}
with open("learn_sample_weights.json", "w") as file:
    json.dump(record, file, indent=2)


def written(values, digits):
    mean, half = values
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


print(
    f"\nMeans and 95% intervals over {len(arguments.seeds)} seeds, in percent of 10,000 test digits"
)
print(f"{'trained with':32s}{'test accuracy':>16s}{'AUC of the weights':>22s}")
for key, title in TITLES.items():
    auc = written(record["auc"][key], 3) if key in record["auc"] else "–"
    print(f"{title:32s}{written(record['accuracy'][key], 1):>16s}{auc:>22s}")
print(
    f"Learnt weights below 0.5 are wrong labels in {written(record['below_half']['precision'], 1)} of 100, "
    f"and\nthey are {written(record['below_half']['recall'], 1)} of 100 wrong labels."
)
print(
    f"\nLearning the weights took {np.mean(seconds):.0f} seconds a seed. learn_sample_weights.png and "
    f"learn_sample_weights.json are in {os.getcwd()} ({record['seconds']:.0f} seconds)"
)
