"""`EncoderProbe`: what callbacks that measure an encoder at the end of epochs share."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_sslmeta.evaluation.features import check_samples
from keras_sslmeta.mechanisms import arguments


class EncoderProbe(keras.callbacks.Callback):
    """Parent of the callbacks that measure the encoder on samples of their own.

    It says when to measure and of what, and writes the values into the epoch's logs. A probe adds
    `_values`, one number for each of `keys`:

    ```python
    class Norm(EncoderProbe):
        def __init__(self, x, every=1):
            super().__init__({"x": x}, ["norm"], every=every)

        def _values(self):
            return [float(np.linalg.norm(encode(self._encoder(), self.samples["x"])))]
    ```

    Args:
        samples: the probe's samples, arrays `(n, …)` or nests of them, by the name of their argument.
        keys: keys in the logs.
        every: epochs from one measurement to the next. Defaults to 1. The first and the last epoch
            are measured too; epochs between repeat the last values.
        encoder: a `keras.Model` or another callable. Defaults to None: `model.encoder` where the
            model has one, else the model itself.
        batch_size: samples encoded at a time. Defaults to 256.

    Raises:
        ValueError: if an argument is out of range or (when `fit` starts) the encoder takes inputs
            of another shape.
    """

    def __init__(
        self,
        samples: Mapping[str, Any],
        keys: Sequence[str],
        every: int = 1,
        encoder: Any = None,
        batch_size: int = 256,
    ):
        super().__init__()
        for argument, value in (("every", every), ("batch_size", batch_size)):
            arguments.count(argument, value)
        if encoder is not None and not callable(encoder):
            raise ValueError(
                f"`encoder` must be a keras.Model or another callable. Received: {encoder!r}"
            )
        self.samples = dict(samples)
        self.keys = list(keys)
        self.every = every
        self.encoder = encoder
        self.batch_size = batch_size
        self._last: dict[str, float] | None = None

    def on_train_begin(self, logs=None):
        self._last = None
        for argument, x in self.samples.items():
            check_samples(self._encoder(), x, f"Samples of `{argument}`", self._are_views(x))

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        for key in self.keys:
            if key in logs:
                raise ValueError(
                    f"`name` must not be a key that the logs have already. Received: {key!r}"
                )
        is_due = (epoch + 1) % self.every == 0 or epoch + 1 == (self.params or {}).get("epochs")
        if is_due or self._last is None:
            self._last = dict(zip(self.keys, self._values(), strict=True))
        logs.update(self._last)

    def _values(self) -> Sequence[float]:
        """What is measured now, a number for each of `keys`."""
        raise NotImplementedError

    def _are_views(self, x: Any) -> bool:
        """Whether there are several of each sample, on axis 1."""
        return False

    def _encoder(self):
        if self.encoder is not None:
            return self.encoder
        encoder = getattr(self.model, "encoder", None)
        return encoder if callable(encoder) else self.model


def check_name(name: Any) -> str:
    """A word for the logs."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"`name` must be a string. Received: {name!r}")
    return name
