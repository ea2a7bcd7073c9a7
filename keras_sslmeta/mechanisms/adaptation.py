"""A batch of tasks: adapt to each, answer its queries, and sum the meta-gradients."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica, random_state, task_loop
from keras_sslmeta.mechanisms.inner_loop import Adapted, InnerLoop, Start, statistics_of_pass
from keras_sslmeta.mechanisms.normalization_policy import NormalizationPolicy
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork
from keras_sslmeta.mechanisms.task_loss import TaskLoss


@dataclasses.dataclass
class Queries:
    """What is known of the queries beside their inputs: for losses.

    Attributes:
        targets: nest of `(tasks, queries, …)`.
        loss: that of one task.
        weights: None, or a nest of `(tasks, queries)`.
    """

    targets: Any
    loss: TaskLoss
    weights: Any = None


@dataclasses.dataclass
class Results:
    """Of a batch of tasks.

    Attributes:
        outputs: predictions for the queries, nest of `(tasks, queries, …)`.
        losses: by name, `(tasks,)` each; empty without `Queries`.
        gradients: sums over tasks, in the order of the network's adapted and other weights.
        statistics: sums over tasks, of batch normalisation's statistics.
        state: sums over tasks, of the changes of the other state.
    """

    outputs: Any
    losses: dict[str, tf.Tensor]
    gradients: list[tf.Tensor]
    statistics: list[tf.Tensor]
    state: list[tf.Tensor]


@dataclasses.dataclass
class Adaptation:
    """How a network adapts and answers.

    Attributes:
        network: the network.
        inner: its inner loop.
        policy: whose statistics batch normalisation uses.
        steps: number of inner steps.
        training: whether this is meta-training.
        through_inputs: whether support inputs get a gradient.
    """

    network: StatelessNetwork
    inner: InnerLoop
    policy: NormalizationPolicy
    steps: int
    training: bool
    through_inputs: bool = False

    def each(
        self,
        episode: dict,
        start: Start,
        queries: "Queries | None" = None,
        factors: "tf.Tensor | None" = None,
    ) -> Results:
        """Adapts to each task of a batch.

        Args:
            episode: support and query parts, with an axis of tasks in front.
            start: what every task starts from.
            queries: targets of the queries, where losses are wanted.
            factors: `(tasks, outputs + 1)`, of `TaskLoss.factors`, what each task's losses count in the
                gradient; None for no gradient.
        """
        count = _length(keras.tree.flatten(episode["query_x"])[0])
        first = cross_replica.first_row(count)
        outputs = {"outputs": self.specs(episode["query_x"])}
        if queries is not None:
            outputs["losses"] = {name: self._scalar() for name in LOSSES}
        sums = self._zeros(start, factors is not None)

        def task(t):
            def of_task(nest):
                return None if nest is None else keras.tree.map_structure(lambda x: x[t], nest)

            part = of_task(episode)
            begin = dataclasses.replace(start, state=self._state_of_task(start.state, first + t))
            if queries is None:
                _, _, answers = self._answers(part, begin)
                return [], {"outputs": answers.outputs}
            known = Queries(of_task(queries.targets), queries.loss, of_task(queries.weights))
            factor = None if factors is None else factors[t]
            addends, answers, losses = self._measured(part, begin, known, factor)
            return addends, {"outputs": answers.outputs, "losses": losses}

        sums, results = task_loop.each_task(task, count, sums, outputs)
        weights = len(start.adapted) + len(start.others) if factors is not None else 0
        statistics = len(start.statistics) if factors is not None else 0
        return Results(
            results["outputs"],
            results.get("losses", {}),
            sums[:weights],
            sums[weights : weights + statistics],
            sums[weights + statistics :],
        )

    def one(self, support_x, support_y, start: Start) -> "tuple[Adapted, list[tf.Tensor]]":
        """Adapts to one support set; what comes of it, and the statistics to answer by."""
        adapted = self._adapt({"support_x": support_x, "support_y": support_y}, start)
        after = self._pass(start, adapted.weights, adapted.state, support_x, self.steps, True)
        by_support = self.policy.from_support or self.policy.query_by_batch[self.training]
        return adapted, after.statistics if by_support else self._given(start, self.steps)

    def along(self, episode: dict, start: Start) -> Any:
        """Predictions for the queries after 0, 1, … steps: nest of `(tasks, steps + 1, queries, …)`."""
        count = _length(keras.tree.flatten(episode["query_x"])[0])
        first = cross_replica.first_row(count)
        specs = self.specs(episode["query_x"])

        def task(t):
            part = keras.tree.map_structure(lambda x: x[t], episode)
            begin = dataclasses.replace(start, state=self._state_of_task(start.state, first + t))

            def visit(k, weights, state):
                return self._answers_at(part, begin, weights, state, k)[1].outputs

            by_batch = self.policy.support_by_batch[self.training]
            support = part["support_x"], part["support_y"]
            seen = self.inner.along(
                *support, begin, self.steps, self.training, by_batch, visit, specs
            )
            return [], seen

        stacked = keras.tree.map_structure(
            lambda spec: tf.TensorSpec([self.steps + 1, *spec.shape], spec.dtype), specs
        )
        return task_loop.each_task(task, count, [], stacked)[1]

    # --------------------------------------------------------------------------- one task

    def _adapt(self, part, start):
        return self.inner.adapt(
            part["support_x"],
            part["support_y"],
            start,
            self.steps,
            self.training,
            self.policy.support_by_batch[self.training],
            self.through_inputs,
        )

    def _answers(self, part, start):
        """The adapted network on its support set (None where nothing needs it) and on its queries."""
        adapted = self._adapt(part, start)
        support, answers = self._answers_at(part, start, adapted.weights, adapted.state, self.steps)
        return adapted, support, answers

    def _answers_at(self, part, start, weights, state, k):
        support, given = None, None
        if self.policy.from_support and self.network.statistics:
            support = self._pass(start, weights, state, part["support_x"], k, True)
            given, state = support.statistics, support.state
        by_batch = self.policy.query_by_batch[self.training]
        answers = self._pass(start, weights, state, part["query_x"], k, by_batch, given)
        return support, answers

    def _measured(self, part, start, queries, factor):
        """Addends, answers and losses of a task; with a factor its meta-gradient among the addends."""
        weights = [*start.adapted, *start.others]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights if factor is not None else [])
            adapted, support, answers = self._answers(part, start)
            parts = queries.loss.each(queries.targets, answers.outputs, queries.weights)
            parts = tf.concat([parts, [tf.cast(answers.penalty, parts.dtype)]], axis=0)
            loss = tf.reduce_sum(parts[:-1])
            objective = (
                None if factor is None else tf.reduce_sum(parts * tf.cast(factor, parts.dtype))
            )
        losses = self._losses(part, start, queries, adapted, support, loss)
        losses["penalty"] = tf.cast(answers.penalty, self._scalar().dtype)
        if factor is None:
            return [], answers, losses
        gradients = tape.gradient(objective, weights, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        statistics = self._statistics(part, start, adapted, answers)
        state = [
            _as_float(after) - _as_float(before)
            for after, before in zip(answers.state, start.state, strict=True)
        ]
        return [*gradients, *statistics, *state], answers, losses

    def _losses(self, part, start, queries, adapted, support, loss):
        """All of the task's losses, before and after adaptation."""
        if support is None:
            by_batch = self.policy.support_by_batch[self.training]
            support = self._pass(
                start, adapted.weights, adapted.state, part["support_x"], self.steps, by_batch
            )
        after = self.inner.loss(part["support_y"], support.outputs)
        given = None
        if self.policy.from_support:
            given = [s[0] for s in adapted.statistics] if self.steps else support.statistics
        before = self._pass(
            start,
            start.adapted,
            start.state,
            part["query_x"],
            0,
            self.policy.query_by_batch[self.training],
            given,
        )
        query_before = queries.loss(queries.targets, before.outputs, queries.weights)
        values = {
            "query_loss": loss,
            "query_loss_before": query_before,
            "support_loss_before": adapted.losses[0] if self.steps else after,
            "support_loss_after": after,
        }
        dtype = self._scalar().dtype
        return {name: tf.cast(value, dtype) for name, value in values.items()}

    def _statistics(self, part, start, adapted, answers):
        """What the moving statistics follow: those of the start's support pass, or of every pass."""
        if self.policy.per_step:
            pairs = zip(adapted.statistics, answers.statistics, strict=True)
            return [tf.concat([s[: self.steps], x[None]], axis=0) for s, x in pairs]
        if self.steps:
            return [s[0] for s in adapted.statistics]
        return answers.statistics

    def _pass(self, start, weights, state, inputs, k, by_batch, given=None):
        given = self._given(start, k) if given is None else given
        outputs, statistics, state, penalty = self.network(
            weights, start.others, given, state, inputs, self.training, by_batch
        )
        return _Pass(outputs, statistics, state, penalty)

    def _given(self, start, k):
        pairs = zip(self.network.statistics, start.statistics, strict=True)
        return [statistics_of_pass(variable, values, k) for variable, values in pairs]

    # ------------------------------------------------------------------------ around tasks

    def _state_of_task(self, state, index):
        """The state that a task starts from: random states of its own, whatever replica it is on."""
        return [
            random_state.fold_in(x, index) if is_random else x
            for x, is_random in zip(state, self.network.random_states(), strict=True)
        ]

    def specs(self, inputs) -> Any:
        """The network's outputs for one task."""
        symbolic = keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape[1:], dtype=x.dtype.name), inputs
        )
        outputs = self.network.model.compute_output_spec(symbolic)
        return keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), outputs)

    def _zeros(self, start, training):
        if not training:
            return []
        statistics = [tf.zeros_like(x) for x in start.statistics]
        state = [tf.zeros_like(_as_float(x)) for x in start.state]
        weights = [tf.zeros_like(w) for w in (*start.adapted, *start.others)]
        return [*weights, *statistics, *state]

    def _scalar(self):
        is_double = any(v.dtype == "float64" for v in self.network.adapted)
        return tf.TensorSpec([], tf.float64 if is_double else tf.float32)


# `penalty`: what layers add to the loss of the queries.
LOSSES = (
    "query_loss",
    "query_loss_before",
    "support_loss_before",
    "support_loss_after",
    "penalty",
)


@dataclasses.dataclass
class _Pass:
    outputs: Any
    statistics: list[tf.Tensor]
    state: list[tf.Tensor]
    penalty: tf.Tensor


def _length(x):
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def _as_float(x):
    """State in a type that can be averaged."""
    return x if x.dtype.is_floating else tf.cast(x, tf.float64)
