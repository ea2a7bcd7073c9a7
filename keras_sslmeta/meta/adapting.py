"""`AdaptingModel`: what meta-learners that adapt by gradient steps share."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import (
    arguments,
    byte_images,
    cross_replica,
    inner_optimizers,
    model_copy,
    multi_worker,
    normalization_policy,
    second_derivatives,
)
from keras_sslmeta.mechanisms.adaptation import Adaptation, Queries
from keras_sslmeta.mechanisms.inner_loop import InnerLoop, Start
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork
from keras_sslmeta.mechanisms.task_loss import TaskLoss
from keras_sslmeta.meta.episodic import (
    EpisodicModel,
    check_queries,
    number_of_tasks,
    weights_of_queries,
)

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
        self.inner_steps = arguments.count("inner_steps", inner_steps, least=0)
        self.test_inner_steps = (
            None
            if test_inner_steps is None
            else arguments.count("test_inner_steps", test_inner_steps, least=0)
        )
        self.inner_learning_rate = arguments.number_from_zero(
            "inner_learning_rate", inner_learning_rate
        )
        if not isinstance(second_order, bool):
            raise ValueError(
                f"`second_order` must be True or False. Received: second_order={second_order!r}"
            )
        self.second_order = second_order
        self.inner_optimizer = inner_optimizer
        self.inner_loss = inner_loss
        self.adapted = adapted
        self.batch_normalization = batch_normalization
        self._policy = normalization_policy.named(batch_normalization)
        self._inner_step()  # Refuses what cannot be.
        if adapted is not None and not callable(adapted):
            raise ValueError(
                "`adapted` must be a function from a variable to whether the inner loop changes it, "
                f"such as `lambda v: 'head' in v.path`. Received: {adapted!r}"
            )
        self._reports = [keras.metrics.Mean(name=name) for name in _REPORTS]
        self.step_statistics: list[Any] = []
        self._loss_weights = None
        self._functions: dict[tuple, Any] = {}
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
        steps = self._steps(False) if steps is None else arguments.count("steps", steps, least=0)
        if isinstance(support_x, list) and len(getattr(self.model, "inputs", None) or [0]) == 1:
            support_x = np.asarray(support_x)
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
        network = self._network()
        news = {
            id(v): x
            for variables, values in (
                (network.adapted, weights),
                (network.state, state),
                (network.statistics, statistics),
            )
            for v, x in zip(variables, values, strict=True)
        }
        return model_copy.copy_with(self.model, news, support_x)

    def export(self, *args, **kwargs):
        """Not for meta-learners: export what `adapt` gives.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "A meta-learner answers episodes, and serving systems do not: export the model that "
            "`adapt(support_x, support_y)` gives, or `model.model` without adaptation. "
            f"Received: {self!r}"
        )

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
        steps = arguments.count("steps", steps, least=0)
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
                    initializer=_every_step(v, self.inner_steps + 1),
                    dtype=v.dtype,
                    trainable=False,
                    name=f"step_{v.name}_{i}",
                )
                for i, v in enumerate(network.statistics)
            ]

    def compile(self, optimizer="adam", loss=None, loss_weights=None, jit_compile="auto", **kwargs):
        """As `keras.Model.compile`; the loss is the task's, and must be given.

        `jit_compile="auto"` means False here, on a GPU too. XLA pays for small networks, and may be asked
        for, but drops the check that labels are classes of the model's head: other labels give NaN then.

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
        jit_compile = False if jit_compile == "auto" else jit_compile
        super().compile(
            optimizer, loss, loss_weights=loss_weights, jit_compile=jit_compile, **kwargs
        )

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
        loss = self._loss(x, y, results, sample_weight, training=True)
        self._apply(adaptation, results.gradients, scale)
        self._follow(adaptation, results, episode)
        return self._logs(x, y, results, sample_weight, loss)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        episode = self.episode_of(x)
        adaptation, start = self._adaptation(training=False)
        results = self._measured(adaptation, start, episode, y, sample_weight)
        loss = self._loss(x, y, results, sample_weight, training=False)
        return self._logs(x, y, results, sample_weight, loss)

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
        network = self._network()
        variables = (*network.adapted, None, *network.others)
        key = (name, steps, self._inner_step()[1], *map(id, variables))
        if key not in self._functions:
            method = self._adapted if name == "adapt" else self._predicted_along
            self._functions[key] = tf.function(
                functools.partial(method, steps), autograph=False, reduce_retracing=True
            )
        return self._functions[key]

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

    def _inner_step(self):
        """The inner optimiser, pure, and its learning rate."""
        if self.inner_optimizer is None:
            return inner_optimizers.SGD(), self.inner_learning_rate
        with tf.init_scope():  # Its learning rate is a variable, to be read here and now.
            return inner_optimizers.from_keras(self.inner_optimizer)

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
        optimizer, rate = self._inner_step()
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
        check_queries(y, sample_weight, episode)
        queries = Queries(y, outer)
        if sample_weight is not None:
            queries.weights = weights_of_queries(sample_weight, episode["query_x"])
        factors = None
        if scale is not None:
            outputs = adaptation.specs(episode["query_x"])
            tasks = number_of_tasks(episode)
            factors = scale * outer.factors(y, outputs, queries.weights, tasks, scale.dtype)
        checks = self._checks_of_labels(adaptation, episode, y)
        with tf.control_dependencies(checks):
            return adaptation.each(episode, start, queries, factors)

    def _apply(self, adaptation, gradients, scale):
        network = adaptation.network
        by_variable = {
            id(v): g for v, g in zip((*network.adapted, *network.others), gradients, strict=True)
        }
        with tf.GradientTape() as tape:
            # Regularisers, on the meta-weights.
            penalties = [tf.reduce_sum(x) for x in self.losses]
            penalty = tf.add_n(penalties) / cross_replica.count() if penalties else None
            penalty = None if penalty is None else penalty * tf.cast(scale, penalty.dtype)
        # In the order of Keras's optimisers, which know their slots by it when a model is loaded.
        weights = self.trainable_variables
        gradients = [by_variable[id(v)] for v in weights]
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
        count = cross_replica.total(number_of_tasks(episode))

        def mean(total):
            return cross_replica.total(total) / tf.cast(count, total.dtype)

        if self._policy.moving:
            pairs = zip(network.statistics, network.momenta, results.statistics, strict=True)
            for i, (variable, momentum, total) in enumerate(pairs):
                if network.are_frozen[i]:
                    continue
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
                continue
            if variable.value.dtype == tf.bool:
                continue
            change = mean(total)
            if not variable.value.dtype.is_floating:
                change = tf.round(change)
            variable.assign(variable.value + tf.cast(change, variable.value.dtype))

    def _loss(self, x, y, results, sample_weight, training):
        """The loss for the history: of all queries, with regularisers and what layers add."""
        loss = self._compute_loss(x, y, results.outputs, sample_weight, training=training)
        tasks = tf.cast(number_of_tasks(x), results.losses["penalty"].dtype)

        def mean(name):
            value = tf.math.divide_no_nan(tf.reduce_sum(results.losses[name]), tasks)
            return tf.cast(value / cross_replica.count(), loss.dtype)

        if self._task_losses()[1].reduction in ("sum_over_batch_size", "mean"):
            # The same, but for masks, which the queries of all tasks as one batch have lost.
            penalties = [tf.reduce_sum(tf.cast(x, loss.dtype)) for x in self.losses]
            loss = mean("query_loss") + sum(penalties) / cross_replica.count()
        return loss + mean("penalty")

    def _logs(self, x, y, results, sample_weight, loss):
        tasks = number_of_tasks(x)
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
        if not lengths[0]:
            raise ValueError("`support_x` must hold a sample at least. Received: none")
        if lengths[0] != lengths[1]:
            raise ValueError(
                "`support_x` and `support_y` must have the same number of samples. "
                f"Received: {lengths[0]} and {lengths[1]}"
            )

    def _checks_of_labels(self, adaptation, episode, query_y=None):
        """Assertions that labels are classes of the head: TensorFlow gives NaN for others on a GPU."""
        outputs = adaptation.specs(episode["query_x"])
        inner, outer = self._task_losses()
        checks = inner.checks_of_labels("support_y", episode["support_y"], outputs)
        if query_y is not None:
            checks += outer.checks_of_labels("query_y", query_y, outputs)
        return checks


def _factor_dtype(weights):
    return tf.float64 if any(w.dtype == tf.float64 for w in weights) else tf.float32


def _every_step(variable, passes):
    """An initializer: the variable's value for every pass."""
    values = np.repeat(variable.numpy()[None], passes, axis=0)
    return lambda shape, dtype=None: keras.ops.convert_to_tensor(values, dtype=dtype)


def _values(variables):
    return [tf.convert_to_tensor(v.value) for v in variables]
