"""Tunes SimCLR's learning rate and temperature by the gradient through its training, against a grid.

    python examples/tune_temperature.py --data_dir ~/tensorflow_datasets
    python examples/tune_temperature.py --data_dir ~/tensorflow_datasets --download

SimCLR trains for some tens of steps on unlabelled digits; what does it make of them? NT-Xent itself cannot
say at which temperature that went best, since its scale is the temperature's. So some labelled digits
judge: half of them are known, the others asked, and each asked one takes the labels of the known ones by a
softmax over cosines, at a temperature of its own that stays fixed (neighbourhood component analysis). The
negative logarithm of the right label's share is differentiable, has one scale for all settings, and is what
nearest neighbours will be asked for in the end.

Its gradient with respect to the logarithms of rate and temperature goes through every step of training.
Rprop follows it from the defaults. The grid gets the same budget, in passes forward and backward: a
training step is one, and five if it is differentiated: the step itself, the step taken again, and three for
the derivative of a step, which has a gradient in it. All settings start from the same weights and see the
same views, so the objective has no noise, and the best setting that each met is what it proposes. In the
end both, and the defaults, train in full, and nearest neighbours judge on test images.

Writes tune_temperature.png and tune_temperature.json into the current folder.
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
parser.add_argument("--steps", type=positive, default=60, help="steps to differentiate (60)")
parser.add_argument("--rounds", type=positive, default=8, help="steps of Rprop (8)")
parser.add_argument("--full_steps", type=positive, default=500, help="of the last trainings (500)")
parser.add_argument("--batch", type=positive, default=128, help="images a training step (128)")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import scipy.stats
import tensorflow as tf

import keras_sslmeta as ksm

started = time.perf_counter()
PASSES = 5  # Of a differentiated step, in those of a plain one.
DEFAULT = np.log([0.01, 0.1])  # Keras's SGD, and SimCLR's NTXent.
# As many settings as the budget has training runs: five temperatures, and rates for each.
RATES = np.geomspace(0.01, 3.0, arguments.rounds * PASSES // 5)
TEMPERATURES = np.geomspace(0.05, 1.0, 5)
LABELLED = 1000

# ---------------------------------------------------------------------------------------- data
try:
    data = ksm.data.load("mnist", arguments.data_dir, download=arguments.download, image_size=14)
except ValueError as error:
    remedy = "\nAdd --download to let it." if "would download" in str(error) else ""
    raise SystemExit(f"{error}{remedy}") from None
train_x, test_x = data.train_x.astype("float32"), data.test_x.astype("float32")
print(
    f"{data}\n{arguments.rounds} gradients through {arguments.steps} steps, against "
    f"{len(RATES)}×{len(TEMPERATURES)} settings: {arguments.rounds * PASSES * arguments.steps} passes each"
)


def augmentation():
    """A layer of its own for each model, so that its views follow from the seed alone."""
    return ksm.layers.SimCLRAugmentation(
        (14, 14), crop_scale=(0.4, 1.0), strength=0.5, flip=False, blur_probability=0.0
    )


def simclr(rate, temperature):
    """A compiled SimCLR; GELU, since the kinks of ReLU roughen what is to be followed downhill."""
    inputs = keras.Input((14, 14, 1))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for width in (16, 32):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Activation("gelu")(x)
    model = ksm.SimCLR(
        keras.Model(inputs, keras.layers.Flatten()(x), name="encoder"),
        augmentation=augmentation(),
        projector=ksm.layers.ProjectionHead(32, hidden_dim=64),
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9), loss=ksm.losses.NTXent(temperature=temperature)
    )
    return model


class ShortTraining:
    """The objective of the logarithms of rate and temperature, after some steps on fixed views."""

    def __init__(self, unlabelled, labelled):
        self.temperature = keras.Variable(0.1, trainable=False)
        self.model = simclr(0.01, self.temperature)
        self.fit = ksm.meta.DifferentiableFit(
            self.model, steps=arguments.steps, hyperparameters=[self.temperature]
        )
        batches = tf.split(unlabelled, arguments.steps)
        view = augmentation()
        self.views = tf.stack(
            [tf.stack([view(x, training=True) for _ in "ab"], axis=1) for x in batches]
        )
        self.x, self.y = labelled

    def __call__(self, logarithms):
        rate, temperature = tf.unstack(tf.exp(logarithms))
        fitted = self.fit(self.views, learning_rate=rate, hyperparameters=[temperature])
        of_encoder = len(self.model.encoder.trainable_variables)
        features, _ = self.model.encoder.stateless_call(
            fitted.weights[:of_encoder],
            [v.value for v in self.model.encoder.non_trainable_variables],
            self.x,
            training=True,  # So few steps leave no moving statistics of use: these images' own.
        )
        asked, known = tf.split(tf.math.l2_normalize(features, axis=1), 2)
        asked_y, known_y = np.split(self.y, 2)
        shares = tf.nn.softmax(tf.matmul(asked, known, transpose_b=True) / 0.1)
        is_right = (asked_y[:, np.newaxis] == known_y).astype("float32")
        return -tf.reduce_mean(tf.math.log(tf.reduce_sum(shares * is_right, axis=1) + 1e-6))

    def with_gradient(self, logarithms):
        logarithms = tf.constant(logarithms, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(logarithms)
            objective = self(logarithms)
        return float(objective), tape.gradient(objective, logarithms).numpy()


def follow_gradient(training):
    """Rprop from the defaults: the settings on the way, their objectives, and seconds in all."""
    bar = keras.utils.Progbar(
        arguments.rounds, unit_name="gradient", stateful_metrics=["objective"]
    )
    began = time.perf_counter()
    point, size, before = DEFAULT, np.ones(2), np.zeros(2)
    path, objectives = [], []
    for _ in range(arguments.rounds):
        objective, gradient = training.with_gradient(point)
        path.append(point)
        objectives.append(objective)
        # The sign of each entry and a step size of its own, since a gradient through training is now
        # a hundredth and now a hundred. Longer where signs agree, shorter where one has changed.
        sign = np.sign(np.nan_to_num(gradient))
        size = np.clip(size * np.where(sign * before < 0, 0.4, np.where(before, 1.5, 1)), 0.01, 2)
        point, before = point - sign * size, sign
        bar.add(1, values=[("objective", objective)])
    return np.array(path), np.array(objectives), time.perf_counter() - began


def search_grid(training):
    """The objective of each setting, (rates, temperatures), and seconds in all."""
    count = len(RATES) * len(TEMPERATURES)
    bar = keras.utils.Progbar(count, unit_name="setting")
    began, objectives = time.perf_counter(), []
    for rate in RATES:
        for temperature in TEMPERATURES:
            point = tf.constant(np.log([rate, temperature]), tf.float32)
            objectives.append(float(training(point)))
            bar.add(1)
    # What diverged has no objective; no setting is worse.
    objectives = np.nan_to_num(objectives, nan=np.inf)
    seconds = time.perf_counter() - began
    return objectives.reshape(len(RATES), len(TEMPERATURES)), seconds


def train_in_full(logarithms, unlabelled, labelled):
    """Accuracy on test images by 10 neighbours among the labelled ones."""
    rate, temperature = np.exp(logarithms)
    model = simclr(float(rate), float(temperature))
    pictures = tf.data.Dataset.from_tensor_slices(unlabelled)
    batches = pictures.shuffle(len(unlabelled)).repeat().batch(arguments.batch)
    model.fit(batches, steps_per_epoch=arguments.full_steps, shuffle=False, verbose=0)
    return neighbours(model, labelled)


def neighbours(model, labelled):
    known, asked = (
        x.reshape(len(x), -1) if model is None else model.predict(x, batch_size=1000, verbose=0)
        for x in (labelled[0], test_x)
    )
    return 100 * ksm.evaluation.knn_accuracy(known, labelled[1], asked, data.test_y, k=10)


# ----------------------------------------------------------------------------------------- tuning
TITLES = {"default": "default", "grid": "grid", "gradient": "hypergradient"}
settings, objectives = {key: [] for key in TITLES}, {key: [] for key in TITLES}
accuracies = {key: [] for key in ("raw", "untrained", *TITLES)}
spent = {"grid": [], "gradient": []}
paths = []
for seed in arguments.seeds:
    print(f"\nSeed {seed}")
    keras.utils.set_random_seed(seed)
    chosen = np.random.default_rng(seed).permutation(len(train_x))
    labelled = train_x[chosen[:LABELLED]], data.train_y[chosen[:LABELLED]]
    unlabelled = train_x[chosen[LABELLED:]]
    training = ShortTraining(unlabelled[: arguments.steps * arguments.batch], labelled)
    training.with_gradient(DEFAULT)  # Traces both, which is no part of either's time.
    path, along, seconds = follow_gradient(training)
    spent["gradient"].append(seconds)
    paths.append(np.column_stack([np.exp(path), along]).round(4).tolist())
    grid, seconds = search_grid(training)
    spent["grid"].append(seconds)
    best_rate, best_temperature = np.unravel_index(np.argmin(grid), grid.shape)
    proposals = {
        "default": (DEFAULT, along[0]),
        "grid": (np.log([RATES[best_rate], TEMPERATURES[best_temperature]]), grid.min()),
        "gradient": (path[np.nanargmin(along)], np.nanmin(along)),
    }
    for key, (setting, objective) in proposals.items():
        settings[key].append(np.exp(setting).round(4).tolist())
        objectives[key].append(float(objective))
        # Other weights and views than those that tuning saw.
        keras.utils.set_random_seed(1000 + seed)
        accuracies[key].append(train_in_full(setting, unlabelled, labelled))
        rate, temperature = np.exp(setting)
        print(
            f"{TITLES[key]:14s} rate {rate:.3f}, temperature {temperature:.3f}: objective "
            f"{objective:.3f}, trained in full {accuracies[key][-1]:.1f}%"
        )
    keras.utils.set_random_seed(1000 + seed)
    accuracies["raw"].append(neighbours(None, labelled))
    accuracies["untrained"].append(neighbours(simclr(0.01, 0.1), labelled))

# --------------------------------------------------------------------------------------- picture
INK = {"default": "#94a4a2", "grid": "#ffa90e", "gradient": "#3f90da"}
picture = matplotlib.figure.Figure(figsize=(15, 4.4), layout="constrained")
heat, budget, final = picture.subplots(1, 3, width_ratios=[1.3, 1.1, 1])
finite = np.where(np.isfinite(grid), grid, np.nan)
mesh = heat.pcolormesh(RATES, TEMPERATURES, finite.T, shading="nearest", cmap="cividis_r")
picture.colorbar(mesh, ax=heat, label="objective")
heat.plot(*np.exp(path.T), "-o", color="white", markersize=5, linewidth=2.4)
heat.plot(
    *np.exp(path.T), "-o", color="#bd1f01", markersize=4, linewidth=1.2, label="hypergradient"
)
for key, marker in (("grid", "s"), ("gradient", "*")):
    heat.plot(
        *np.exp(proposals[key][0]), marker, color=INK[key], markersize=13, markeredgecolor="white",
        linestyle="", label=f"best of the {TITLES[key]}",
    )  # fmt: skip
heat.set(
    xscale="log", yscale="log", xlabel="learning rate", ylabel="temperature",
    title=f"Objective after {arguments.steps} steps, seed {arguments.seeds[-1]}",
)  # fmt: skip
heat.legend(frameon=True, fontsize=8, loc="lower right")
# The grid in any order: the mean of its best after so many settings, over orders.
orders = np.random.default_rng(0).permuted(np.tile(grid.ravel(), (1000, 1)), axis=1)
orders = np.minimum(orders, np.max(grid[np.isfinite(grid)]))
reached = np.minimum.accumulate(orders, axis=1)
runs = arguments.steps * np.arange(1, grid.size + 1)
budget.plot(runs, reached.mean(0), color=INK["grid"], label="grid, mean over orders")
budget.fill_between(
    runs, *np.percentile(reached, [10, 90], axis=0), color=INK["grid"], alpha=0.2, linewidth=0
)
budget.plot(
    PASSES * arguments.steps * np.arange(1, len(path) + 1),
    np.fmin.accumulate(along),
    "-o",
    color=INK["gradient"],
    label="hypergradient",
)
budget.set(xlabel="passes spent", ylabel="best objective so far", title="Budget")
budget.legend(frameon=False)
for i, key in enumerate(TITLES):
    final.plot([i] * len(accuracies[key]), accuracies[key], "o", color=INK[key], alpha=0.6)
    final.plot(i, np.mean(accuracies[key]), "_", color=INK[key], markersize=40, markeredgewidth=3)
final.axhline(np.mean(accuracies["raw"]), color="#717581", linestyle=":", label="raw pixels")
final.axhline(np.mean(accuracies["untrained"]), color="#a96b59", linestyle="--", label="untrained")
final.set_xticks(range(len(TITLES)), TITLES.values())
final.set(
    xlim=(-0.6, len(TITLES) - 0.4), ylabel="accuracy of 10 neighbours, %",
    title=f"Trained in full, {arguments.full_steps} steps",
)  # fmt: skip
final.legend(frameon=False, fontsize=9)
for ax in (budget, final):
    ax.spines[["top", "right"]].set_visible(False)
picture.savefig("tune_temperature.png", dpi=110)

# ---------------------------------------------------------------------------------------- figures
record = {
    "settings": settings,
    "objectives": objectives,
    "accuracies": accuracies,
    "paths": paths,  # Rate, temperature and objective of each round.
    "passes": arguments.rounds * PASSES * arguments.steps,
    "tuning_seconds": spent,
    "seconds": round(time.perf_counter() - started, 1),
    "arguments": {**vars(arguments), "data_dir": None},
}
with open("tune_temperature.json", "w") as file:
    json.dump(record, file, indent=2)


def written(values, digits):
    """The mean over the seeds, and half its 95% interval (Student's t)."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


print(
    f"\nMeans and 95% intervals over {len(arguments.seeds)} seeds; {record['passes']} passes of tuning"
)
print(f"{'':18s}{'objective':>18s}{'test accuracy, %':>20s}{'tuning, s':>12s}")
for key in accuracies:
    objective = written(objectives[key], 3) if key in objectives else "–"
    took = f"{np.mean(spent[key]):.0f}" if key in spent else "–"
    title = {**TITLES, "raw": "raw pixels", "untrained": "untrained"}[key]
    print(f"{title:18s}{objective:>18s}{written(accuracies[key], 1):>20s}{took:>12s}")
print(
    f"\ntune_temperature.png and tune_temperature.json are in {os.getcwd()} "
    f"({record['seconds']:.0f} seconds)"
)
