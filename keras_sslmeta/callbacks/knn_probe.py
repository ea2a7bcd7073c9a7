"""Nearest-neighbour accuracy after every epoch."""

from typing import Any

import keras
import numpy as np

from keras_sslmeta.evaluation.features import as_labels, encode
from keras_sslmeta.evaluation.knn import check_neighbours, knn_accuracy
from keras_sslmeta.mechanisms import arguments


class KNNProbe(keras.callbacks.Callback):
    """Measures the encoder's nearest-neighbour accuracy on a labelled set of its own.

    At the end of an epoch it encodes the two sets and writes the accuracy of `knn_accuracy` into
    the epoch's logs, where `History`, the progress bar, `CSVLogger`, `TensorBoard`,
    `EarlyStopping` and `ModelCheckpoint(monitor="knn_accuracy", mode="max")` find it. Put it
    before callbacks that read it: Keras calls them in the order of the list.

    With `every=n`, it measures after the first epoch, after every n-th and after the last that
    `fit` was asked for. The epochs between repeat the last value, because `CSVLogger` takes its
    columns from the first epoch and `EarlyStopping` warns of an epoch without its quantity; give
    `EarlyStopping` a `patience` of several times n.

    Args:
        train: `(x, y)`, samples `(n, …)` as the encoder takes them and labels `(n,)`, the
            neighbours.
        test: `(x, y)`, the samples whose neighbours are asked.
        k: number of neighbours. Defaults to 20, DINO's best.
        temperature: of the neighbours' weights. Defaults to 0.1, as in lightly's benchmarks.
        every: epochs from one measurement to the next. Defaults to 1.
        encoder: a `keras.Model` that shares its layers with the model in training (or another
            callable from samples to features). Default: `model.encoder` where the model has one,
            as ours have, else the model itself.
        batch_size: samples encoded at a time. Defaults to 256.
        name: key in the logs. Defaults to `"knn_accuracy"`.

    Raises:
        ValueError: if an argument is out of range, `k` exceeds the training samples, lengths
            differ, or (when `fit` starts) the encoder takes inputs of another shape.

    Example:
    >>> x, y = np.random.rand(40, 3), np.repeat([0, 1], 20)
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", loss="sparse_categorical_crossentropy")
    >>> history = model.fit(x, y, verbose=0, callbacks=[KNNProbe((x, y), (x, y), k=5)])
    >>> list(history.history)
    ['loss', 'knn_accuracy']

    Reference:
        - Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance
          Discrimination
    """

    def __init__(
        self,
        train: tuple[Any, Any],
        test: tuple[Any, Any],
        k: int = 20,
        temperature: float = 0.1,
        every: int = 1,
        encoder: Any = None,
        batch_size: int = 256,
        name: str = "knn_accuracy",
    ):
        super().__init__()
        self.train_x, self.train_y = _labelled("train", train)
        self.test_x, self.test_y = _labelled("test", test)
        check_neighbours(k, len(self.train_x), temperature)
        for argument, value in (("every", every), ("batch_size", batch_size)):
            arguments.count(argument, value)
        if encoder is not None and not callable(encoder):
            raise ValueError(
                f"`encoder` must be a keras.Model or another callable. Received: {encoder!r}"
            )
        if not isinstance(name, str) or not name:
            raise ValueError(f"`name` must be a string. Received: {name!r}")
        self.k = k
        self.temperature = temperature
        self.every = every
        self.encoder = encoder
        self.batch_size = batch_size
        self.name = name
        self._last: float | None = None

    def on_train_begin(self, logs=None):
        self._last = None
        encoder = self._encoder()
        expected = getattr(encoder, "input_shape", None) if _is_built_model(encoder) else None
        if not isinstance(expected, tuple) or not all(
            size is None or isinstance(size, int) for size in expected
        ):
            return  # Several inputs, or shapes that only a call will tell.
        for argument, x in (("train", self.train_x), ("test", self.test_x)):
            if len(expected) != x.ndim or any(
                size not in (None, held)
                for size, held in zip(expected[1:], x.shape[1:], strict=True)
            ):
                raise ValueError(
                    f"`{argument}` must hold samples as the encoder takes them, {expected[1:]}; "
                    "for a model of another kind, of views for instance, pass "
                    f"`encoder=` the part that encodes plain samples. Received: {x.shape[1:]}"
                )

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        if self.name in logs:
            raise ValueError(
                f"`name` must not be a key that the logs have already. Received: {self.name!r}"
            )
        is_due = (epoch + 1) % self.every == 0 or epoch + 1 == (self.params or {}).get("epochs")
        if is_due or self._last is None:
            self._last = self.measure()
        logs[self.name] = self._last

    def measure(self) -> float:
        """The accuracy of the encoder as it is now, a fraction from 0 to 1."""
        encoder = self._encoder()
        return knn_accuracy(
            encode(encoder, self.train_x, self.batch_size),
            self.train_y,
            encode(encoder, self.test_x, self.batch_size),
            self.test_y,
            k=self.k,
            temperature=self.temperature,
        )

    def _encoder(self):
        if self.encoder is not None:
            return self.encoder
        encoder = getattr(self.model, "encoder", None)
        return encoder if callable(encoder) else self.model


def _labelled(name: str, data) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(f"`{name}` must be a pair, (x, y). Received: {type(data).__name__}")
    x = np.asarray(data[0])
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"`{name}` must hold samples (n, …). Received: shape={x.shape}")
    return x, as_labels(data[1], f"{name}[1]", len(x))


def _is_built_model(encoder) -> bool:
    return isinstance(encoder, keras.Model) and encoder.built
