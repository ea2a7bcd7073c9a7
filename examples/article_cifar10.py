"""The two listings of the article that this package grew from, corrected, on CIFAR-10.

    python examples/article_cifar10.py --download
    python examples/article_cifar10.py --data_dir ~/tensorflow_datasets

The first is SimCLR-style training: an ordinary Keras model of two views, compiled with NT-Xent and fitted
without labels. Then its encoder is frozen, and what it tells apart is measured on test images, beside raw
pixels and the same encoder untrained: by nearest neighbours, by a linear classifier, and by few examples.

The second is MAML: a gradient step goes down the loss of the support set, and the queries that judge it are
other images. It learns on tasks out of six classes, and is tested on the four that it never saw: of
each class five images are known, which are these others? Raw pixels and SimCLR's encoder answer the
same episodes by the nearest class mean; the same network, before meta-training, adapts to them as MAML does.

What was wrong in the article, and where: docs/from_the_article.md. Writes article_cifar10.png and
article_cifar10.json into the current folder.
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
parser.add_argument("--data_dir", help="where TFDS keeps its data sets")
parser.add_argument("--download", action="store_true", help="let TFDS download CIFAR-10")
parser.add_argument("--seed", type=int, default=0, help="changes everything random")
parser.add_argument("--epochs", type=positive, default=8, help="of SimCLR (8)")
parser.add_argument("--train_size", type=positive, help="use only so many training images")
parser.add_argument("--meta_epochs", type=positive, default=8, help="of MAML, 100 steps each (8)")
parser.add_argument("--meta_steps", type=positive, default=100, help="steps a meta-epoch (100)")
parser.add_argument("--episodes", type=positive, default=600, help="test episodes (600)")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keras_sslmeta as ksm

keras.utils.set_random_seed(arguments.seed)
started = time.perf_counter()

# ---------------------------------------------------------------------------------------- data
try:
    data = ksm.data.load("cifar10", arguments.data_dir, download=arguments.download)
except ValueError as error:
    remedy = "\nAdd --download to let it." if "would download" in str(error) else ""
    raise SystemExit(f"{error}{remedy}") from None
train_x, train_y = data.train_x[: arguments.train_size], data.train_y[: arguments.train_size]
test_x, test_y = data.test_x.astype("float32"), data.test_y

# Two animals and two vehicles that MAML never sees; the other six classes have some of both.
UNSEEN = ("automobile", "cat", "horse", "ship")
is_unseen = np.isin(data.class_names, UNSEEN)
seen = train_x[~is_unseen[train_y]], train_y[~is_unseen[train_y]]
unseen = test_x[is_unseen[test_y]], test_y[is_unseen[test_y]]
print(f"{data}; MAML's test classes: {', '.join(UNSEEN)}")

# The test episodes as `few_shot` draws them, and as MAML takes them.
WAYS, SHOTS, QUERIES = 4, 5, 15
form = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "episodes": arguments.episodes}
support, query = ksm.data.episode_indices(unseen[1], **form, seed=arguments.seed)


def episode(support, query):
    """Support and queries are different images of the same classes."""
    images = [tf.gather(unseen[0], tf.reshape(index, [-1])) for index in (support, query)]
    support_y, query_y = (np.repeat(np.arange(WAYS), count) for count in (SHOTS, QUERIES))
    return {"support_x": images[0], "support_y": support_y, "query_x": images[1]}, query_y


test_episodes = tf.data.Dataset.from_tensor_slices((support, query)).map(episode).batch(20)


# ------------------------------------------------------------------------------------ evaluation
def with_interval(accuracy, samples):
    """Percent, and half the 95% interval of a fraction of so many independent samples."""
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / samples)
    return [round(100 * accuracy, 2), round(100 * half, 2)]


def measure(encoder):
    """What frozen features tell apart: three test accuracies, each with its interval."""
    labelled = slice(None, 10_000)
    known, asked = (
        x.reshape(len(x), -1) if encoder is None else encoder.predict(x, batch_size=500, verbose=0)
        for x in (train_x[labelled].astype("float32"), test_x)
    )
    known_y = train_y[labelled]
    nearest = ksm.evaluation.knn_accuracy(known, known_y, asked, test_y, k=20)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
    linear.fit(known, known_y)
    few = ksm.evaluation.few_shot(encoder, unseen, **form, seed=arguments.seed)
    return {
        "knn": with_interval(nearest, len(asked)),
        "linear": with_interval(linear.score(asked, test_y), len(asked)),
        "few_shot": [round(100 * few.accuracy, 2), round(100 * few.half_interval, 2)],
    }


# ----------------------------------------------------------------------- the first listing: SimCLR
inputs = keras.Input((32, 32, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
for width in (32, 64, 128):
    x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
encoder = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="encoder")

views = keras.Input((2, 32, 32, 3))
features = ksm.layers.PerView(encoder)(views)  # (batch, 2, 128)
projections = ksm.layers.ProjectionHead(64, hidden_dim=128)(features)  # (batch, 2, 64)
simclr = keras.Model(views, projections, name="simclr")

BATCH_SIZE = 256
steps = arguments.epochs * math.ceil(len(train_x) / BATCH_SIZE)
simclr.compile(
    keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=3e-3, warmup_steps=steps // 20 + 1
        ),
        weight_decay=1e-4,
    ),
    loss=ksm.losses.NTXent(temperature=0.5),
)
pairs = ksm.data.two_views(
    train_x,
    augmentation=ksm.layers.SimCLRAugmentation(
        (32, 32), crop_scale=(0.2, 1.0), strength=0.5, blur_probability=0.0
    ),
    batch_size=BATCH_SIZE,
)

print("\nMeasuring raw pixels and the untrained encoder")
results = {"raw": measure(None), "untrained": measure(encoder)}
print(f"\nSimCLR: {len(train_x)} images without labels")
# For the curve only; it takes training images alone, of one half to know and of the other to ask.
half = len(train_x) // 2
probe = ksm.callbacks.KNNProbe(
    (train_x[:half][:4000].astype("float32"), train_y[:half][:4000]),
    (train_x[half:][:1000].astype("float32"), train_y[half:][:1000]),
    encoder=encoder,
)
history = simclr.fit(pairs, epochs=arguments.epochs, shuffle=False, callbacks=[probe])
results["simclr"] = measure(encoder)

# ------------------------------------------------------------------------ the second listing: MAML
layers = [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1.0)]
for _ in range(3):
    layers += [
        keras.layers.Conv2D(32, 3, strides=2, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ]
network = keras.Sequential(
    [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(WAYS)]
)
maml = ksm.MAML(
    network,
    inner_steps=1,
    inner_learning_rate=0.3,
    # Queries are normalised by the support set's statistics, so none profits from the others.
    batch_normalization="support",
)
meta_steps = arguments.meta_epochs * arguments.meta_steps
maml.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, meta_steps)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

print(f"\nMAML: {WAYS}-way {SHOTS}-shot tasks out of six classes")
curves = {"untrained network": ksm.evaluation.adaptation_curve(maml, test_episodes, steps=5)}
training_episodes = ksm.data.episodes(
    seen, ways=WAYS, shots=SHOTS, queries=QUERIES, seed=arguments.seed
)
maml.fit(
    training_episodes.batch(4), epochs=arguments.meta_epochs, steps_per_epoch=arguments.meta_steps
)
print("\nMAML's test: other images, of the four other classes")
maml.evaluate(test_episodes)
curves["MAML"] = ksm.evaluation.adaptation_curve(maml, test_episodes, steps=5)
for key, curve in zip(("untrained_network", "maml"), curves.values(), strict=True):
    results[key] = {
        f"after_{k}": [round(100 * curve.mean[k], 2), round(100 * curve.half_interval[k], 2)]
        for k in range(6)
    }

# --------------------------------------------------------------------------------------- picture
picture = matplotlib.figure.Figure(figsize=(11, 9), layout="constrained")
(learning, adapting), (pixels, embedding) = picture.subplots(2, 2)
ksm.visualization.plot_learning_curve(history, ax=learning)
learning.set_title("SimCLR")
ksm.visualization.plot_adaptation_curve(curves, ax=adapting)
adapting.set_title("MAML, four unseen classes")
shown = np.random.default_rng(arguments.seed).choice(len(test_x), 1000, replace=False)
names = np.array(data.class_names)[test_y[shown]]
for ax, name, features in (
    (pixels, "Raw pixels", test_x[shown].reshape(len(shown), -1)),
    (embedding, "SimCLR's encoder", encoder.predict(test_x[shown], verbose=0)),
):
    ksm.visualization.plot_embedding(features, names, ax=ax)
    ax.set_title(f"{name}, t-SNE of test images")
picture.savefig("article_cifar10.png", dpi=110)

# ---------------------------------------------------------------------------------------- figures
results["seconds"] = round(time.perf_counter() - started, 1)
with open("article_cifar10.json", "w") as file:
    json.dump(results, file, indent=2)


def row(title, *cells):
    """A line of the table; a cell is a mean and half its interval, or None."""
    written = ("–" if cell is None else f"{cell[0]:.1f} ± {cell[1]:.1f}" for cell in cells)
    print(f"{title:40s}" + "".join(f"{cell:>16s}" for cell in written))


print(f"\nTest accuracy in percent, with 95% intervals ({data.name})")
print(f"{'':40s}{'20 neighbours':>16s}{'linear probe':>16s}{f'{WAYS}-way {SHOTS}-shot':>16s}")
for key, title in (
    ("raw", "raw pixels"),
    ("untrained", "untrained encoder"),
    ("simclr", "SimCLR's encoder"),
):
    row(title, *results[key].values())
for k in (0, 1, 5):
    when = "before adaptation" if k == 0 else f"after {k} step{'s' * (k > 1)}"
    row(f"untrained network, {when}", None, None, results["untrained_network"][f"after_{k}"])
for k in (0, 1, 5):
    when = "before adaptation" if k == 0 else f"after {k} step{'s' * (k > 1)}"
    row(f"MAML, {when}", None, None, results["maml"][f"after_{k}"])
print(
    f"Few-shot: {arguments.episodes} episodes of {', '.join(UNSEEN)}, four classes that SimCLR met "
    "without\nlabels and MAML not at all. The other columns: all ten classes."
)
print(
    f"\narticle_cifar10.png and article_cifar10.json are in {os.getcwd()} "
    f"({results['seconds']:.0f} seconds)"
)
