"""`AdaptingModel`: what meta-learners that adapt by gradient steps share."""

import functools
import math
import numbers
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import (
    byte_images,
    cross_replica,
    inner_optimizers,
    multi_worker,
    normalization_policy,
    second_derivatives,
)
from keras_sslmeta.mechanisms.adaptation import Adaptation, Queries
from keras_sslmeta.mechanisms.inner_loop import InnerLoop, Start
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork
from keras_sslmeta.mechanisms.task_loss import TaskLoss
from keras_sslmeta.meta.episodic import EpisodicModel, weights_of_queries

_REPORTS = ("support_loss_before", "support_loss_after", "query_loss_before")


class AdaptingModel(EpisodicModel):
    """Parent of meta-learners whose model adapts to a task by gradient steps on its support set.

    `train_step` sums the tasks' meta-gradients in a loop over tasks, each at the memory of one inner step.
    `MAML` documents the arguments.
    """

    def __init__(
        self,
        model,
        inner_steps: int = 1,
        inner_learning_rate: float = 0.01,
        second_order: bool = True,
        test_inner_steps: int | None = None,
        inner_optimizer=None,
        inner_loss=None,
        adapted=None,
        batch_normalization: str = "transductive",
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.inner_steps = _count("inner_steps", inner_steps)
        self.test_inner_steps = (
            None if test_inner_steps is None else _count("test_inner_steps", test_inner_steps)
        )
        self.inner_learning_rate = _rate(inner_learning_rate)
        self.second_order = bool(second_order)
        self.inner_optimizer = inner_optimizer
        self.inner_loss = inner_loss
        self.adapted = adapted
        self.batch_normalization = batch_normalization
        self._policy = normalization_policy.named(batch_normalization)
        self._inner = (
            (inner_optimizers.SGD(), self.inner_learning_rate)
            if inner_optimizer is None
            else inner_optimizers.from_keras(inner_optimizer)
        )
        if adapted is not None and not callable(adapted):
            raise ValueError(
                "`adapted` must be a function from a variable to whether the inner loop changes it, "
                f"such as `lambda v: 'head' in v.path`. Received: {adapted!r}"
            )
        self._reports = [keras.metrics.Mean(name=name) for name in _REPORTS]
        self.step_statistics: list[Any] = []
        self._loss_weights = None
        self._functions: dict[tuple[str, int], Any] = {}
        self.build_where_known()

    # ---------------------------------------------------------------------------- for users

    def adapt(self, support_x, support_y, steps: int | None = None) -> keras.Model:
        """An ordinary Keras model, adapted to one task.

        It shares nothing with this model: train, save and use it like any other. Its `predict` gives
        what `predict` of this model gives on the task; with `batch_normalization="transductive"` it
        normalises by the support set's statistics instead, because a plain model cannot use those of the
        queries.

        Args:
            support_x: support set of one task, `(samples, …)` or a nest, without an axis of tasks.
            support_y: its targets, `(samples, …)`.
            steps: number of steps, from 0. Defaults to `test_inner_steps`.

        Returns:
            A `keras.Model` of the same architecture, not compiled.

        Raises:
            ValueError: if there is no loss to adapt by (neither compiled nor `inner_loss`), `steps` is not
                an integer from 0, or the support set is not what the model takes.
        """
        steps = self._steps(False) if steps is None else _count("steps", steps)
        support_x, support_y = (
            keras.tree.map_structure(tf.convert_to_tensor, x) for x in (support_x, support_y)
        )
        if not self.built:
            shapes = keras.tree.map_structure(lambda x: (None, *x.shape), support_x)
            self.build({"support_x": shapes})
        self._check_support(support_x, support_y)
        support_x = byte_images.as_the_model_takes_them(self.model, support_x)
        run = self._function("adapt", steps)
        weights, state, statistics = run(support_x, support_y)
        specialist = keras.models.clone_model(self.model)
        if not specialist.built:
            specialist(
                keras.tree.map_structure(
                    lambda x: keras.KerasTensor((None, *x.shape[1:]), dtype=x.dtype.name), support_x
                )
            )
        values = {id(v): v.value for v in self.model.variables}
        network = self._network()
        for variables, news in (
            (network.adapted, weights),
            (network.state, state),
            (network.statistics, statistics),
        ):
            values.update({id(v): x for v, x in zip(variables, news, strict=True)})
        for target, source in zip(specialist.variables, self.model.variables, strict=True):
            target.assign(values[id(source)])
        return specialist

    def predict_along(self, episode, steps: int):
        """Predictions for the queries before, between and after inner steps.

        `keras_sslmeta.evaluation.adaptation_curve` measures them.

        Args:
            episode: a batch of tasks, `{"support_x", "support_y", "query_x"}`.
            steps: number of steps, from 0.

        Returns:
            NumPy array `(tasks, steps + 1, queries, …)`, or a nest: entry k is what `predict` gives after
            k steps.

        Raises:
            ValueError: as `adapt`.
        """
        steps = _count("steps", steps)
        if not self.built:
            self.build(keras.tree.map_structure(lambda x: tuple(x.shape), dict(episode)))
        run = self._function("along", steps)
        return keras.tree.map_structure(lambda x: x.numpy(), run(self.episode_of(episode)))

    # ---------------------------------------------------------------------------- for Keras

    def build_method(self):
        network = self._network()
        if not network.adapted:
            raise ValueError(
                "`adapted` must select at least one trainable variable. Received: "
                f"adapted={self.adapted!r}, which selects none of "
                f"{', '.join(v.path for v in self.model.trainable_variables)}"
            )
        if self._policy.per_step and not self.step_statistics:
            self.step_statistics = [
                self.add_weight(
                    shape=(self.inner_steps + 1, *v.shape),
                    initializer=keras.initializers.Constant(float(v.numpy().flat[0])),
                    dtype=v.dtype,
                    trainable=False,
                    name=f"step_{v.name}_{i}",
                )
                for i, v in enumerate(network.statistics)
            ]

    def compile(self, optimizer="adam", loss=None, loss_weights=None, **kwargs):
        """As `keras.Model.compile`; the loss is the task's, and must be given.

        Raises:
            ValueError: if `loss` is None, or the losses of several outputs reduce in different ways.
        """
        if loss is None:
            raise ValueError(
                "MAML has no loss of its own: pass that of the task, such as "
                "`loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. Received: loss=None"
            )
        TaskLoss(loss, loss_weights, getattr(self.model, "output_names", None))
        self._loss_weights = loss_weights
        self._functions = {}
        super().compile(optimizer, loss, loss_weights=loss_weights, **kwargs)

    def call(self, inputs, training=None):
        episode = self.episode_of(inputs)
        adaptation, start = self._adaptation(bool(training), through_inputs=True)
        checks = self._checks_of_labels(adaptation, episode)
        with tf.control_dependencies(checks):
            return adaptation.each(episode, start).outputs

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        episode = self.episode_of(x)
        adaptation, start = self._adaptation(training=True)
        scale = self.optimizer.scale_loss(tf.ones([], _factor_dtype(start.adapted)))
        with second_derivatives.explained(self.model):
            results = self._measured(adaptation, start, episode, y, sample_weight, scale)
        self._apply(adaptation, results.gradients, scale)
        self._follow(adaptation, results, episode)
        return self._logs(x, y, results, sample_weight, training=True)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        adaptation, start = self._adaptation(training=False)
        results = self._measured(adaptation, start, self.episode_of(x), y, sample_weight)
        return self._logs(x, y, results, sample_weight, training=False)

    def get_config(self):
        config = {
            "inner_steps": self.inner_steps,
            "inner_learning_rate": self.inner_learning_rate,
            "second_order": self.second_order,
            "test_inner_steps": self.test_inner_steps,
            "batch_normalization": self.batch_normalization,
        }
        objects = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("inner_optimizer", "inner_loss", "adapted")
        }
        return {**super().get_config(), **config, **objects}

    # ------------------------------------------------------------------------------- within

    def _function(self, name, steps):
        """`_adapted` or `_predicted_along` at so many steps, compiled once for each."""
        if (name, steps) not in self._functions:
            method = self._adapted if name == "adapt" else self._predicted_along
            self._functions[name, steps] = tf.function(
                functools.partial(method, steps), autograph=False, reduce_retracing=True
            )
        return self._functions[name, steps]

    def _adapted(self, steps, support_x, support_y):
        adaptation, start = self._adaptation(training=False, steps=steps)
        one = keras.tree.map_structure(lambda x: x[None], (support_x, support_y))
        checks = self._checks_of_labels(adaptation, {"query_x": one[0], "support_y": one[1]})
        with tf.control_dependencies(checks):
            adapted, statistics = adaptation.one(support_x, support_y, start)
            return adapted.weights, adapted.state, statistics

    def _predicted_along(self, steps, episode):
        adaptation, start = self._adaptation(training=False, steps=steps)
        with tf.control_dependencies(self._checks_of_labels(adaptation, episode)):
            return adaptation.along(episode, start)

    def _network(self):
        return StatelessNetwork(self.model, self.adapted)

    def _steps(self, training):
        return (
            self.inner_steps if training or self.test_inner_steps is None else self.test_inner_steps
        )

    def _task_losses(self):
        """The loss of the inner loop and that of the queries."""
        names = getattr(self.model, "output_names", None)
        outer = TaskLoss(self.loss, self._loss_weights, names) if self.compiled else None
        inner = outer if self.inner_loss is None else TaskLoss(self.inner_loss, None, names)
        if inner is None:
            raise ValueError(
                "MAML needs a loss to adapt by: call `compile(loss=…)` first, or pass `inner_loss`. "
                "Received: neither"
            )
        return inner, outer

    def _adaptation(self, training, steps=None, through_inputs=False):
        """How to adapt, and what every task starts from: variables, read once, before any loop."""
        network = self._network()
        optimizer, rate = self._inner
        inner = InnerLoop(
            network,
            self._task_losses()[0],
            optimizer,
            self.second_order,
            every_statistic=training and self._policy.per_step,
        )
        steps = self._steps(training) if steps is None else steps
        adaptation = Adaptation(network, inner, self._policy, steps, training, through_inputs)
        statistics = self.step_statistics if self._policy.per_step else network.statistics
        adapted = _values(network.adapted)
        start = Start(
            adapted,
            _values(network.others),
            [tf.constant(rate, w.dtype) for w in adapted],
            _values(network.state),
            _values(statistics),
        )
        return adaptation, start

    def _measured(self, adaptation, start, episode, y, sample_weight, scale=None):
        """Results with losses, and with gradients where a scale for them is given."""
        if y is None:
            raise ValueError(
                "Episodes must bring the queries' targets, ({…}, query_y). Received: no query_y"
            )
        y = keras.tree.map_structure(tf.convert_to_tensor, y)
        outer = self._task_losses()[1]
        queries = Queries(y, outer)
        if sample_weight is not None:
            queries.weights = weights_of_queries(sample_weight, episode["query_x"])
        factors = (
            None
            if scale is None
            else scale * _factors(outer, episode, queries.weights, scale.dtype)
        )
        checks = self._checks_of_labels(adaptation, episode, y)
        with tf.control_dependencies(checks):
            return adaptation.each(episode, start, queries, factors)

    def _apply(self, adaptation, gradients, scale):
        network = adaptation.network
        weights = [*network.adapted, *network.others]
        with tf.GradientTape() as tape:
            penalties = [
                tf.reduce_sum(x) for x in self.losses
            ]  # Regularisers, on the meta-weights.
            penalty = tf.add_n(penalties) / cross_replica.count() if penalties else None
            penalty = None if penalty is None else penalty * tf.cast(scale, penalty.dtype)
        if penalties:
            of_penalty = tape.gradient(penalty, [v.value for v in weights])
            gradients = [
                g if p is None else g + tf.convert_to_tensor(p)
                for g, p in zip(gradients, of_penalty, strict=True)
            ]
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))

    def _follow(self, adaptation, results, episode):
        """Moves the state that is not trained: statistics, random states, layers' own averages."""
        network = adaptation.network
        count = cross_replica.total(_tasks(episode))

        def mean(total):
            return cross_replica.total(total) / tf.cast(count, total.dtype)

        if self._policy.moving:
            pairs = zip(network.statistics, network.momenta, results.statistics, strict=True)
            for i, (variable, momentum, total) in enumerate(pairs):
                new = mean(total)
                if self._policy.per_step:
                    steps = self.step_statistics[i]
                    steps.assign(steps * momentum + new * (1 - momentum))
                    new = new[0]
                variable.assign(variable * momentum + new * (1 - momentum))
        random = network.random_states()
        for variable, total, is_random in zip(network.state, results.state, random, strict=True):
            if is_random:
                variable.assign(variable.value + tf.constant([0, 1], variable.value.dtype))
            elif variable.value.dtype.is_floating:
                variable.assign(mean(total))
            else:
                variable.assign(tf.cast(tf.round(mean(total)), variable.value.dtype))

    def _logs(self, x, y, results, sample_weight, training):
        tasks = _tasks(x)
        loss = self._compute_loss(x, y, results.outputs, sample_weight, training=training)
        self._loss_tracker.update_state(loss * cross_replica.count(), sample_weight=tasks)
        for report in self._reports:
            report.update_state(results.losses[report.name])
        return multi_worker.reducible(
            self.compute_metrics(x, y, results.outputs, sample_weight=sample_weight)
        )

    def _check_support(self, support_x, support_y):
        inputs = getattr(self.model, "inputs", None) or []
        given = keras.tree.flatten(support_x)
        if inputs and [x.shape.rank for x in given] != [len(x.shape) for x in inputs]:
            raise ValueError(
                "`support_x` must be the support set of one task, as the model takes it: "
                f"{[tuple(x.shape) for x in inputs]}. Received: shape={[tuple(x.shape) for x in given]}"
            )
        lengths = len(given[0]), len(keras.tree.flatten(support_y)[0])
        if lengths[0] != lengths[1]:
            raise ValueError(
                "`support_x` and `support_y` must have the same number of samples. "
                f"Received: {lengths[0]} and {lengths[1]}"
            )

    def _checks_of_labels(self, adaptation, episode, query_y=None):
        """Assertions that labels are classes of the head: TensorFlow gives NaN for others on a GPU."""
        outputs = self.model.compute_output_spec(
            keras.tree.map_structure(
                lambda x: keras.KerasTensor(x.shape[1:], dtype=x.dtype.name), episode["query_x"]
            )
        )
        inner, outer = self._task_losses()
        checks = inner.checks_of_labels("support_y", episode["support_y"], outputs)
        if query_y is not None:
            checks += outer.checks_of_labels("query_y", query_y, outputs)
        return checks


def _factor_dtype(weights):
    return tf.float64 if any(w.dtype == tf.float64 for w in weights) else tf.float32


def _factors(loss, episode, weights, dtype):
    """What each task's loss counts in the batch's: their mean, a sum, or by weight, over all replicas."""
    tasks = _tasks(episode)
    if not loss.is_mean:
        return tf.ones([tasks], dtype)
    if loss.reduction == "mean_with_sample_weight" and weights is not None:
        of_tasks = tf.add_n(
            [tf.reduce_sum(tf.cast(w, dtype), axis=1) for w in keras.tree.flatten(weights)]
        )
        return tf.math.divide_no_nan(of_tasks, cross_replica.total(tf.reduce_sum(of_tasks)))
    return tf.ones([tasks], dtype) / tf.cast(cross_replica.total(tasks), dtype)


def _tasks(episode):
    return tf.shape(keras.tree.flatten(episode["query_x"])[0])[0]


def _values(variables):
    return [tf.convert_to_tensor(v.value) for v in variables]


def _count(name, value):
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < 0:
        raise ValueError(f"`{name}` must be an integer from 0. Received: {name}={value!r}")
    return int(value)


def _rate(value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise ValueError(
            f"`inner_learning_rate` must be a number from 0. Received: inner_learning_rate={value!r}"
        )
    return float(value)
