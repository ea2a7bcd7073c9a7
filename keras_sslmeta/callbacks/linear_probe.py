"""Linear accuracy after every epoch."""

import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sslmeta.callbacks.encoder_probe import EncoderProbe, check_name
from keras_sslmeta.data.labelled_arrays import labelled_arrays
from keras_sslmeta.evaluation.features import encode
from keras_sslmeta.mechanisms import arguments, inner_optimizers


class LinearProbe(EncoderProbe):
    """Keeps a linear classifier on the encoder's features, and measures it on a set of its own.

    At the end of an epoch it encodes the two sets, trains the classifier for some passes over the
    training features and writes accuracy and cross-entropy on the test features into the epoch's
    logs, where `History`, the progress bar, `CSVLogger`, `TensorBoard`, `EarlyStopping` and
    `ModelCheckpoint(monitor="linear_accuracy", mode="max")` find them. Put it before callbacks that
    read them: Keras calls them in the order of the list.

    The classifier `softmax(W x + b)`, on features less their mean and divided by their standard
    deviation, starts from zero when `fit` starts and goes on from where it was at the next
    measurement, with an Adam of its own. Nothing of it reaches the encoder or the model: the
    training is the same to the bit with the probe and without. The accuracy lags behind that of
    `evaluation.linear_probe`, which fits to convergence; it is for the curve.

    A measurement costs the encoding of both sets, which is nearly all of it, and `epochs` passes
    over `(n, dim)` features. Bound it by `every`, by `epochs` and by the sets that you pass: some
    thousand samples give a curve. With `every=n`, it measures after the first epoch, after every
    n-th and after the last that `fit` was asked for. The epochs between repeat the last values, as
    `KNNProbe`'s do.

    Args:
        train: `(x, y)`, samples `(n, …)` as the encoder takes them, for several inputs a dictionary or
            tuple of such arrays, and labels `(n,)`; or a finite `tf.data.Dataset` of such pairs, batched
            or not, which is read into memory.
        test: the same, of the samples that are predicted. A label that no training sample has counts
            as wrong and is left out of the loss; so is a sample whose features are not finite.
        epochs: passes of the classifier over the training features, a measurement. Defaults to 10.
        learning_rate: of the classifier's Adam. Defaults to 1e-3, Keras's.
        every: epochs from one measurement to the next. Defaults to 1.
        encoder: a `keras.Model` that shares its layers with the model in training (or another
            callable from samples to features). Default: `model.encoder` where the model has one,
            as ours have, else the model itself.
        batch_size: samples encoded at a time, and samples a step of the classifier. Defaults to 256.
        seed: of the order of the training features. Defaults to 0.
        name: in front of the keys in the logs, `{name}_accuracy` and `{name}_loss`. Defaults to
            `"linear"`.

    Raises:
        ValueError: if an argument is out of range, lengths differ, or (when `fit` starts) the encoder
            takes inputs of another shape.

    Example:
    >>> import keras
    >>> x, y = np.random.rand(40, 3), np.repeat([0, 1], 20)
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", loss="sparse_categorical_crossentropy")
    >>> history = model.fit(x, y, verbose=0, callbacks=[LinearProbe((x, y), (x, y))])
    >>> list(history.history)
    ['loss', 'linear_accuracy', 'linear_loss']

    Reference:
        - Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations,
          appendix B.9 (a linear classifier beside pretraining, without gradient into the encoder).
          https://arxiv.org/abs/2002.05709
    """

    def __init__(
        self,
        train: Any,
        test: Any,
        epochs: int = 10,
        learning_rate: float = 1e-3,
        every: int = 1,
        encoder: Any = None,
        batch_size: int = 256,
        seed: int = 0,
        name: str = "linear",
    ):
        train_x, train_y = labelled_arrays(train, "train")
        test_x, self.test_y = labelled_arrays(test, "test")
        self.classes, self.class_ids = np.unique(train_y, return_inverse=True)
        if (self.classes.dtype.kind in "US") != (self.test_y.dtype.kind in "US"):
            raise ValueError(
                "`train` and `test` must have labels of one type. "
                f"Received: {self.classes.dtype} and {self.test_y.dtype}"
            )
        keys = [f"{check_name(name)}_accuracy", f"{name}_loss"]
        samples = {"train": train_x, "test": test_x}
        super().__init__(samples, keys, every, encoder, batch_size)
        self.epochs = arguments.count("epochs", epochs)
        self.learning_rate = arguments.positive_number("learning_rate", learning_rate)
        self.seed = arguments.seed(seed)
        self._classifier: Any = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._classifier = None
        self._random = np.random.default_rng(self.seed)

    def _values(self):
        encoder = self._encoder()
        features = encode(encoder, self.samples["train"], self.batch_size)
        asked = encode(encoder, self.samples["test"], self.batch_size)
        finite = np.isfinite(features).all(axis=1)
        if not finite.any():
            return [0.0, math.nan]
        features = features[finite]
        mean, scale = features.mean(axis=0), features.std(axis=0)
        # A constant feature, exactly or to rounding, is zero and not noise.
        scale = np.where(scale > 1e-6 * np.abs(features).max(axis=0), scale, np.inf)
        self._train((features - mean) / scale, self.class_ids[finite])
        with np.errstate(invalid="ignore"):
            return self._measured((asked - mean) / scale)

    def _train(self, features: np.ndarray, class_ids: np.ndarray) -> None:
        if self._classifier is None:
            weights = [
                tf.zeros((features.shape[1], len(self.classes))),
                tf.zeros(len(self.classes)),
            ]
            self._classifier = tf.constant(0), weights, _ADAM.start(weights)
        order = [self._random.permutation(len(features)) for _ in range(self.epochs)]
        step, weights, state = self._classifier
        self._classifier = _trained(
            tf.constant(features, "float32"),
            tf.constant(class_ids, "int32"),
            tf.constant(np.concatenate(order), "int32"),
            tf.constant(self.batch_size),
            tf.constant(self.learning_rate),
            step,
            weights,
            state,
        )

    def _measured(self, features: np.ndarray) -> list[float]:
        _, (kernel, bias), _ = self._classifier
        logits = features.astype("float64") @ kernel.numpy() + bias.numpy()
        places = np.searchsorted(self.classes, self.test_y).clip(max=len(self.classes) - 1)
        usable = np.isfinite(logits).all(axis=1) & (self.classes[places] == self.test_y)
        right = (logits.argmax(axis=1) == places) & usable
        logits, places = logits[usable], places[usable]
        if len(logits) == 0:
            return [0.0, math.nan]
        logits = logits - logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(logits, places[:, np.newaxis], axis=1)[:, 0]
        losses = np.log(np.exp(logits).sum(axis=1)) - own
        return [float(np.mean(right)), float(np.mean(losses))]


_ADAM = inner_optimizers.Adam()


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _trained(features, class_ids, order, batch_size, rate, step, weights, state):
    """The classifier after the batches of `order`: steps taken so far, weights, Adam's state."""
    batches = tf.cast(tf.math.ceil(tf.size(order) / batch_size), tf.int32)
    targets = tf.one_hot(class_ids, tf.size(weights[1]))

    def one_step(i, weights, state):
        rows = order[i * batch_size : (i + 1) * batch_size]
        x, y = tf.gather(features, rows), tf.gather(targets, rows)
        kernel, bias = weights
        # Of the mean cross-entropy with respect to the logits.
        error = (tf.nn.softmax(x @ kernel + bias) - y) / tf.cast(tf.size(rows), x.dtype)
        gradients = [tf.matmul(x, error, transpose_a=True), tf.reduce_sum(error, axis=0)]
        weights, state = _ADAM.step(step + i, weights, gradients, state, [rate, rate])
        return i + 1, weights, state

    _, weights, state = tf.while_loop(
        lambda i, *_: i < batches, one_step, (tf.constant(0), weights, state)
    )
    return step + batches, weights, state
