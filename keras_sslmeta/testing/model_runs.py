"""A model trained for three steps, on one device and on replicas."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import model_copy
from keras_sslmeta.testing import comparison, replica_runs


@dataclasses.dataclass
class Step:
    """What one training step gave."""

    logs: dict[str, float]
    gradients: list[tuple[str, np.ndarray]]
    """With the variables' paths, summed over replicas."""
    weights: list[tuple[str, np.ndarray]]
    state: list[tuple[str, np.ndarray]]
    """Variables without gradient, such as moving averages, but for those of random generators."""
    drew: bool
    """Whether a random generator moved on."""


class RecordingSGD(keras.optimizers.SGD):
    """Gradient descent that keeps the last gradients, as they come from all replicas."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.gradients = self.add_optimizer_variables(variables, "gradient")

    def update_step(self, gradient, variable, learning_rate):
        self.assign(self.gradients[self._get_variable_index(variable)], gradient)
        super().update_step(gradient, variable, learning_rate)


class ModelRuns:
    """Training steps of one model on shares of a batch.

    Args:
        source: a compiled `keras.Model`, or a function that builds and compiles one.
        batch: `x`, and `y` and `sample_weight` where there are any; structures of arrays.
        replicas: number of replicas.
        learning_rate: of plain gradient descent, which takes the place of the model's optimizer.
        start: values of all variables to begin with, in their order.
        micro_batch_size: value for the model's attribute of this name; left as it is where not given.
    """

    def __init__(
        self,
        source: "keras.Model | Callable[[], keras.Model]",
        batch: dict[str, Any],
        replicas: int,
        learning_rate: float,
        start: "list[np.ndarray] | None" = None,
        **micro_batch_size,
    ):
        self.samples = len(keras.tree.flatten(batch["x"])[0])
        self.batch = batch
        with scope(replicas):
            self.model = _made(source, batch)
            for name, value in micro_batch_size.items():
                setattr(self.model, name, value)
            self._replace_optimizer(learning_rate)
            self._build()
            if start is not None:
                _assign(self.model.variables, start)
        self._variables = [*self.model.variables, *self.model.optimizer.variables]
        # The optimizer's are all zeros but for the rate, and none of the model's is trained yet.
        self._start = [keras.ops.convert_to_numpy(v) for v in self._variables]
        self.start = self._start[: len(self.model.variables)]
        self._run = replica_runs.OnShares(self._train, batch, self.samples, replicas)
        self._replicas = replicas

    def steps(self, plan: "Sequence[tuple[int, ...]]", first_row: int = 0) -> list[Step]:
        """A step for each entry of the plan, from the initial values; the k-th begins k rows later."""
        with scope(self._replicas):
            _assign(self._variables, self._start)
        return [
            self._step(shares, rolled(self.batch, self.samples, k), first_row)
            for k, shares in enumerate(plan)
        ]

    def _step(self, shares, batch, first_row):
        with scope(self._replicas):
            self.model.reset_metrics()
        state, random = self._untrained()
        before = _by_path(random, random)
        logs = self._run(batch, shares, first_row)[0]
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        trained = self.model.trainable_variables
        moved = zip(before, _by_path(random, random), strict=True)
        return Step(
            logs={name: float(np.mean(x)) for name, x in _logs(self.model, logs).items()},
            gradients=_by_path(trained, optimizer.gradients),
            weights=_by_path(trained, trained),
            state=_by_path(state, state),
            drew=any(not np.array_equal(old, new) for (_, old), (_, new) in moved),
        )

    def _untrained(self):
        """Variables without gradient, apart from metrics': state, and that of random generators."""
        metrics = {id(v) for metric in self.model.metrics for v in metric.variables}
        others = [v for v in self.model.non_trainable_variables if id(v) not in metrics]
        random = [v for v in others if "seed_generator" in v.path]
        return [v for v in others if "seed_generator" not in v.path], random

    def _train(self, batch):
        y, weights = batch.get("y"), batch.get("sample_weight")
        data = keras.utils.pack_x_y_sample_weight(batch["x"], y, weights)
        return self.model.train_step(data)

    def _replace_optimizer(self, learning_rate):
        if not isinstance(getattr(self.model, "optimizer", None), keras.optimizers.Optimizer):
            raise ValueError(
                "The model must have been compiled, with an optimizer. "
                f"Received: optimizer={getattr(self.model, 'optimizer', None)!r}"
            )
        optimizer: Any = RecordingSGD(learning_rate)
        if isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model.optimizer = optimizer

    def _build(self):
        """Everything that has variables, before any replica runs."""
        rows = keras.tree.map_structure(
            lambda x: tf.convert_to_tensor(
                x[: self.samples // 2] if replica_runs.is_shared_out(x, self.samples) else x
            ),
            self.batch,
        )
        self.model._symbolic_build(data_batch=(rows["x"], rows.get("y"), rows.get("sample_weight")))
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)


def scope(replicas: int):
    """The strategy's scope; for one replica, the first of the same devices."""
    if replicas == 1:
        return tf.device(replica_runs.devices()[0])
    return replica_runs.strategy(replicas).scope()


def rolled(batch, samples: int, by: int):
    """The batch with its rows moved, those of all arrays that have one for each sample."""
    return keras.tree.map_structure(
        lambda x: np.roll(x, -by, axis=0) if replica_runs.is_shared_out(x, samples) else x, batch
    )


def differences(got: Step, expected: Step, rtol: float) -> list:
    """Gradients, logs, state and weights that differ, against the largest of their kind.

    Weights are left out where gradients differ already.
    """
    found: list = []
    for name, value in expected.logs.items():
        if name in got.logs:
            scale = max(abs(value), 0.1)
            found.append(
                comparison.compare(f"{name} in the logs", got.logs[name], value, rtol, scale)
            )
    for kind, mine, others in (
        ("gradient of", got.gradients, expected.gradients),
        ("state", got.state, expected.state),
        ("weight", got.weights, expected.weights),
    ):
        if kind == "weight" and any(x and x.quantity.startswith("gradient") for x in found):
            break
        sizes = [np.abs(x.astype("float64")).max() for _, x in others if x.size]
        largest = float(max(sizes, default=0.0))
        # By their order: a model that is built again has other names.
        found += [
            comparison.compare(f'{kind} "{path}"', x, other, rtol, largest)
            for (_, x), (path, other) in zip(mine, others, strict=True)
        ]
    return [difference for difference in found if difference]


def gradient_vector(step: Step) -> np.ndarray:
    """All gradients in one."""
    return np.concatenate([x.ravel() for _, x in step.gradients])


def _made(source, batch):
    """A model of this scope, built, with the variables' values of `source` where that is a model."""
    if not isinstance(source, keras.Model):
        model = source()
        if not isinstance(model, keras.Model):
            raise ValueError(
                "The function must return a compiled keras.Model. "
                f"Received: {model!r} (of type {type(model).__name__})"
            )
        return model
    config = dict(source._compile_config.config) if source.compiled else {}
    if not config:
        raise ValueError("The model must have been compiled.")
    # Their variables belong to no scope, and they take no part in training.
    config |= {"metrics": None, "weighted_metrics": None}
    config["optimizer"] = "sgd"
    try:
        model = _copied(source, batch["x"])
    except Exception as error:
        raise ValueError(
            "The model could not be copied by its configuration: pass a function that builds and compiles "
            f"it, `assert_batch_invariant(build_model, x, y)`. {type(error).__name__}: {error}"
        ) from error
    model.compile(**config)
    return model


def _copied(source, x):
    if isinstance(source, keras.Sequential) or getattr(source, "inputs", None):
        return model_copy.copy_with(source, {}, x)
    # Not by `clone_model`, which would look for the class of the compiled loss, too.
    model = type(source).from_config(source.get_config())
    if not model.built:
        model(
            keras.tree.map_structure(
                lambda x: keras.KerasTensor((None, *x.shape[1:]), dtype=x.dtype.name), x
            )
        )
    _assign(model.variables, [keras.ops.convert_to_numpy(v) for v in source.variables])
    return model


def _logs(model, logs):
    """As `fit` reports them."""
    results = model.get_metrics_result()
    if set(results) == set(logs):
        logs = results
    return {name: keras.ops.convert_to_numpy(x) for name, x in logs.items()}


def _by_path(variables, values):
    pairs = zip(variables, values, strict=True)
    return [(variable.path, keras.ops.convert_to_numpy(value)) for variable, value in pairs]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
