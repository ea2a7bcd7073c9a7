"""How `benchmarks/omniglot.py` builds and feeds each method: the settings of the comparison."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import keras_sslmeta as ksm


@dataclasses.dataclass
class Setting:
    """What all methods share.

    Attributes:
        ways, shots, queries: of a training task.
        tasks: tasks a step.
        steps: steps of meta-training.
        width: filters of each of the four convolutions.
        inner_steps, inner_rate: of the gradient-based ones.
        invert: whether images are dark on white.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 1
    tasks: int = 32
    steps: int = 1000
    width: int = 64
    inner_steps: int = 1
    inner_rate: float = 0.5
    invert: bool = True


@dataclasses.dataclass
class Method:
    """A method: how to build it, what it is fed, and with which optimiser."""

    build: Callable
    feed: Callable
    optimizer: Callable = lambda setting: keras.optimizers.Adam(3e-3)
    loss: Callable = lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def conv4(shape, setting, head=None):
    """The four convolutions of Vinyals et al. 2016, with a head of so many classes or without."""
    scale = {"scale": -1 / 255, "offset": 1.0} if setting.invert else {"scale": 1 / 255}
    layers = [keras.Input(shape), keras.layers.Rescaling(**scale)]
    for _ in range(4):
        layers += [
            keras.layers.Conv2D(setting.width, 3, padding="same"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers.append(keras.layers.Flatten())
    if head is not None:
        layers.append(keras.layers.Dense(head))
    return keras.Sequential(layers)


# ------------------------------------------------------------------------------------- what they are fed


def labelled(data, setting, seed, start, **changes):
    """Episodes with labels."""
    form = {"ways": setting.ways, "shots": setting.shots, "queries": setting.queries, **changes}
    return ksm.data.episodes(
        (data.train_x, data.train_y), rotations=setting.invert, seed=seed, start=start, **form
    )


def twenty_ways(data, setting, seed, start):
    return labelled(data, setting, seed, start, ways=20)


def ten_shots(data, setting, seed, start):
    """Reptile learns from supports alone: more shots, and one query for the history."""
    return labelled(data, setting, seed, start, shots=10, queries=1)


def strokes(setting):
    """Augmentation of drawings: shifted, turned and scaled a little, some pixels wiped out."""
    white = {"fill_mode": "constant", "fill_value": 255.0 if setting.invert else 0.0}
    return keras.Sequential(
        [
            keras.layers.RandomTranslation(0.2, 0.2, seed=1, **white),
            keras.layers.RandomRotation(0.05, seed=2, **white),
            keras.layers.RandomZoom(0.2, seed=3, **white),
        ]
    )


def all_rotations(images):
    """Unlabelled images with their turns: what `rotations` does to labelled ones."""
    return np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in range(4)])


def from_augmentations(data, setting, seed, start):
    images = all_rotations(data.train_x) if setting.invert else data.train_x
    return ksm.data.umtra(
        images, strokes(setting), ways=setting.ways, queries=setting.queries, seed=seed, start=start
    )


def clusters_of_encoder(data, setting, seed, work):
    """Partitions of the training images by k-means on a SimCLR encoder's features, kept in `work`."""
    images = all_rotations(data.train_x) if setting.invert else data.train_x
    kept = work / f"clusters_{seed}.npy"
    if kept.exists():
        return images, np.load(kept)
    keras.utils.set_random_seed(seed)
    encoder = conv4(images.shape[1:], setting)
    simclr = ksm.SimCLR(encoder, augmentation=strokes(setting))
    simclr.compile(keras.optimizers.Adam(1e-3), loss=ksm.losses.NTXent(0.2))
    count = 256 * 300
    drawn = images[np.random.default_rng(seed).integers(0, len(images), count)]
    simclr.fit(drawn, batch_size=256, epochs=1, verbose=2)
    features = simclr.predict(images, batch_size=256, verbose=0)
    labels = ksm.data.cluster_labels(features, clusters=500, partitions=10, seed=seed)
    np.save(kept, labels)
    return images, labels


def from_clusters(data, setting, seed, start, work):
    images, labels = clusters_of_encoder(data, setting, seed, work)
    form = {"ways": setting.ways, "shots": setting.shots, "queries": setting.queries}
    return ksm.data.cactus(images, labels=labels, seed=seed, start=start, **form)


# ----------------------------------------------------------------------------------------- the methods


def maml(kind=ksm.MAML, **arguments):
    def build(shape, setting):
        shared = {
            "inner_steps": setting.inner_steps,
            "inner_learning_rate": setting.inner_rate,
            "test_inner_steps": 3,
        }
        return kind(conv4(shape, setting, setting.ways), **(shared | arguments))

    return build


def meta_sgd(shape, setting):
    # The paper's range, on a mean over the ways in place of a sum.
    rates = keras.initializers.RandomUniform(0.005 * setting.ways, 0.1 * setting.ways)
    network = conv4(shape, setting, setting.ways)
    return ksm.MetaSGD(network, setting.inner_steps, rate_initializer=rates)


def maml_plus_plus(shape, setting):
    return ksm.MAMLPlusPlus(
        conv4(shape, setting, setting.ways), multi_step_iterations=setting.steps // 10
    )


def cosine(setting):
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, setting.steps, alpha=0.01)
    return keras.optimizers.Adam(schedule)


def reptile(shape, setting):
    return ksm.Reptile(conv4(shape, setting, setting.ways), inner_batch_size=10, seed=0)


def falling(setting):
    return keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, setting.steps, 0.0))


def prototypes(shape, setting):
    return ksm.PrototypicalNetwork(conv4(shape, setting))


def halved(setting):
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-3, 2000, 0.5, staircase=True)
    return keras.optimizers.Adam(schedule)


METHODS = {
    "MAML": Method(maml(), labelled),
    # One step of 0.5, which suits second order, left first order 20 points behind.
    "FOMAML": Method(maml(second_order=False, inner_steps=3, inner_learning_rate=0.1), labelled),
    "ProtoNet": Method(prototypes, twenty_ways, halved),
    "ANIL": Method(maml(ksm.ANIL), labelled),
    "BOIL": Method(maml(ksm.BOIL), labelled),
    "Reptile": Method(reptile, ten_shots, falling),
    "MetaSGD": Method(meta_sgd, labelled),
    "MAML++": Method(maml_plus_plus, labelled, cosine),
    "UMTRA": Method(maml(), from_augmentations),
    "CACTUs": Method(maml(), from_clusters),
}


def train_episodes(name, data, setting, seed, start, work):
    """An endless dataset of batches of tasks for a method."""
    feed = METHODS[name].feed
    more = {"work": work} if feed is from_clusters else {}
    episodes = feed(data, setting, seed, start, **more)
    return episodes.batch(setting.tasks).prefetch(tf.data.AUTOTUNE)
