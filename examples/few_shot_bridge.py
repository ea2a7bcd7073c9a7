"""Both halves on one table: what pretraining and meta-learning know of characters they have never seen.

    python examples/few_shot_bridge.py --data_dir ~/tensorflow_datasets

Trains one small network, the Conv4 of the few-shot papers, in five ways on Omniglot's training characters:

  SimCLR      without labels: two augmented views of a drawing belong together
  UMTRA       without labels: MAML, on tasks of single drawings and their augmentations
  CACTUs      without labels: MAML, on tasks of clusters of the SimCLR encoder's features
  MAML        with labels
  ProtoNet    with labels: prototypical networks, on 20 characters at a time

and asks each the same questions: 600 episodes of 5 characters of alphabets that none has seen, one drawing of
each to learn from, 15 others to tell apart. SimCLR's features are frozen, and a head learns from the five
drawings: the nearest prototype, ridge regression, logistic regression, or a few steps of gradient descent.

Omniglot's small protocol: the characters of `small1` that `small2` does not have, with their turns by 90,
180 and 270 degrees, for training, and those of `small2` for testing. Trained models are kept in
few_shot_bridge/, and a second run goes on from them. Writes few_shot_bridge.png and few_shot_bridge.json.
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
parser.add_argument("--seed", type=int, default=0, help="changes everything random")
parser.add_argument("--steps", type=positive, default=400, help="of each meta-learner (400)")
parser.add_argument("--tasks", type=positive, default=32, help="tasks a step (32)")
parser.add_argument("--simclr_steps", type=positive, default=600, help="steps of SimCLR (600)")
parser.add_argument("--batch_size", type=positive, default=256, help="drawings a SimCLR step (256)")
parser.add_argument("--clusters", type=positive, default=500, help="clusters of CACTUs (500)")
parser.add_argument("--width", type=positive, default=64, help="filters of each layer (64)")
parser.add_argument("--episodes", type=positive, default=600, help="test episodes (600)")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

import keras_sslmeta as ksm

# Two tasks run at once, and small operations gain little from more than their share of the cores.
tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 2) // 2))
WAYS = 5
KEPT = pathlib.Path("few_shot_bridge")
KEPT.mkdir(exist_ok=True)
settings = {
    name: value
    for name, value in vars(arguments).items()
    if name not in ("data_dir", "download", "episodes")
}
kept = KEPT / "settings.json"
if kept.exists() and json.loads(kept.read_text()) != settings:
    raise SystemExit(f"{KEPT} holds models of other arguments: remove it, or run elsewhere")
kept.write_text(json.dumps(settings))

# ---------------------------------------------------------------------------------------- data
try:
    data = ksm.data.load(
        "omniglot",
        arguments.data_dir,
        download=arguments.download,
        image_size=28,
        splits=("small1", "small2"),
    )
except ValueError as error:
    remedy = "\nAdd --download to let it." if "would download" in str(error) else ""
    raise SystemExit(f"{error}{remedy}") from None
unseen = ~np.isin(data.train_y, data.test_y)  # small1 and small2 share two alphabets.
train_x, train_y = data.train_x[unseen][..., :1], data.train_y[unseen]
test = data.test_x[..., :1], data.test_y
turned = np.concatenate([np.rot90(train_x, turn, axes=(1, 2)) for turn in range(4)])
print(
    f"Omniglot: {len(np.unique(train_y))} characters and their turns for training, "
    f"{len(np.unique(data.test_y))} others for testing"
)

# --------------------------------------------------------------------------------- the network
white = {"fill_mode": "constant", "fill_value": 255.0}
augmentation = keras.Sequential(
    [
        keras.layers.RandomTranslation(0.2, 0.2, seed=1, **white),
        keras.layers.RandomRotation(0.05, seed=2, **white),
        keras.layers.RandomZoom(0.2, seed=3, **white),
    ],
    name="augmentation",
)


def conv4(head=None):
    """The Conv4 of Vinyals et al. 2016; black strokes become 1, white paper 0."""
    layers = [keras.Input((28, 28, 1)), keras.layers.Rescaling(-1 / 255, offset=1.0)]
    for _ in range(4):
        layers += [
            keras.layers.Conv2D(arguments.width, 3, padding="same"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers.append(keras.layers.Flatten())
    if head is not None:
        layers.append(keras.layers.Dense(head))
    return keras.Sequential(layers)


def trained(name, build, train):
    """The model of that name, trained here or in an earlier run."""
    path = KEPT / f"{name}.keras"
    if path.exists():
        print(f"\n{name}: {path}")
        return keras.models.load_model(path)
    print(f"\n{name}")
    keras.utils.set_random_seed(arguments.seed)
    began, model = time.perf_counter(), build()
    train(model)
    seconds[name] = round(time.perf_counter() - began)
    model.save(path)
    return model


class Progress(keras.callbacks.Callback):
    """A bar over all steps."""

    def on_train_begin(self, logs=None):
        self.bar = keras.utils.Progbar(self.params["steps"], stateful_metrics=["loss", "accuracy"])

    def on_train_batch_end(self, batch, logs=None):
        shown = [(key, logs[key]) for key in ("loss", "accuracy") if key in logs]
        self.bar.update(batch + 1, values=shown)


def maml():
    """MAML as in learn2learn's example: one step at 0.5, on batch statistics."""
    model = ksm.MAML(conv4(WAYS), inner_learning_rate=0.5, test_inner_steps=3)
    model.compile(
        keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def prototypical():
    """Prototypical networks."""
    model = ksm.PrototypicalNetwork(conv4())
    model.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    return model


def simclr():
    """SimCLR on single drawings."""
    model = ksm.SimCLR(conv4(), augmentation=augmentation)
    model.compile(keras.optimizers.Adam(1e-3), loss=ksm.losses.NTXent(0.2))
    return model


def fit_episodes(episodes, tasks=arguments.tasks):
    """A function that trains on these episodes."""

    def train(model):
        batches = episodes().batch(tasks)
        model.fit(batches, steps_per_epoch=arguments.steps, verbose=0, callbacks=[Progress()])

    return train


def fit_views(model):
    """Trains on all drawings, shuffled, for so many steps."""
    drawings = tf.data.Dataset.from_tensor_slices(turned).shuffle(len(turned), arguments.seed)
    batches = drawings.repeat().batch(arguments.batch_size).prefetch(2)
    model.fit(batches, steps_per_epoch=arguments.simclr_steps, verbose=0, callbacks=[Progress()])


# ------------------------------------------------------------------------------------ training
seconds = {}
form = {"shots": 1, "queries": 1, "seed": arguments.seed}
encoder = trained("SimCLR", simclr, fit_views)


def clustered():
    """Tasks whose classes are clusters of SimCLR's features."""
    features = encoder.predict(turned, batch_size=256, verbose=0)
    return ksm.data.cactus(
        turned, features, ways=WAYS, clusters=arguments.clusters, partitions=10, **form
    )


learners = {
    "UMTRA": trained(
        "UMTRA",
        maml,
        fit_episodes(
            lambda: ksm.data.umtra(turned, augmentation, ways=WAYS, queries=1, seed=arguments.seed)
        ),
    ),
    "CACTUs": trained("CACTUs", maml, fit_episodes(clustered)),
    "MAML": trained(
        "MAML",
        maml,
        fit_episodes(
            lambda: ksm.data.episodes((train_x, train_y), ways=WAYS, rotations=True, **form)
        ),
    ),
    "ProtoNet": trained(
        "ProtoNet",
        prototypical,
        fit_episodes(
            lambda: ksm.data.episodes((train_x, train_y), ways=20, rotations=True, **form),
            tasks=max(1, arguments.tasks // 4),
        ),
    ),
}

# ------------------------------------------------------------------------------------- testing
heads = {
    "prototype": ksm.evaluation.heads.Prototype(),
    "ridge": ksm.evaluation.heads.Ridge(),
    "logistic": ksm.evaluation.heads.Logistic(),
    "gradient steps": ksm.evaluation.heads.Adapted(),
}
keras.utils.set_random_seed(arguments.seed)
contestants = {"pixels, prototype": (None, heads["prototype"])}
contestants |= {
    "untrained, prototype": (conv4(), heads["prototype"]),
    **{f"SimCLR, {name}": (encoder, head) for name, head in heads.items()},
    **{name: (learner, None) for name, learner in learners.items()},
}
print(f"\n{arguments.episodes} episodes of {WAYS} unseen characters, one drawing of each")
results = {}
for name, (model, head) in contestants.items():
    results[name] = ksm.evaluation.few_shot(
        model,
        test,
        ways=WAYS,
        shots=1,
        queries=15,
        episodes=arguments.episodes,
        seed=arguments.seed + 1,
        head=head,
        verbose=0,
    )
table = ksm.evaluation.few_shot_table(results, baseline="SimCLR, prototype")
print(table)

record = {
    "settings": settings,
    "seconds": seconds,
    "accuracy": {
        name: [round(100 * r.accuracy, 2), round(100 * r.half_interval, 2)]
        for name, r in results.items()
    },
}
pathlib.Path("few_shot_bridge.json").write_text(json.dumps(record, indent=2))
picture = matplotlib.figure.Figure(figsize=(9, 4.5), layout="constrained")
ksm.visualization.plot_few_shot(results, ax=picture.subplots())
picture.savefig("few_shot_bridge.png", dpi=110)
print(f"\nfew_shot_bridge.png and .json are in {os.getcwd()}")
