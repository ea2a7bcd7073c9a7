"""Two ways to learn from little: pretraining without labels, and learning to learn.

    python examples/quickstart.py                                # handwritten digits, no network
    python examples/quickstart.py --dataset mnist --data_dir ~/tensorflow_datasets

SimCLR learns from unlabelled images that two random views of one image belong together. Then, on images
that pretraining never saw, a class is known by one example or by five: how many others are
recognised by their nearest class mean, in raw pixels, in the features of the untrained encoder, and in
those of the pretrained one?

MAML learns, from many sine waves, weights from which one gradient step on ten points of a new wave draws
all of it. How far off are its answers after some steps, and those of a network trained on all waves at once?

Writes quickstart.png and quickstart.json into the current folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import math
import time


def positive(text):
    """A positive whole number of the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return int(text)


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--seed", type=int, default=0, help="changes everything random")
parser.add_argument(
    "--dataset", default="digits", help="digits, or a name of TFDS: mnist, cifar10 …"
)
parser.add_argument("--data_dir", help="where TFDS keeps its data sets")
parser.add_argument("--download", action="store_true", help="let TFDS download the data set")
parser.add_argument("--epochs", type=positive, help="default: 100 for digits, else 10")
parser.add_argument("--train_size", type=positive, help="use only so many unlabelled images")
parser.add_argument("--meta_steps", type=positive, default=15_000, help="steps of meta-training")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np

import keras_sslmeta as ksm

keras.utils.set_random_seed(arguments.seed)
started = time.perf_counter()

# ---------------------------------------------------------------------------------------- data
is_digits = arguments.dataset == "digits"
try:
    data = ksm.data.load(
        arguments.dataset,
        arguments.data_dir,
        download=arguments.download,
        image_size=None
        if is_digits
        else (28 if arguments.dataset in ("mnist", "omniglot") else 32),
    )
except ValueError as error:
    remedy = "\nAdd --download to let it." if "would download" in str(error) else ""
    raise SystemExit(f"{error}{remedy}") from None
unlabelled = data.train_x[: arguments.train_size].astype("float32")
side, channels = unlabelled.shape[1], unlabelled.shape[3]
print(f"{data}: {len(unlabelled)} images without labels for pretraining")

# ------------------------------------------------------------------------------- model and views
inputs = keras.Input((side, side, channels))
x = keras.layers.Rescaling(1 / 255)(inputs)
for width, halve in ((32, True), (32, side >= 16), (64, True)):
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    if halve:
        x = keras.layers.MaxPooling2D()(x)
encoder = keras.Model(inputs, keras.layers.Flatten()(x), name="encoder")

# A mirrored digit is another sign; a mirrored photograph is the same thing.
is_writing = arguments.dataset in ("digits", "mnist", "omniglot", "emnist", "kmnist")
augmentation = keras.Sequential(
    [
        ksm.layers.SimCLRAugmentation(
            (side, side),
            crop_scale=(0.4, 1.0),
            strength=0.5,
            flip=not is_writing,
            blur_probability=0.0,
        ),
        keras.layers.RandomRotation(0.05, fill_mode="constant"),
    ]
)
simclr = ksm.SimCLR(
    encoder,
    augmentation=augmentation,
    projector=ksm.layers.ProjectionHead(64, hidden_dim=128, batch_normalization=True),
)
EPOCHS = arguments.epochs or (100 if is_digits else 10)
BATCH_SIZE = 256
steps = EPOCHS * math.ceil(len(unlabelled) / BATCH_SIZE)
simclr.compile(
    keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=1e-2, warmup_steps=steps // 20 + 1
        ),
        weight_decay=1e-4,
    ),
    loss=ksm.losses.NTXent(temperature=0.5),
)


# ------------------------------------------------------------------------------------ evaluation
def few_shot(model):
    """10-way accuracy with 1 and with 5 labelled examples a class, on 600 episodes of unseen images."""
    return {
        name: ksm.evaluation.few_shot(
            model,
            (data.test_x.astype("float32"), data.test_y),
            ways=10,
            shots=shots,
            queries=15,
            episodes=600,
            seed=arguments.seed,
        )
        for name, shots in (("one_shot", 1), ("five_shot", 5))
    }


results = {"raw": few_shot(None), "untrained": few_shot(encoder)}

# ----------------------------------------------------------------------------------- pretraining
bar = keras.utils.Progbar(steps, unit_name="step", stateful_metrics=["loss"])
progress = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: bar.add(1, values=[("loss", logs["loss"])])
)
# For the curve only: the nearest of ten labelled images a class.
classes = np.unique(data.test_y)[:50]
few = np.concatenate([np.flatnonzero(data.test_y == c)[:10] for c in classes])
rest = np.setdiff1d(np.flatnonzero(np.isin(data.test_y, classes)), few)[:2000]
probe = ksm.callbacks.KNNProbe(
    (data.test_x[few].astype("float32"), data.test_y[few]),
    (data.test_x[rest].astype("float32"), data.test_y[rest]),
    k=5,
    every=max(1, EPOCHS // 20),
)
history = simclr.fit(
    unlabelled, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0, callbacks=[progress, probe]
)
results["pretrained"] = few_shot(encoder)


# ---------------------------------------------------------------------------------- meta-learning
def regressor():
    """The network of Finn et al. 2017 for sine waves."""
    return keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(40, activation="relu"),
            keras.layers.Dense(40, activation="relu"),
            keras.layers.Dense(1),
        ]
    )


def meta_train(title, inner_steps):
    """MAML on sine waves, 10 points a wave; without inner steps it is joint training on all waves."""
    maml = ksm.MAML(regressor(), inner_steps=inner_steps, inner_learning_rate=0.01)
    # Small tensors and many operations: here XLA and many steps at a time pay.
    maml.compile(keras.optimizers.Adam(1e-3), loss="mse", jit_compile=True, steps_per_execution=100)
    waves = ksm.data.sinusoids(shots=10, queries=10, seed=2 * arguments.seed).batch(25)
    print(f"\n{title}: {arguments.meta_steps} steps of 25 sine waves")
    bar = keras.utils.Progbar(arguments.meta_steps, unit_name="step", stateful_metrics=["loss"])
    progress = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: bar.update(
            batch + 1, values=[("loss", logs["loss"])]
        )
    )
    maml.fit(waves, steps_per_epoch=arguments.meta_steps, verbose=0, callbacks=[progress])
    return maml


def errors_along(maml, shots):
    """Query errors on 600 unseen waves before and after 1, 5 and 10 steps."""
    waves = ksm.data.sinusoids(
        shots=shots, queries=100, query_grid=True, episodes=600, seed=2 * arguments.seed + 1
    )
    curve = ksm.evaluation.adaptation_curve(maml, waves.batch(100), steps=10, verbose=0)
    return {
        "before" if k == 0 else f"after_{k}": [
            round(float(curve.mean[k]), 3),
            round(float(curve.half_interval[k]), 3),
        ]
        for k in (0, 1, 5, 10)
    }


meta_learnt = meta_train("MAML", inner_steps=1)
joint = meta_train("Joint training", inner_steps=0)
sines = {
    shots: {**errors_along(meta_learnt, shots), "pretrained": errors_along(joint, shots)}
    for shots in (5, 10)
}

# --------------------------------------------------------------------------------------- picture
picture = matplotlib.figure.Figure(figsize=(15, 9), layout="constrained")
top, bottom = picture.subfigures(2, 1)
left, middle, right = top.subfigures(1, 3, width_ratios=[1, 1.1, 1.1])
shown = np.random.default_rng(arguments.seed).choice(len(unlabelled), 6, replace=False)
views = np.stack([augmentation(unlabelled[shown], training=True) for _ in range(4)], axis=1)
ksm.visualization.plot_views(unlabelled[shown], views, figure=left)
ksm.visualization.plot_learning_curve(history, ax=middle.subplots())
mapped = np.random.default_rng(arguments.seed).permutation(len(data.test_x))
mapped = mapped[np.isin(data.test_y[mapped], classes[:10])][:500]
ksm.visualization.plot_embedding(
    simclr.predict(data.test_x[mapped].astype("float32"), verbose=0),
    data.test_y[mapped],
    ax=right.subplots(),
)
wave = next(
    iter(ksm.data.sinusoids(shots=5, queries=100, query_grid=True, seed=2 * arguments.seed + 1))
)
axes = bottom.subplots(1, 2, sharey=True)
for ax, maml, title in (
    (axes[0], meta_learnt, "MAML: an unseen wave, from 5 points"),
    (axes[1], joint, "Joint training: the same wave"),
):
    ksm.visualization.plot_adapted_functions(maml, wave, steps=(0, 1, 10), ax=ax)
    ax.set_title(title)
picture.savefig("quickstart.png", dpi=110)

# ---------------------------------------------------------------------------------------- figures
contrastive = {
    shots: {
        name: [round(100 * result[shots].accuracy, 2), round(100 * result[shots].half_interval, 2)]
        for name, result in results.items()
    }
    for shots in ("one_shot", "five_shot")
}
seconds = round(time.perf_counter() - started, 1)
with open("quickstart.json", "w") as file:
    json.dump({"contrastive": contrastive, "maml": sines[5], "seconds": seconds}, file, indent=2)

print(
    f"\n10-way accuracy in percent on images that pretraining never saw ({data.name}), 600 episodes"
)
print(f"{'':22s}{'1 example a class':>20s}{'5 examples a class':>20s}")
for name, title in (
    ("raw", "raw pixels"),
    ("untrained", "untrained encoder"),
    ("pretrained", "pretrained encoder"),
):
    cells = [
        f"{contrastive[shots][name][0]:.1f} ± {contrastive[shots][name][1]:.1f}"
        for shots in contrastive
    ]
    print(f"{title:22s}{cells[0]:>20s}{cells[1]:>20s}")
print("\nMean squared error on 600 unseen sine waves, by steps of adaptation")
print(
    f"{'':22s}" + "".join(f"{title:>15s}" for title in ("before", "1 step", "5 steps", "10 steps"))
)
for shots, row in sines.items():
    for title, values in ((f"MAML, {shots} points", row), ("joint training", row["pretrained"])):
        cells = [values[key] for key in ("before", "after_1", "after_5", "after_10")]
        print(f"{title:22s}" + "".join(f"{f'{m:.2f} ± {h:.2f}':>15s}" for m, h in cells))
print(f"\nquickstart.png and quickstart.json are in {os.getcwd()} ({seconds:.0f} seconds)")
