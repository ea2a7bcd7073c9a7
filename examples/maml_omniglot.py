"""Meta-trains MAML on Omniglot: 5 unknown characters, one drawing of each, whose are these other drawings?

    python examples/maml_omniglot.py --data_dir ~/tensorflow_datasets              # small protocol
    python examples/maml_omniglot.py --data_dir ~/tensorflow_datasets --full       # all of Omniglot

The small protocol trains on the characters of Omniglot's `small1` that `small2` does not have, and tests on
`small2`; `--full` trains on `train` and tests on `test`. Turned by 90, 180 and 270 degrees, each training
character makes three more. Settings follow Finn et al. 2017 and learn2learn's example: a Conv4 on batch
statistics, one inner step, 32 tasks a step.

The model is saved as maml_omniglot.keras after every epoch, and a run with the same arguments goes on from
there; with a larger --epochs it trains further. Writes maml_omniglot.png and maml_omniglot.json
into the current folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import pathlib
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
parser.add_argument("--download", action="store_true", help="let TFDS download Omniglot")
parser.add_argument("--full", action="store_true", help="all of Omniglot, not the small protocol")
parser.add_argument("--seed", type=int, default=0, help="changes everything random")
parser.add_argument("--epochs", type=positive, default=10, help="of --steps steps each (10)")
parser.add_argument(
    "--steps", type=positive, default=100, help="steps of meta-training an epoch (100)"
)
parser.add_argument("--tasks", type=positive, default=32, help="tasks a step (32)")
parser.add_argument("--ways", type=positive, default=5, help="characters a task (5)")
parser.add_argument("--shots", type=positive, default=1, help="drawings of each to adapt to (1)")
parser.add_argument("--queries", type=positive, default=1, help="queries a class (1)")
parser.add_argument("--width", type=positive, default=64, help="filters of each layer (64)")
parser.add_argument("--episodes", type=positive, default=2000, help="test episodes (2000)")
parser.add_argument("--first_order", action="store_true", help="FOMAML")
parser.add_argument("--default_threads", action="store_true", help="leave TensorFlow's threads be")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

import keras_sslmeta as ksm

if not arguments.default_threads:
    # Two tasks run at once, and small operations gain little from more than their share of the cores.
    tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 2) // 2))
keras.utils.set_random_seed(arguments.seed)

# ---------------------------------------------------------------------------------------- data
try:
    data = ksm.data.load(
        "omniglot",
        arguments.data_dir,
        download=arguments.download,
        image_size=28,
        splits=("train", "test") if arguments.full else ("small1", "small2"),
    )
except ValueError as error:
    remedy = "\nAdd --download to let it." if "would download" in str(error) else ""
    raise SystemExit(f"{error}{remedy}") from None
unseen = ~np.isin(data.train_y, data.test_y)  # small1 and small2 share two alphabets.
train = data.train_x[unseen][..., :1], data.train_y[unseen]
test = data.test_x[..., :1], data.test_y
print(
    f"Omniglot, {'full' if arguments.full else 'small'} protocol: {len(np.unique(train[1]))} characters "
    f"for training, {len(np.unique(test[1]))} others for testing"
)
form = {"ways": arguments.ways, "shots": arguments.shots, "queries": arguments.queries}

# ------------------------------------------------------------------------------------- the model
SAVED = pathlib.Path("maml_omniglot.keras")
RESULT = pathlib.Path("maml_omniglot.json")
ignored = ("data_dir", "download", "epochs", "episodes", "default_threads")
settings = {name: value for name, value in vars(arguments).items() if name not in ignored}
record = {"settings": settings, "training_seconds": 0.0, "loss": [], "accuracy": []}
maml = None
if SAVED.exists() and RESULT.exists():
    before = json.loads(RESULT.read_text())
    if before["settings"] == settings:
        maml, record = keras.models.load_model(SAVED), before
        print(f"Going on after epoch {len(record['loss'])} ({SAVED})")
    else:
        print(f"{SAVED} was trained with other arguments, and will be replaced")
if maml is None:
    # The Conv4 of Vinyals et al. 2016; black strokes become 1, white paper 0.
    layers = [keras.Input((28, 28, 1)), keras.layers.Rescaling(-1 / 255, offset=1.0)]
    for _ in range(4):
        layers += [
            keras.layers.Conv2D(arguments.width, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dense(arguments.ways)]
    maml = ksm.MAML(
        keras.Sequential(layers),
        inner_steps=1,
        inner_learning_rate=0.5,
        second_order=not arguments.first_order,
        batch_normalization="transductive",
    )
    maml.compile(
        keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

# ---------------------------------------------------------------------------------- meta-training
first = len(record["loss"])
bar = keras.utils.Progbar(
    arguments.epochs * arguments.steps, unit_name="step", stateful_metrics=["loss", "accuracy"]
)


class Progress(keras.callbacks.Callback):
    """Moves the bar, and saves model and record after every epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.began, self.before = time.perf_counter(), epoch * arguments.steps

    def on_train_batch_end(self, batch, logs=None):
        values = [(name, logs[name]) for name in ("loss", "accuracy")]
        bar.update(self.before + batch + 1, values=values)

    def on_epoch_end(self, epoch, logs=None):
        record["training_seconds"] += time.perf_counter() - self.began
        for name in ("loss", "accuracy"):
            record[name].append(logs[name])
        self.model.save(SAVED)
        RESULT.write_text(json.dumps(record, indent=2))


if first < arguments.epochs:
    # Episode i is a function of the seed and i, so a run that goes on meets those that come next.
    episodes = ksm.data.episodes(
        train,
        rotations=True,
        seed=arguments.seed,
        start=first * arguments.steps * arguments.tasks,
        **form,
    )
    maml.fit(
        episodes.batch(arguments.tasks),
        initial_epoch=first,
        epochs=arguments.epochs,
        steps_per_epoch=arguments.steps,
        verbose=0,
        callbacks=[Progress()],
    )

# ----------------------------------------------------------------------------------- meta-testing
print(f"\nTesting on {arguments.episodes} episodes of unseen characters")
curve = ksm.evaluation.adaptation_curve(
    maml,
    ksm.data.episodes(test, episodes=arguments.episodes, seed=1, **form).batch(arguments.tasks),
    steps=5,
    metric=keras.metrics.sparse_categorical_accuracy,
)
record["test"] = {
    f"after_{k}": [round(100 * curve.mean[k], 2), round(100 * curve.half_interval[k], 2)]
    for k in range(6)
}
record["training_seconds"] = round(record["training_seconds"], 1)
RESULT.write_text(json.dumps(record, indent=2))

picture = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
left, right = picture.subplots(1, 2)
steps = arguments.steps * np.arange(1, len(record["accuracy"]) + 1)
left.plot(steps, record["accuracy"], marker=".")
left.set(xlabel="meta-training step", ylabel="accuracy on training tasks", title="Meta-training")
ksm.visualization.plot_adaptation_curve(curve, ax=right)
picture.savefig("maml_omniglot.png", dpi=110)

print(
    f"\n{arguments.ways}-way {arguments.shots}-shot accuracy in percent, 95% intervals over episodes"
)
for k in (0, 1, 3, 5):
    mean, half = record["test"][f"after_{k}"]
    print(f"  after {k} {'step ' if k == 1 else 'steps'}  {mean:5.1f} ± {half:.1f}")
print(
    f"\n{record['training_seconds']:.0f} seconds of meta-training; maml_omniglot.png, .json and .keras "
    f"are in {os.getcwd()}"
)
