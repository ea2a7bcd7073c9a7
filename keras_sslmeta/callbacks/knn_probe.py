"""Nearest-neighbour accuracy after every epoch."""

from typing import Any

from keras_sslmeta.callbacks.encoder_probe import EncoderProbe, check_name
from keras_sslmeta.data.labelled_arrays import labelled_arrays
from keras_sslmeta.evaluation.features import encode
from keras_sslmeta.evaluation.knn import check_neighbours, knn_accuracy


class KNNProbe(EncoderProbe):
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
        train: `(x, y)`, the neighbours: samples `(n, …)` as the encoder takes them, for several inputs
            a dictionary or tuple of such arrays, and labels `(n,)`; or a finite `tf.data.Dataset` of such
            pairs, batched or not, which is read into memory.
        test: the same, of the samples whose neighbours are asked.
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
    >>> import keras, numpy as np
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
        train: Any,
        test: Any,
        k: int = 20,
        temperature: float = 0.1,
        every: int = 1,
        encoder: Any = None,
        batch_size: int = 256,
        name: str = "knn_accuracy",
    ):
        train_x, self.train_y = labelled_arrays(train, "train")
        test_x, self.test_y = labelled_arrays(test, "test")
        check_neighbours(k, len(self.train_y), temperature)
        samples = {"train": train_x, "test": test_x}
        super().__init__(samples, [check_name(name)], every, encoder, batch_size)
        self.k = k
        self.temperature = temperature

    def measure(self) -> float:
        """The accuracy of the encoder as it is now, a fraction from 0 to 1."""
        encoder = self._encoder()
        return knn_accuracy(
            encode(encoder, self.samples["train"], self.batch_size),
            self.train_y,
            encode(encoder, self.samples["test"], self.batch_size),
            self.test_y,
            k=self.k,
            temperature=self.temperature,
        )

    def _values(self):
        return [self.measure()]
