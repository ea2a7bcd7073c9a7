"""A batch of tasks: adapt to each, answer its queries, and sum the meta-gradients."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica, random_state, task_loop
from keras_sslmeta.mechanisms.inner_loop import Adapted, InnerLoop, Start, statistics_of_pass
from keras_sslmeta.mechanisms.normalization_policy import NormalizationPolicy
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork
from keras_sslmeta.mechanisms.task_loss import TaskLoss


@dataclasses.dataclass
class Learnt:
    """What meta-training learns, and what tasks start from in terms of it.

    Attributes:
        tensors: what gets a meta-gradient: the adapted weights, the others, and a method's own.
        start: from such tensors to the `Start` of tasks, differentiable.
    """

    tensors: list[tf.Tensor]
    start: Callable[[list[tf.Tensor]], Start]


@dataclasses.dataclass
class Queries:
    """What is known of the queries beside their inputs: for losses.

    Attributes:
        targets: nest of `(tasks, queries, …)`.
        loss: that of one task.
        weights: None, or a nest of `(tasks, queries)`.
        of_steps: what the loss counts after each step, `(steps,)`, in the meta-gradient; None for the last
            step alone.
    """

    targets: Any
    loss: TaskLoss
    weights: Any = None
    of_steps: "tf.Tensor | None" = None


@dataclasses.dataclass
class Results:
    """Of a batch of tasks.

    Attributes:
        outputs: predictions for the queries, nest of `(tasks, queries, …)`.
        losses: by name, `(tasks,)` each; empty without `Queries`.
        gradients: sums over tasks, in the order of what is learnt.
        statistics: sums over tasks, of batch normalisation's statistics.
        state: sums over tasks, of the changes of the other state.
        optimizer: sums over tasks, of the inner optimiser's state.
    """

    outputs: Any
    losses: dict[str, tf.Tensor]
    gradients: list[tf.Tensor]
    statistics: list[tf.Tensor]
    state: list[tf.Tensor]
    optimizer: list[tf.Tensor]


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
        vectorized: whether tasks run at once, as one batch of operations, but where a gradient goes through
            inputs.
    """

    network: StatelessNetwork
    inner: InnerLoop
    policy: NormalizationPolicy
    steps: int
    training: bool
    through_inputs: bool = False
    vectorized: bool = False

    def each(
        self,
        episode: dict,
        learnt: Learnt,
        queries: "Queries | None" = None,
        factors: "tf.Tensor | None" = None,
        first: "tf.Tensor | int | None" = None,
    ) -> Results:
        """Adapts to each task of a batch.

        Args:
            episode: support and query parts, with an axis of tasks in front.
            learnt: what is learnt, and what every task starts from.
            queries: targets of the queries, where losses are wanted.
            factors: `(tasks, outputs + 1)`, of `TaskLoss.factors`, what each task's losses count in the
                gradient; None for no gradient.
            first: number of the first task here among those of all replicas; None to count.
        """
        count = _length(keras.tree.flatten(episode["query_x"])[0])
        first = cross_replica.first_row(count) if first is None else first
        outputs = {"outputs": self.specs(episode["query_x"])}
        if queries is not None:
            names = LOSSES if factors is None else LOSSES_OF_TRAINING
            outputs["losses"] = {name: self._scalar() for name in names}
        zeros = [] if factors is None else self._zeros(learnt)

        def task(t):
            def of_task(nest):
                return None if nest is None else keras.tree.map_structure(lambda x: x[t], nest)

            part = of_task(episode)

            def start(tensors):
                return self._start_of_task(learnt.start(tensors), first + t, part)

            if queries is None:
                _, _, answers = self._answers(part, start(learnt.tensors))
                return [], {"outputs": answers.outputs}
            known = dataclasses.replace(
                queries, targets=of_task(queries.targets), weights=of_task(queries.weights)
            )
            if factors is None:
                answers, losses = self._measured(part, start(learnt.tensors), known)
                return [], {"outputs": answers.outputs, "losses": losses}
            addends, answers, losses = self._learning(
                part, Learnt(learnt.tensors, start), known, factors[t]
            )
            flat = [x for group in addends for x in group]
            return flat, {"outputs": answers.outputs, "losses": losses}

        # `tf.vectorized_map` drops custom gradients where the tape is around it.
        at_once = self.vectorized and not self.through_inputs
        each = task_loop.all_tasks if at_once else task_loop.each_task
        sums, results = each(task, count, [x for group in zeros for x in group], outputs)
        groups = []
        for group in zeros or [[]] * 4:
            groups.append(sums[: len(group)])
            sums = sums[len(group) :]
        return Results(results["outputs"], results.get("losses", {}), *groups)

    def one(self, support_x, support_y, learnt: Learnt) -> "tuple[Adapted, Start, list[tf.Tensor]]":
        """Adapts to one support set; what comes of it, from what, and the statistics to answer by."""
        start = learnt.start(learnt.tensors)
        part = {"support_x": support_x, "support_y": support_y}
        start = dataclasses.replace(start, order=self._order(start, 0, part))
        adapted = self._adapt(part, start)
        if not (self.policy.from_support or self.policy.query_by_batch[self.training]):
            return adapted, start, self._given(start, self.steps)
        after = self._pass(start, adapted.weights, adapted.state, support_x, self.steps, True)
        return adapted, start, after.statistics

    def along(self, episode: dict, learnt: Learnt) -> Any:
        """Predictions for the queries after 0, 1, … steps: nest of `(tasks, steps + 1, queries, …)`."""
        count = _length(keras.tree.flatten(episode["query_x"])[0])
        first = cross_replica.first_row(count)
        specs = self.specs(episode["query_x"])
        start = learnt.start(learnt.tensors)

        def task(t):
            part = keras.tree.map_structure(lambda x: x[t], episode)
            begin = self._start_of_task(start, first + t, part)

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

    def _adapt(self, part, start, tally=None):
        return self.inner.adapt(
            part["support_x"],
            part["support_y"],
            start,
            self.steps,
            self.training,
            self.policy.support_by_batch[self.training],
            self.through_inputs,
            tally,
        )

    def _answers(self, part, start, tally=None):
        """The adapted network on its support set (None where nothing needs it) and on its queries."""
        adapted = self._adapt(part, start, tally)
        support, answers = self._answers_at(part, start, adapted.weights, adapted.state, self.steps)
        return adapted, support, answers

    def _answers_at(self, part, start, weights, state, k):
        support, given = None, None
        if self.policy.from_support and self.network.statistics:
            support = self._pass(
                start, weights, state, part["support_x"], k, True, through_statistics=True
            )
            given, state = support.statistics, support.state
        by_batch = self.policy.query_by_batch[self.training]
        answers = self._pass(start, weights, state, part["query_x"], k, by_batch, given)
        return support, answers

    def _measured(self, part, start, queries):
        """Answers and losses of a task, before and after adaptation."""
        adapted, support, answers = self._answers(part, start)
        losses = self._losses(queries, answers)
        if support is None:
            by_batch = self.policy.support_by_batch[self.training]
            support = self._pass(
                start, adapted.weights, adapted.state, part["support_x"], self.steps, by_batch
            )
        after = self.inner.loss(part["support_y"], support.outputs, start.loss)
        given = None
        if self.policy.from_support:
            given = [s[0] for s in adapted.statistics] if self.steps else support.statistics
        by_batch = self.policy.query_by_batch[self.training]
        before = self._pass(start, start.adapted, start.state, part["query_x"], 0, by_batch, given)
        losses |= {
            "query_loss_before": queries.loss(queries.targets, before.outputs, queries.weights),
            "support_loss_before": adapted.losses[0] if self.steps else after,
            "support_loss_after": after,
        }
        return answers, self._cast(losses)

    def _learning(self, part, learnt, queries, factor):
        """Addends (of the gradient and of what follows the tasks), answers and losses of a task."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(learnt.tensors)
            start = learnt.start(learnt.tensors)
            tally = None
            if queries.of_steps is not None:
                tally = functools.partial(self._along_the_way, part, start, queries, factor)
            adapted, _, answers = self._answers(part, start, tally)
            objective = _weighed(_parts(queries, answers), factor)
            if tally is not None:
                last = tf.cast(queries.of_steps[-1], objective.dtype)
                objective = last * objective + tf.cast(adapted.total, objective.dtype)
        gradients = tape.gradient(objective, learnt.tensors, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        return self._followed(part, start, adapted, answers, queries, gradients)

    def _followed(self, part, start, adapted, answers, queries, gradients):
        """What `_learning` gives, with these gradients."""
        losses = self._losses(queries, answers)
        losses["support_loss_before"] = (
            adapted.losses[0] if self.steps else self._support_loss(part, start)
        )
        state = [
            _as_float(after) - _as_float(before)
            for after, before in zip(answers.state, start.state, strict=True)
        ]
        statistics = self._statistics(adapted, answers)
        return (
            (gradients, statistics, state, adapted.optimizer),
            answers,
            self._cast(losses),
        )

    def _along_the_way(self, part, start, queries, factor, k, weights, others, state):
        """The queries' loss before step k, weighed: 0 before the first one."""
        weight = tf.cast(queries.of_steps[tf.maximum(k - 1, 0)], factor.dtype)
        begin = dataclasses.replace(start, others=others)

        def loss():
            answers = self._answers_at(part, begin, weights, state, k)[1]
            return weight * tf.cast(_weighed(_parts(queries, answers), factor), weight.dtype)

        counts = (k > 0) & (weight > 0)
        if self.vectorized:  # A branch cannot be; the pass is run in vain.
            return tf.where(counts, loss(), tf.zeros([], factor.dtype))
        return tf.cond(counts, loss, lambda: tf.zeros([], factor.dtype))

    def _losses(self, queries, answers):
        parts = _parts(queries, answers)
        return {"query_loss": tf.reduce_sum(parts[:-1]), "penalty": parts[-1]}

    def _cast(self, losses):
        dtype = self._scalar().dtype
        return {name: tf.cast(value, dtype) for name, value in losses.items()}

    def _support_loss(self, part, start):
        by_batch = self.policy.support_by_batch[self.training]
        support = self._pass(start, start.adapted, start.state, part["support_x"], 0, by_batch)
        return self.inner.loss(part["support_y"], support.outputs, start.loss)

    def _statistics(self, adapted, answers):
        """What the moving statistics follow: those of the start's support pass, or of every pass."""
        if self.policy.per_step:
            pairs = zip(adapted.statistics, answers.statistics, strict=True)
            return [tf.concat([s[: self.steps], x[None]], axis=0) for s, x in pairs]
        if self.steps:
            return [s[0] for s in adapted.statistics]
        return answers.statistics

    def _pass(
        self, start, weights, state, inputs, k, by_batch, given=None, through_statistics=False
    ):
        given = self._given(start, k) if given is None else given
        outputs, statistics, state, penalty = self.network(
            weights,
            start.others_at(k),
            given,
            state,
            inputs,
            self.training,
            by_batch,
            through_statistics,
        )
        return _Pass(outputs, statistics, state, penalty)

    def _given(self, start, k):
        pairs = zip(self.network.statistics, start.statistics, strict=True)
        return [statistics_of_pass(variable, values, k) for variable, values in pairs]

    # ------------------------------------------------------------------------ around tasks

    def _start_of_task(self, start, number, part):
        """The start of the task of that number, whatever replica it is on."""
        return dataclasses.replace(
            start,
            state=self._state_of_task(start.state, number),
            order=self._order(start, number, part),
        )

    def _state_of_task(self, state, index):
        """The state that a task starts from: random states of its own, whatever replica it is on."""
        return [
            random_state.fold_in(x, index) if is_random else x
            for x, is_random in zip(state, self.network.random_states(), strict=True)
        ]

    def _order(self, start, number, part):
        """The rows that each step takes of a task's support set; None for all.

        Outside of meta-training the same for every task: answers must not depend on a task's place.
        """
        if start.order is None:
            return None
        samples = _length(keras.tree.flatten(part["support_x"])[0])
        return start.order(number if self.training else 0, samples)

    def specs(self, inputs) -> Any:
        """The network's outputs for one task."""
        symbolic = keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape[1:], dtype=x.dtype.name), inputs
        )
        outputs = self.network.model.compute_output_spec(symbolic)
        return keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), outputs)

    def _zeros(self, learnt):
        """The sums over no tasks: of gradients, statistics, state and the inner optimiser's state."""
        start = learnt.start(learnt.tensors)
        optimizer = start.optimizer
        optimizer = self.inner.optimizer.start(start.adapted) if optimizer is None else optimizer
        groups = learnt.tensors, start.statistics, map(_as_float, start.state), optimizer
        return [[tf.zeros_like(x) for x in group] for group in groups]

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
# Those that meta-training has without further passes.
LOSSES_OF_TRAINING = ("query_loss", "support_loss_before", "penalty")


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


def _parts(queries, answers):
    """The queries' loss of every output, and last what layers add."""
    parts = queries.loss.each(queries.targets, answers.outputs, queries.weights)
    return tf.concat([parts, [tf.cast(answers.penalty, parts.dtype)]], axis=0)


def _weighed(parts, factor):
    return tf.reduce_sum(parts * tf.cast(factor, parts.dtype))
