"""Small models, trained on the strategy given; as a program, one of several workers.

Run by `replicas_test.py`, each worker in a process of its own:
    TF_CONFIG=… python tests/replicas_worker.py OUT.npz
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

import keras_sslmeta as ksm

# 62 samples in batches of 24: on 4 replicas the last batch is shared out as 6, 6, 2 and 0.
SAMPLES, BATCH, EPOCHS = 62, 24, 2
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(SAMPLES, 2, 6, 6, 1)).astype("float32")
VECTORS = RNG.normal(size=(SAMPLES, 2, 8)).astype("float32")
LABELS = np.arange(SAMPLES)
EPISODES = {
    "support_x": RNG.normal(size=(SAMPLES, 6, 5)).astype("float32"),
    "support_y": RNG.permuted(np.tile(np.arange(6) % 3, (SAMPLES, 1)), axis=1),
    "query_x": RNG.normal(size=(SAMPLES, 9, 5)).astype("float32"),
}
QUERY_Y = RNG.integers(0, 3, size=(SAMPLES, 9))
WEIGHTS = RNG.uniform(0.2, 2.0, size=SAMPLES).astype("float32")


def plain_model(reduction="sum_over_batch_size"):
    model = keras.Sequential(
        [
            keras.Input((2, 8)),
            keras.layers.Dense(16, activation="tanh", kernel_regularizer="l2"),
            keras.layers.Dense(8),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9), loss=ksm.losses.NTXent(0.5, reduction=reduction)
    )
    return model


def sim_clr(batch_normalization=False):
    encoder = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, activation="tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(12),
        ]
    )
    head = ksm.layers.ProjectionHead(8, batch_normalization=batch_normalization)
    model = ksm.SimCLR(encoder, projector=head)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss=ksm.losses.NTXent(0.5))
    return model


def maml(vectorized=False):
    """Two inner steps, with dropout and batch normalisation, neither of which may know of replicas."""
    network = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(3),
        ]
    )
    model = ksm.MAML(
        network,
        inner_steps=2,
        inner_learning_rate=0.1,
        batch_normalization="support",
        vectorized=vectorized,
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


CASES = {
    "plain": (plain_model, VECTORS, {}),
    "plain_weighted": (plain_model, VECTORS, {"y": LABELS, "sample_weight": WEIGHTS}),
    "plain_mean_of_weights": (
        lambda: plain_model("mean_with_sample_weight"),
        VECTORS,
        {"y": LABELS, "sample_weight": WEIGHTS},
    ),
    "sim_clr": (sim_clr, IMAGES, {}),
    "sim_clr_weighted": (sim_clr, IMAGES, {"sample_weight": WEIGHTS}),
    "sim_clr_synchronised_norm": (lambda: sim_clr(batch_normalization=True), IMAGES, {"y": LABELS}),
    "maml": (maml, EPISODES, {"y": QUERY_Y}),
    "maml_vectorized": (lambda: maml(vectorized=True), EPISODES, {"y": QUERY_Y}),
    "maml_weighted": (maml, EPISODES, {"y": QUERY_Y, "sample_weight": WEIGHTS}),
}
# Keras's own models cannot fit there: see mechanisms/multi_worker.py.
ON_MANY_WORKERS = ("sim_clr", "sim_clr_weighted", "maml", "maml_weighted")


def run(name, strategy):
    """Losses of the epochs, losses and metrics of `evaluate`, weights, and predictions of some."""
    build, x, kwargs = CASES[name]
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = build()
    history = model.fit(
        x, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, **kwargs
    ).history
    result = {"history": history["loss"]}
    values = model.evaluate(x, batch_size=BATCH, verbose=0, return_dict=True, **kwargs)
    result["evaluate"] = list(values.values())
    result |= {f"weight_{i}": weight for i, weight in enumerate(model.get_weights())}
    if name in ("sim_clr", "maml"):
        plain = x[:, 0] if name == "sim_clr" else x
        result["predict"] = model.predict(plain, batch_size=BATCH, verbose=0)
    return result


def main(out):
    # Made before any tensor, as a multi-worker strategy must be, and one for the process.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    results = {name: run(name, strategy) for name in ON_MANY_WORKERS}
    np.savez(out, **{f"{n}/{key}": x for n, result in results.items() for key, x in result.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
