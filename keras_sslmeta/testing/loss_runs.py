"""A loss on one device and on replicas: value, gradients, and weights after three steps."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.testing import comparison, replica_runs

_STEPS = 3


@dataclasses.dataclass
class Outcome:
    """What the global batch gives."""

    value: float
    """As Keras reports it: mean over replicas, weighed by their samples."""
    gradients: dict[str, np.ndarray]
    """A row for each sample."""


class FunctionLoss(keras.losses.Loss):
    """A function of targets and predictions as a loss, as `compile` makes one of it."""

    def __init__(self, function):
        name = getattr(function, "__name__", "loss")
        super().__init__(
            name=name if name.isidentifier() else "loss"
        )  # Not "<lambda>": a scope's name.
        self._function = function

    def call(self, y_true, y_pred):
        return self._function(y_true, y_pred)


class LossRuns:
    """Runs of one loss on shares of one batch.

    Args:
        loss: a `keras.losses.Loss`.
        batch: `y_pred`, and `y_true` and `sample_weight` where there are any; structures of arrays.
    """

    def __init__(self, loss: keras.losses.Loss, batch: dict[str, Any]):
        self.loss = loss
        self.batch = batch
        self.samples = len(keras.tree.flatten(batch["y_pred"])[0])
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        self.is_mean = reduction not in ("sum", "none", None)
        self._runners: dict = {}

    def on_shares(self, shares, batch=None) -> Outcome:
        """The shares on as many replicas as there are shares, in the order of the rows."""
        results = self._runner(len(shares), batch)(batch or self.batch, shares)
        return combine(results, shares, self.is_mean)

    def on_rows(self, start: int, count: int, batch=None) -> Outcome:
        """Some rows on one device, as if they were all."""
        results = self._runner(1, batch)(batch or self.batch, (count,), start)
        return combine(results, (count,), self.is_mean)

    def after_steps(self, shares, learning_rate: float) -> np.ndarray:
        """Three steps of gradient descent on factors of the predictions, one for each of their entries."""
        predictions = keras.tree.flatten(self.batch["y_pred"])
        factors = [np.ones(x.shape[1:], "float64") for x in predictions]
        for _ in range(_STEPS):
            scaled = [
                (x.astype("float64") * factor).astype(x.dtype)
                for x, factor in zip(predictions, factors, strict=True)
            ]
            batch = {
                **self.batch,
                "y_pred": keras.tree.pack_sequence_as(self.batch["y_pred"], scaled),
            }
            gradients = _of_predictions(self.on_shares(shares, batch).gradients)
            for i, gradient in enumerate(gradients):
                rows = predictions[i][: len(gradient)].astype("float64")
                factors[i] = factors[i] - learning_rate * (gradient * rows).sum(axis=0)
        return np.concatenate([x.ravel() for x in factors])

    def learning_rate(self, outcome: Outcome) -> float:
        """One at which the factors change by a tenth at most in the first step."""
        largest = 0.0
        predictions = keras.tree.flatten(self.batch["y_pred"])
        for x, gradient in zip(predictions, _of_predictions(outcome.gradients), strict=True):
            # Of the terms, since their sum is zero for a loss that does not depend on the scale.
            terms = np.abs(gradient * x[: len(gradient)].astype("float64"))
            largest = max(largest, float(terms.sum(axis=0).max()))
        # Of a gradient that is next to nothing, steps would make much of its rounding.
        return 0.1 / max(largest, 0.01 * max(abs(outcome.value), 0.1))

    def differences(
        self, got: Outcome, expected: Outcome, shares, rtol, holder: str = "replica"
    ) -> list:
        """Gradients and value that differ; `holder` is what has a share."""
        found: list = []
        for name, gradient in expected.gradients.items():
            # Where all gradients are next to nothing for a loss of this size, they are rounding.
            least = 0.01 * max(abs(expected.value), 0.1) / self.samples
            scale = max(float(np.abs(gradient).max()), least)
            difference = comparison.compare(
                f"gradient of {name}", got.gradients[name], gradient, rtol, scale
            )
            if difference:
                row = difference.index[0]
                where = f", sample {row}"
                if len(shares) > 1:
                    where += f" on {holder} {comparison.share_of(row, shares)}"
                quantity = f"gradient of {name}{where}"
                found.append(dataclasses.replace(difference, quantity=quantity))
        # Terms of a value near zero cancel: its rounding is theirs.
        scale = max(abs(expected.value), 0.1)
        found.append(comparison.compare("loss", got.value, expected.value, rtol, scale))
        return [difference for difference in found if difference]

    def values(self) -> np.ndarray:
        """What `call` returns on one device: one value a sample, where all is well."""
        plain = {name: x for name, x in self.batch.items() if name != "sample_weight"}
        if "values" not in self._runners:
            self._runners["values"] = replica_runs.OnShares(self._values, plain, self.samples)
        (values,) = self._runners["values"](plain, (self.samples,))
        return np.asarray(values, "float64")

    def divides_by_weights(self) -> bool:
        """Whether the mean is one over the sum of sample weights."""
        by_weights = getattr(self.loss, "reduction", None) == "mean_with_sample_weight"
        return by_weights and "sample_weight" in self.batch

    def _values(self, batch):
        return self.loss.call(batch.get("y_true"), batch["y_pred"])

    def _runner(self, replicas, batch):
        key = (replicas, tuple(sorted(batch or self.batch)))
        if key not in self._runners:
            self._runners[key] = replica_runs.OnShares(
                self._value_and_gradients, batch or self.batch, self.samples, replicas
            )
        return self._runners[key]

    def _value_and_gradients(self, batch):
        watched = self._named_floats(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(watched.values()))
            value = self.loss(
                batch.get("y_true"), batch["y_pred"], sample_weight=batch.get("sample_weight")
            )
        gradients = tape.gradient(
            value, watched, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return {"value": value, "gradients": gradients}

    def _named_floats(self, batch):
        """What has a gradient with a row for each sample, by name; predictions come first."""
        named = {}
        for part in ("y_pred", "y_true"):
            if part not in batch:
                continue
            arrays = keras.tree.flatten_with_path(self.batch[part])
            tensors = keras.tree.flatten(batch[part])
            for (path, array), tensor in zip(arrays, tensors, strict=True):
                if tensor.dtype.is_floating and replica_runs.is_shared_out(array, self.samples):
                    named["".join([f"`{part}`", *(f"[{key!r}]" for key in path)])] = tensor
        return named


def combine(results, shares, is_mean: bool) -> Outcome:
    """One outcome from those of the replicas, as Keras and the strategy combine them."""
    values = [float(np.sum(np.asarray(x["value"], "float64"))) for x in results]
    if is_mean:
        # Keras divides by the number of replicas, and takes that back for its history.
        values = [v * n * len(shares) / sum(shares) for v, n in zip(values, shares, strict=True)]
    names = results[0]["gradients"]
    gradients = {
        name: np.concatenate([np.asarray(x["gradients"][name], "float64") for x in results])
        for name in names
    }
    return Outcome(sum(values), gradients)


def _of_predictions(gradients):
    return [x for name, x in gradients.items() if name.startswith("`y_pred`")]
