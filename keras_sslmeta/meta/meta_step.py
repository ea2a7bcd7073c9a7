"""`MetaStep`: one step of meta-training or evaluation of models that adapt by gradient steps."""

from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica, multi_worker, second_derivatives
from keras_sslmeta.mechanisms.adaptation import Adaptation, Learnt, Queries, Results
from keras_sslmeta.meta.episodic import (
    EpisodicModel,
    check_queries,
    number_of_tasks,
    weights_of_queries,
)

# Of evaluation; meta-training has the first alone, the others would cost it further passes.
_REPORTS = ("support_loss_before", "support_loss_after", "query_loss_before")


class MetaStep(EpisodicModel):
    """The step of an `AdaptingModel`, which says how it adapts.

    A step adapts to every task of a batch, answers its queries, sums the tasks' meta-gradients, and lets
    Keras's optimiser, loss and metrics see the whole.
    """

    def build_reports(self):
        """The losses beside Keras's own, as metrics."""
        self._reports = [keras.metrics.Mean(name=name) for name in _REPORTS]

    # -------------------------------------------------------------------------- to be given

    def adaptation(
        self, training: bool, steps: "int | None" = None, through_inputs: bool = False
    ) -> "tuple[Adaptation, Learnt]":
        """How to adapt, and what every task starts from."""
        raise NotImplementedError

    def learnt_variables(self, network: Any) -> list:
        """All that gets a meta-gradient, in the order of `Learnt.tensors`."""
        raise NotImplementedError

    def task_losses(self) -> tuple:
        """The `TaskLoss` of the support set, None where it is learnt, and that of the queries."""
        raise NotImplementedError

    def loss_of_steps(self) -> "tf.Tensor | None":
        """What the queries' loss counts after each step, `(inner_steps,)`; None for the last alone."""
        return None

    def after_step(self, adaptation: Adaptation, results: Results, tasks: tf.Tensor) -> None:
        """What follows a step of meta-training."""
        raise NotImplementedError

    def each_task(self, adaptation, episode, learnt, queries, factors) -> Results:
        """Meta-trains on each task of a batch, or evaluates it where `factors` is None."""
        return adaptation.each(episode, learnt, queries, factors)

    # --------------------------------------------------------------------------- for Keras

    def call(self, inputs, training=None):
        episode = self.episode_of(inputs)
        adaptation, learnt = self.adaptation(bool(training), through_inputs=True)
        checks = self.checks_of_labels(adaptation, episode)
        with tf.control_dependencies(checks):
            return adaptation.each(episode, learnt).outputs

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        episode = self.episode_of(x)
        adaptation, learnt = self.adaptation(training=True)
        scale = self.optimizer.scale_loss(tf.ones([], _factor_dtype(learnt.tensors)))
        with second_derivatives.explained(self.model):
            results = self._measured(adaptation, learnt, episode, y, sample_weight, scale)
        loss = self._loss(x, y, results, sample_weight, training=True)
        self._apply(adaptation, results.gradients, scale)
        self.after_step(adaptation, results, number_of_tasks(episode))
        return self._logs(x, y, results, sample_weight, loss, training=True)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        episode = self.episode_of(x)
        adaptation, learnt = self.adaptation(training=False)
        results = self._measured(adaptation, learnt, episode, y, sample_weight)
        loss = self._loss(x, y, results, sample_weight, training=False)
        return self._logs(x, y, results, sample_weight, loss, training=False)

    # ------------------------------------------------------------------------------- within

    def _measured(self, adaptation, learnt, episode, y, sample_weight, scale=None):
        """Results with losses, and with gradients where a scale for them is given."""
        if y is None:
            raise ValueError(
                "Episodes must bring the queries' targets, ({…}, query_y). Received: no query_y"
            )
        y = keras.tree.map_structure(tf.convert_to_tensor, y)
        inner, outer = self.task_losses()
        check_queries(y, sample_weight, episode)
        queries = Queries(y, outer, of_steps=self.loss_of_steps() if adaptation.training else None)
        if sample_weight is not None:
            queries.weights = weights_of_queries(sample_weight, episode["query_x"])
        factors = None
        if scale is not None:
            outputs = adaptation.specs(episode["query_x"])
            tasks = number_of_tasks(episode)
            factors = scale * outer.factors(y, outputs, queries.weights, tasks, scale.dtype)
        checks = self.checks_of_labels(adaptation, episode, y)
        if scale is not None and inner is outer:
            is_first = tf.equal(self.optimizer.iterations, 0)
            checks += outer.checks_of_width(episode["support_y"], outputs, is_first)
        with tf.control_dependencies(checks):
            return self.each_task(adaptation, episode, learnt, queries, factors)

    def _apply(self, adaptation, gradients, scale):
        variables = self.learnt_variables(adaptation.network)
        by_variable = {id(v): g for v, g in zip(variables, gradients, strict=True)}
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

    def _loss(self, x, y, results, sample_weight, training):
        """The loss for the history: of all queries, with regularisers and what layers add."""
        loss = self._compute_loss(x, y, results.outputs, sample_weight, training=training)
        tasks = tf.cast(number_of_tasks(x), results.losses["penalty"].dtype)

        def mean(name):
            value = tf.math.divide_no_nan(tf.reduce_sum(results.losses[name]), tasks)
            return tf.cast(value / cross_replica.count(), loss.dtype)

        if self.task_losses()[1].reduction in ("sum_over_batch_size", "mean"):
            # The same, but for masks, which the queries of all tasks as one batch have lost.
            penalties = [tf.reduce_sum(tf.cast(x, loss.dtype)) for x in self.losses]
            loss = mean("query_loss") + sum(penalties) / cross_replica.count()
        return loss + mean("penalty")

    def _logs(self, x, y, results, sample_weight, loss, training):
        tasks = number_of_tasks(x)
        self._loss_tracker.update_state(loss * cross_replica.count(), sample_weight=tasks)
        for report in self._reports:
            if report.name in results.losses:
                report.update_state(results.losses[report.name])
        logs = self.compute_metrics(x, y, results.outputs, sample_weight=sample_weight)
        left_out = set(_REPORTS) - set(results.losses)
        return multi_worker.reducible({k: v for k, v in logs.items() if k not in left_out})

    def _get_metrics_result_or_logs(self, logs):
        """All replicas' metrics, of those that were measured: Keras would take the last step's logs."""
        return {key: value for key, value in self.get_metrics_result().items() if key in logs}

    def checks_of_labels(self, adaptation, episode, query_y=None):
        """Assertions that labels are classes of the head: TensorFlow gives NaN for others on a GPU."""
        outputs = adaptation.specs(episode["query_x"])
        inner, outer = self.task_losses()
        checks = []
        if inner is not None:
            checks += inner.checks_of_labels("support_y", episode["support_y"], outputs)
        if query_y is not None:
            checks += outer.checks_of_labels("query_y", query_y, outputs)
        return checks


def _factor_dtype(weights):
    return tf.float64 if any(w.dtype == tf.float64 for w in weights) else tf.float32
