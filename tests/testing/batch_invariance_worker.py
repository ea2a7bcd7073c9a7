"""Runs `assert_batch_invariant` on losses and models, right and wrong ones, and prints what it said.

Run by `assert_batch_invariant_test.py` in a process of its own, with the logical devices asked for:
    python tests/testing/batch_invariance_worker.py REPLICAS [CASE …]
It prints a line `RESULTS {…}`: for each case the error's type and message, or two empty strings.
"""

import json
import os
import re
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_sslmeta.testing as testing
from keras_sslmeta.layers import ProjectionHead
from keras_sslmeta.losses import BatchLoss, NTXent
from keras_sslmeta.mechanisms import cross_replica
from keras_sslmeta.ssl import SimCLR

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 5)).astype("float32")
Y = RNG.normal(size=(16, 3)).astype("float32")
IMAGES = RNG.normal(size=(12, 2, 6, 6, 1)).astype("float32")


# ------------------------------------------------------------------------------------ losses


def softmax_loss(anchors, keys, first_row):
    """Cross-entropy of finding each sample's second view among those of all; one value a sample."""
    logits = ops.matmul(anchors[:, 0], ops.transpose(keys[:, 1]))
    labels = tf.range(tf.shape(anchors)[0]) + first_row
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


class LocalNegatives(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return softmax_loss(y_pred, y_pred, 0)


class ScalarLocalNegatives(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(softmax_loss(y_pred, y_pred, 0))


class Gathered(keras.losses.Loss):
    """Right, but for uneven shares."""

    def keys(self, y_pred):
        return cross_replica.gather(y_pred)

    def call(self, y_true, y_pred):
        first_row = cross_replica.first_row(tf.shape(y_pred)[0])
        return softmax_loss(y_pred, self.keys(y_pred), first_row)


class GatheredWithoutGradient(Gathered):
    """The copies of other replicas are constants, and so is this replica's own: MoCo-like by accident."""

    def keys(self, y_pred):
        context = cross_replica.replica_context()
        if context is None:
            return y_pred
        everyone = tf.stop_gradient(context.all_gather(y_pred, axis=0))
        first_row = cross_replica.first_row(tf.shape(y_pred)[0])
        before, after = everyone[:first_row], everyone[first_row + tf.shape(y_pred)[0] :]
        return ops.concatenate([before, y_pred, after], axis=0)


class DividedTwice(Gathered):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) / cross_replica.count()


class GatheredScalar(Gathered):
    def call(self, y_true, y_pred):
        return ops.mean(super().call(y_true, y_pred))


class ExactGathered(BatchLoss):
    """The same as a subclass of this package's base: right on uneven shares too."""

    def call(self, y_true, y_pred):
        first_row = cross_replica.first_row(tf.shape(y_pred)[0])
        return softmax_loss(y_pred, cross_replica.gather(y_pred), first_row)


class LocalVariance(BatchLoss):
    def call(self, y_true, y_pred):
        spread = tf.reduce_sum(tf.math.reduce_variance(y_pred, axis=0))
        return tf.repeat(spread[None], tf.shape(y_pred)[0])


class StatisticWithoutGradient(BatchLoss):
    """The mean square of all replicas, with the gradient of this replica's part alone."""

    def call(self, y_true, y_pred):
        squares = tf.reduce_sum(y_pred**2)
        others = tf.stop_gradient(cross_replica.total(squares) - squares)
        count = cross_replica.total(tf.cast(tf.size(y_pred), y_pred.dtype))
        return tf.repeat(((squares + others) / count)[None], tf.shape(y_pred)[0])


class NoEmptyShare(BatchLoss):
    """Distances to the global mean, which becomes NaN by the mean of nothing."""

    def call(self, y_true, y_pred):
        count = tf.cast(tf.shape(y_pred)[0], y_pred.dtype)
        total = cross_replica.total(tf.reduce_mean(y_pred, axis=0) * count)
        centre = total / cross_replica.total(count)
        return tf.reduce_sum(tf.abs(y_pred - centre) ** 3, axis=[1, 2])


class RandomLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(y_pred[:, 0] * tf.random.normal(tf.shape(y_pred[:, 0])), axis=-1)


class SamePairs(keras.losses.Loss):
    """Takes nothing but 0 and 1."""

    def call(self, y_true, y_pred):
        if len(y_true.shape) != 1 or len(y_pred.shape) != 3:
            raise ValueError("One number a pair.")
        if tf.executing_eagerly() and ops.max(y_true) > 1:
            raise ValueError("Not 0 or 1.")
        return y_true * ops.mean(ops.square(y_pred[:, 0] - y_pred[:, 1]), axis=-1)


class ScaleFree(BatchLoss):
    """Whose factors on `y_pred` have a gradient of zero, but for rounding."""

    def call(self, y_true, y_pred):
        total = cross_replica.total(tf.reduce_sum(y_pred**2, axis=0))
        return tf.reduce_sum((y_pred**2 / total) ** 2, axis=[1, 2])


class ConstantPart(keras.losses.Loss):
    """The value alone depends on replicas."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_pred[:, 0]), axis=-1) + cross_replica.count()


class Labels(keras.losses.Loss):
    """Needs labels, of which some must coincide across replicas: local positives."""

    def call(self, y_true, y_pred):
        same = ops.cast(y_true[:, None] == y_true[None], y_pred.dtype)
        near = ops.matmul(y_pred[:, 0], ops.transpose(y_pred[:, 1]))
        return ops.mean(same * near, axis=-1)


class TwoTargets(keras.losses.Loss):
    """A structure of targets, one of which (a memory) is the same for all samples."""

    def call(self, y_true, y_pred):
        near = ops.matmul(y_pred, ops.transpose(y_true["memory"]))
        return ops.mean(ops.square(near), axis=-1) + ops.mean(y_true["own"] * y_pred, axis=-1)


def two_targets():
    rng = np.random.default_rng(3)
    y_true = {"own": rng.normal(size=(10, 4)), "memory": rng.normal(size=(3, 4))}
    y_pred = rng.normal(size=(10, 4))
    testing.assert_batch_invariant(TwoTargets(), y_true=y_true, y_pred=y_pred, uneven=False)


# ------------------------------------------------------------------------------------ models


def model(*layers, loss="mse", **kwargs):
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4), *layers, keras.layers.Dense(3)]
    )
    network.compile("adam", loss=loss, **kwargs)
    return network


def sim_clr(loss=None, *head):
    encoder = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(8, activation="tanh")]
    )
    projector = keras.Sequential([*head, keras.layers.Dense(4)]) if head else ProjectionHead(4)
    built = SimCLR(encoder, projector=projector)
    built.compile("adam", loss=loss)
    return built


class Largest(keras.layers.Layer):
    """Keeps the largest input of its replica's own share, and the replicas' mean of that."""

    def build(self, input_shape):
        self.largest = self.add_weight(initializer="zeros", trainable=False, aggregation="mean")

    def call(self, x):
        self.largest.assign(ops.max(x))
        return x


class LearntDivision(keras.Model):
    """A step of the user's own that takes the mean over replicas once more."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x)) / cross_replica.count()
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss * cross_replica.count() ** 2}


def own_step():
    built = LearntDivision()
    built.compile("adam", loss="mse")
    return built


class MicroBatched(keras.Model):
    """Accumulates gradients over micro-batches: by their mean, or wrongly by their sum."""

    def __init__(self, summed):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.summed = summed
        self.micro_batch_size = None

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        if self.micro_batch_size is None:
            return super().train_step(data)
        x, y = data
        samples = tf.shape(x)[0]
        total = [tf.zeros_like(v) for v in self.trainable_variables]
        for start in range(0, 12, self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x[part], y[part], self(x[part]))
            size = tf.shape(x[part])[0]
            weight = 1.0 if self.summed else tf.cast(size / samples, "float32")
            gradients = tape.gradient(loss, self.trainable_variables)
            total = [a + weight * g for a, g in zip(total, gradients, strict=True)]
        loss = self.compute_loss(x, y, self(x))
        self._loss_tracker.update_state(loss, sample_weight=samples)
        self.optimizer.apply_gradients(zip(total, self.trainable_variables, strict=True))
        return self.compute_metrics(x, y, self(x), None)


def micro_batched(summed):
    def build():
        built = MicroBatched(summed)
        built.compile("sgd", loss="mse")
        return built

    return build


def example_of_the_docstring():
    """The code in `assert_batch_invariant`'s docstring."""
    code = re.search(r"```python\n(.*?)```", testing.assert_batch_invariant.__doc__, re.DOTALL)
    exec("\n".join(line[4:] for line in code[1].splitlines()), {})


check = testing.assert_batch_invariant
CASES = {
    # Right ones.
    "nt_xent": lambda: check(NTXent()),
    "nt_xent_float16": lambda: check(NTXent(dtype="float16"), dtype="float16", rtol=2e-2),
    "exact": lambda: check(ExactGathered()),
    "exact_weighted": lambda: check(ExactGathered(), sample_weight="random", batch_size=10, seed=1),
    "exact_weighted_mean": lambda: check(
        ExactGathered(reduction="mean_with_sample_weight"), sample_weight="random"
    ),
    "exact_sum": lambda: check(ExactGathered(reduction="sum")),
    "exact_none": lambda: check(ExactGathered(reduction=None), empty=False),
    "gathered_even": lambda: check(Gathered(), uneven=False),
    "mse_even": lambda: check(keras.losses.MeanSquaredError(), uneven=False, micro_batches=True),
    "mse_by_name_even": lambda: check("mean_squared_error", uneven=False),
    "function_even": lambda: check(
        lambda y_true, y_pred: ops.mean(ops.square(y_true - y_pred), axis=-1), uneven=False
    ),
    "crossentropy_even": lambda: check(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True), uneven=False
    ),
    "two_targets": two_targets,
    "same_pairs": lambda: check(SamePairs(), uneven=False),
    "scale_free": lambda: check(ScaleFree()),
    "docstring": example_of_the_docstring,
    # Wrong ones.
    "divided_twice": lambda: check(DividedTwice()),
    "local_negatives": lambda: check(LocalNegatives()),
    "nt_xent_local": lambda: check(NTXent(gather=False)),
    "scalar_local_negatives": lambda: check(ScalarLocalNegatives()),
    "gathered_scalar": lambda: check(GatheredScalar()),
    "gathered_without_gradient": lambda: check(GatheredWithoutGradient()),
    "local_variance": lambda: check(LocalVariance()),
    "statistic_without_gradient": lambda: check(StatisticWithoutGradient()),
    "labels": lambda: check(Labels()),
    "mse": lambda: check(keras.losses.MeanSquaredError()),
    "gathered": lambda: check(Gathered()),
    "weighted_mean": lambda: check(
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        sample_weight="random",
        uneven=False,
    ),
    "empty_share": lambda: check(NoEmptyShare()),
    "no_empty_share": lambda: check(NoEmptyShare(), empty=False),
    "random": lambda: check(RandomLoss()),
    "constant_part": lambda: check(ConstantPart(), uneven=False),
    "exact_micro_batches": lambda: check(ExactGathered(), uneven=False, micro_batches=True),
    # Models.
    "sim_clr": lambda: check(sim_clr(), IMAGES),
    "sim_clr_function": lambda: check(
        lambda: sim_clr(ExactGathered()), IMAGES, sample_weight="random", uneven=False
    ),
    "sim_clr_local": lambda: check(sim_clr(LocalNegatives()), IMAGES, np.zeros(12, "float32")),
    "sim_clr_local_norm": lambda: check(
        sim_clr(ExactGathered(), keras.layers.BatchNormalization()), IMAGES, uneven=False
    ),
    "plain_even": lambda: check(model(metrics=["mae"]), X, Y, batch_size=8, uneven=False),
    "plain": lambda: check(model(), X, Y),
    "batch_norm": lambda: check(model(keras.layers.BatchNormalization()), X, Y),
    "synchronised": lambda: check(
        model(keras.layers.BatchNormalization(synchronized=True)), X, Y, uneven=False
    ),
    "dropout": lambda: check(model(keras.layers.Dropout(0.5)), X, Y),
    "local_state": lambda: check(lambda: model(Largest()), X, Y),
    "own_step": lambda: check(own_step, X, Y),
    "micro_batched": lambda: check(micro_batched(summed=False), X, Y, uneven=False),
    "micro_batched_sum": lambda: check(micro_batched(summed=True), X, Y, uneven=False),
    # Misuse.
    "nan": lambda: check(NTXent(), y_pred=np.full((8, 2, 4), np.nan)),
    "no_candidate": lambda: check(NTXent(), y_pred=np.ones((8, 4), "float32")),
    "too_many_replicas": lambda: check(NTXent(), replicas=64),
    "not_compiled": lambda: check(keras.Sequential([keras.layers.Dense(3)]), X, Y),
}


# Where there are four devices.
FOUR_CASES = {
    "four_alone": lambda: check(Gathered(), replicas=4),
    "local_on_four": lambda: check(LocalNegatives(), replicas=(4, 2)),
}


def in_scope():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        check(NTXent())


CASES["in_scope"] = in_scope


def main(replicas, *names):
    testing.configure_replicas(int(replicas))
    results = {}
    for name in names or CASES:
        try:
            (CASES | FOUR_CASES)[name]()
            results[name] = ["", ""]
        except (AssertionError, ValueError, RuntimeError) as error:
            results[name] = [type(error).__name__, str(error)]
    sys.stdout.write(f"RESULTS {json.dumps(results)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
