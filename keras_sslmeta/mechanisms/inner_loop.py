"""Adaptation to one task: gradient steps on its support set, differentiable in all that enters.

Second order is exact, at the memory of one step (`replayed_loop`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms.replayed_loop import replay
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork

# Loss and gradient of half-precision networks are computed at up to this scale, or gradients would vanish.
_HALF_PRECISION_SCALE = 2.0**10


@dataclasses.dataclass
class Start:
    """What a task starts from: tensors in the order of `StatelessNetwork`'s variables.

    Attributes:
        adapted, others: weights; of `others`, those in `others_by_step` have one for each pass.
        rates: learning rates of the adapted weights, each a scalar or of its weight's shape; with
            `rates_by_step` one for each step, `(steps, …)`.
        state: non-trainable state other than statistics.
        statistics: moving statistics `(…)`, or one for each step and the queries, `(passes, …)`.
        loss: weights of a learnt loss.
        optimizer: state of the inner optimiser; None for its own start.
        steps_before: number of steps that the optimiser's state has seen.
        order: rows of the support set, `(steps, batch)`, that each step takes, or a function from a task's
            number and that of its samples to them; None for all in each.
    """

    adapted: list[tf.Tensor]
    others: list[tf.Tensor]
    rates: list[tf.Tensor]
    state: list[tf.Tensor]
    statistics: list[tf.Tensor]
    loss: list[tf.Tensor] = dataclasses.field(default_factory=list)
    optimizer: "list[tf.Tensor] | None" = None
    steps_before: "int | tf.Tensor" = 0
    order: Any = None
    others_by_step: frozenset[int] = frozenset()
    rates_by_step: bool = False

    def others_at(self, k, others=None) -> list[tf.Tensor]:
        """The weights that are not adapted, as pass k takes them."""
        others = self.others if others is None else others
        return [of_pass(w, k) if i in self.others_by_step else w for i, w in enumerate(others)]


@dataclasses.dataclass
class Adapted:
    """What adaptation leaves.

    Attributes:
        weights: the adapted weights.
        state: non-trainable state after the last step.
        losses: support loss before each step, `(steps,)`, without gradient.
        statistics: of each step's support pass, `(steps, …)`, if asked for; else of the first, `(1, …)`.
            Without gradient.
        optimizer: state of the inner optimiser after the last step.
        total: sum of what `along` gave before each step; None without.
    """

    weights: list[tf.Tensor]
    state: list[tf.Tensor]
    losses: tf.Tensor
    statistics: list[tf.Tensor]
    optimizer: list[tf.Tensor]
    total: Any = None


class InnerLoop:
    """Gradient steps of a network on a support set.

    Args:
        network: the network.
        loss: ``(targets, outputs, weights of the loss) → scalar``.
        optimizer: of `inner_optimizers`.
        second_order: whether derivatives go through the gradients of the steps; first-order
            approximations take these for constants.
        every_statistic: whether the statistics of every step are kept, or the first step's alone.
        learnt_rates: whether learning rates get a gradient.
        proximal: λ of ``λ/2 ‖θ_k − θ_0‖²``, added to the loss of every step.
    """

    def __init__(
        self,
        network: StatelessNetwork,
        loss: Callable,
        optimizer: Any,
        second_order: bool = True,
        every_statistic: bool = False,
        learnt_rates: bool = False,
        proximal: float = 0.0,
    ):
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.second_order, self.every_statistic = second_order, every_statistic
        self.learnt_rates, self.proximal = learnt_rates, proximal

    def adapt(
        self,
        inputs: Any,
        targets: Any,
        start: Start,
        steps: int,
        training: bool,
        by_batch: bool,
        through_inputs: bool = False,
        tally: "Callable | None" = None,
    ) -> Adapted:
        """Adapts to one task.

        Args:
            inputs: the support set, `(samples, …)` or a nest.
            targets: its targets, for the loss.
            start: what the task starts from.
            steps: number of steps, from 0.
            training: whether layers such as dropout are in training mode.
            by_batch: whether batch normalisation uses the support set's own statistics.
            through_inputs: whether floating-point inputs and targets get a gradient.
            tally: ``(k, weights, others, state) → scalar``, summed over the starts of all steps:
                losses along the way.
        """
        task = _Task(self, inputs, targets, start, steps, training, by_batch, through_inputs, tally)
        return task.adapted(self._carried(task, steps))

    def _carried(self, task, steps):
        if steps == 0:
            return task.start()
        constrained = self.network.constrained or self.proximal
        if not (self.second_order or self.learnt_rates or task.tally or constrained):
            # Steps move the weights by constants: the derivative is the identity, and nothing is run twice.
            return _as_identity(task, steps)
        if steps == 1:
            # TensorFlow's own gradient keeps one step's intermediates too, and need not run it twice.
            return task.step(tf.constant(0), task.start(), task.constants)
        return replay(task.step, task.start(), task.constants, steps)[0]

    def along(
        self,
        inputs: Any,
        targets: Any,
        start: Start,
        steps: int,
        training: bool,
        by_batch: bool,
        visit: Callable,
        specs: Any,
    ) -> Any:
        """What `visit` sees before each step and after the last: a nest of `(steps + 1, …)`.

        Args:
            inputs, targets, start, steps, training, by_batch: as for `adapt`.
            visit: ``(k, weights, state) → nest``.
            specs: nest of `tf.TensorSpec`, what `visit` gives.
        """
        task = _Task(self, inputs, targets, start, steps, training, by_batch, False, None)

        def seen(k, carried, arrays):
            part = task.adapted(carried)
            flat = keras.tree.flatten(visit(k, part.weights, part.state))
            return [array.write(k, x) for array, x in zip(arrays, flat, strict=True)]

        def body(k, carried, arrays):
            arrays = seen(k, carried, arrays)
            return k + 1, task.step(k, carried, task.constants), arrays

        arrays = [
            tf.TensorArray(spec.dtype, steps + 1, element_shape=spec.shape)
            for spec in keras.tree.flatten(specs)
        ]
        _, carried, arrays = tf.while_loop(
            lambda k, *_: k < steps, body, (0, task.start(), arrays), parallel_iterations=1
        )
        arrays = seen(tf.constant(steps), carried, arrays)
        return keras.tree.pack_sequence_as(specs, [array.stack() for array in arrays])


def _as_identity(task, steps):
    """`carried` after the steps, whose derivative in the weights they start from is the identity."""
    constants = [tf.stop_gradient(x) for x in task.constants]
    _, after = tf.while_loop(
        lambda k, *_: k < steps,
        lambda k, carried: (k + 1, task.step(k, carried, constants)),
        (0, [tf.stop_gradient(x) for x in task.start()]),
        parallel_iterations=1,
        maximum_iterations=steps,
    )
    after = [tf.stop_gradient(x) for x in after]
    begin = task.begin.adapted
    return [*map(_moved, begin, after), *after[len(begin) :]]


@tf.custom_gradient
def _moved(start, after):
    return tf.identity(after), lambda upstream: (upstream, None)


class _Task:
    """One task's step as a function of lists of tensors, which is what a loop takes."""

    def __init__(
        self, loop, inputs, targets, start, steps, training, by_batch, through_inputs, tally
    ):
        self.loop, self.begin, self.steps = loop, start, steps
        self.training, self.by_batch, self.tally = training, by_batch, tally
        self.support = inputs, targets
        flat = keras.tree.flatten(self.support)
        self.is_constant = [through_inputs and x.dtype.is_floating for x in flat]
        differentiable = [x for x, yes in zip(flat, self.is_constant, strict=True) if yes]
        self.constants = [*start.others, *start.rates, *start.loss, *differentiable]
        if loop.proximal:
            self.constants += start.adapted

    def start(self):
        begin, loop = self.begin, self.loop
        optimizer = (
            loop.optimizer.start(begin.adapted) if begin.optimizer is None else begin.optimizer
        )
        passes = max(1, self.steps) if loop.every_statistic else 1
        statistics = [tf.zeros([passes, *v.shape], v.dtype) for v in loop.network.statistics]
        losses = tf.zeros([self.steps], self._loss_dtype())
        total = [] if self.tally is None else [tf.zeros([], self._loss_dtype())]
        groups = [
            list(begin.adapted),
            list(optimizer),
            list(begin.state),
            [losses],
            statistics,
            total,
        ]
        self.sizes = [len(group) for group in groups]
        return [x for group in groups for x in group]

    def _loss_dtype(self):
        is_double = any(w.dtype == tf.float64 for w in self.begin.adapted)
        return tf.float64 if is_double else tf.float32

    def adapted(self, carried: Sequence[tf.Tensor]) -> Adapted:
        """The parts of what is carried."""
        carried, groups = list(carried), []
        for size in self.sizes:
            groups.append(carried[:size])
            carried = carried[size:]
        weights, optimizer, state, (losses,), statistics, total = groups
        return Adapted(weights, state, losses, statistics, optimizer, *total)

    def step(self, k, carried, constants):
        """One gradient step."""
        loop, before = self.loop, self.adapted(carried)
        others, rates, _, _, start = self._parts_of_constants(constants)
        loss, gradients, of_inputs, state = self._differentiated(k, before, constants)
        if loop.proximal:
            trios = zip(gradients, before.weights, start, strict=True)
            gradients = [g + loop.proximal * (w - w0) for g, w, w0 in trios]
        if not loop.second_order:
            gradients = [tf.stop_gradient(g) for g in gradients]
            state = [tf.stop_gradient(x) for x in state]
        if self.begin.rates_by_step:
            rates = [of_pass(rate, k) for rate in rates]
        weights, optimizer = loop.optimizer.step(
            k + self.begin.steps_before, before.weights, gradients, before.optimizer, rates
        )
        weights = [
            w if v.constraint is None else v.constraint(w)
            for v, w in zip(loop.network.adapted, weights, strict=True)
        ]
        losses = _written(before.losses, k, tf.cast(loss, before.losses.dtype))
        statistics = [_written(s, k, x) for s, x in zip(before.statistics, of_inputs, strict=True)]
        total = []
        if self.tally is not None:
            part = self.tally(k, before.weights, others, before.state)
            total = [before.total + tf.cast(part, self._loss_dtype())]
        return [*weights, *optimizer, *state, losses, *statistics, *total]

    def gradients(self, k, carried, constants):
        """The support loss's gradients in the weights, before step k."""
        return self._differentiated(k, self.adapted(carried), constants)[1]

    def _differentiated(self, k, before, constants):
        """Support loss, its gradients, the batch's statistics, and the state after."""
        loop = self.loop
        others, _, of_loss, (inputs, targets), _ = self._parts_of_constants(constants)
        if self.begin.order is not None:
            rows = self.begin.order[k]
            inputs, targets = keras.tree.map_structure(
                lambda x: tf.gather(x, rows), (inputs, targets)
            )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(before.weights)
            outputs, of_inputs, state, penalty = loop.network(
                before.weights,
                self.begin.others_at(k, others),
                [statistics_of_pass(v, w, k) for v, w in self._moving()],
                before.state,
                inputs,
                self.training,
                self.by_batch,
            )
            loss = loop.loss(targets, outputs, of_loss)
            loss += tf.cast(penalty, loss.dtype)
            scale = _scale_in_half_precision(loss) if loop.network.is_half else None
            scaled = loss if scale is None else loss * scale
        gradients = tape.gradient(scaled, before.weights, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        if scale is not None:
            gradients = [g / tf.cast(scale, g.dtype) for g in gradients]
        return loss, gradients, of_inputs, state

    def _moving(self):
        return zip(self.loop.network.statistics, self.begin.statistics, strict=True)

    def _parts_of_constants(self, constants):
        """Other weights, rates, weights of the loss, the support set, and the weights of the start."""
        begin, constants = self.begin, iter(constants)
        others, rates, of_loss = (
            [next(constants) for _ in part] for part in (begin.others, begin.rates, begin.loss)
        )
        flat = [
            next(constants) if yes else x
            for x, yes in zip(keras.tree.flatten(self.support), self.is_constant, strict=True)
        ]
        support = keras.tree.pack_sequence_as(self.support, flat)
        return others, rates, of_loss, support, list(constants)


def of_pass(values, k):
    """The k-th of the values for each pass, or the last one for later passes."""
    return values[tf.minimum(k, values.shape[0] - 1)]


def statistics_of_pass(variable, statistics, k):
    """The moving statistics that pass k uses: one for all, or the k-th, and the last one for later passes."""
    return statistics if len(statistics.shape) == len(variable.shape) else of_pass(statistics, k)


def _written(record, k, value):
    """`record` with `value` as its k-th entry, if it has one; a record, so no gradient."""
    at = tf.reshape(tf.equal(tf.range(record.shape[0]), k), [-1] + [1] * (len(record.shape) - 1))
    return tf.where(at, tf.stop_gradient(value), record)


def _scale_in_half_precision(loss):
    """A power of two, the smaller the larger the loss is, so that gradients do not overflow either."""
    size = tf.maximum(tf.abs(tf.stop_gradient(loss)), 1.0)
    room = tf.maximum(_HALF_PRECISION_SCALE / size, 1.0)
    return 2.0 ** tf.floor(tf.math.log(room) / tf.math.log(tf.constant(2.0, loss.dtype)))
