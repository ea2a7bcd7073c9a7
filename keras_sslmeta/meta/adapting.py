"""`AdaptingModel`: what meta-learners that adapt by gradient steps share."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import (
    arguments,
    byte_images,
    followed_state,
    inner_optimizers,
    model_copy,
    normalization_policy,
)
from keras_sslmeta.mechanisms.adaptation import Adaptation, Learnt, Results
from keras_sslmeta.mechanisms.inner_loop import InnerLoop, Start
from keras_sslmeta.mechanisms.learnt_loss import LearntLoss
from keras_sslmeta.mechanisms.stateless_network import StatelessNetwork
from keras_sslmeta.mechanisms.task_loss import TaskLoss
from keras_sslmeta.meta.meta_step import MetaStep

# Steps of meta-training: by then moving statistics, which follow fast at first, are near what they follow.
_SETTLED_AFTER = 200


class AdaptingModel(MetaStep):
    """Parent of meta-learners whose model adapts to a task by gradient steps on its support set.

    `train_step` sums the tasks' meta-gradients in a loop over tasks, each at the memory of one inner step.
    `MAML` documents the arguments.
    """

    adaptation_class = Adaptation
    # Whether a method keeps something for each of the model's weights.
    owns_weights_for_each = False

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
        vectorized: bool = False,
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
        if not isinstance(vectorized, bool):
            raise ValueError(
                f"`vectorized` must be True or False. Received: vectorized={vectorized!r}"
            )
        self.second_order, self.vectorized = second_order, vectorized
        self.inner_optimizer = inner_optimizer
        if isinstance(inner_loss, keras.Layer) and not inner_loss.built:
            raise ValueError(
                "`inner_loss` must be built if it is a layer with weights to learn: call it once on "
                f"`[targets, outputs]`, or make it a functional model. Received: {inner_loss!r}"
            )
        if isinstance(inner_loss, keras.Layer) and not second_order:
            raise ValueError(
                "`second_order` must be True where `inner_loss` has weights to learn: what they do to a "
                "gradient is a second derivative. Received: second_order=False"
            )
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
        self.build_reports()
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
        if isinstance(support_y, list) and not hasattr(support_y[0], "shape"):
            support_y = np.asarray(support_y)
        support_x, support_y = (
            keras.tree.map_structure(tf.convert_to_tensor, x) for x in (support_x, support_y)
        )
        if not self.built:
            shapes = keras.tree.map_structure(lambda x: (None, *x.shape), support_x)
            self.build({"support_x": shapes})
        self._check_support(support_x, support_y)
        support_x = byte_images.as_the_model_takes_them(self.model, support_x)
        run = self._function("adapt", steps)
        weights, others, state, statistics = run(support_x, support_y)
        network = self._network()
        news = {
            id(v): x
            for variables, values in (
                (network.adapted, weights),
                (network.others, others),
                (network.state, state),
                (network.statistics, statistics),
            )
            for v, x in zip(variables, values, strict=True)
        }
        return model_copy.copy_with(self.model, news, support_x)

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
        self._ids_at_build = _ids(network)
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
        Under XLA the second derivative of max pooling is TensorFlow's approximation, which compares in half
        precision: meta-gradients were off in the third digit; average pooling is exact.

        Raises:
            ValueError: if `loss` is None, or the losses of several outputs reduce in different ways.
        """
        if loss is None:
            raise ValueError(
                f"{type(self).__name__} has no loss of its own: pass that of the task, such as "
                "`loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. Received: loss=None"
            )
        TaskLoss(loss, loss_weights, getattr(self.model, "output_names", None))
        self._loss_weights = loss_weights
        self._functions = {}
        jit_compile = False if jit_compile == "auto" else jit_compile
        super().compile(
            optimizer, loss, loss_weights=loss_weights, jit_compile=jit_compile, **kwargs
        )

    def get_config(self):
        config = {
            "inner_steps": self.inner_steps,
            "inner_learning_rate": self.inner_learning_rate,
            "second_order": self.second_order,
            "test_inner_steps": self.test_inner_steps,
            "batch_normalization": self.batch_normalization,
            "vectorized": self.vectorized,
        }
        objects = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("inner_optimizer", "inner_loss", "adapted")
        }
        return {**super().get_config(), **config, **objects}

    # ------------------------------------------------------------------------ for the methods

    def is_adapted(self) -> "Callable[[Any], bool] | None":
        """From a variable to whether inner steps change it; None for all trainable ones."""
        return self.adapted

    def method_weights(self) -> list:
        """What a method learns beside the model's weights: variables of its own."""
        return []

    def start_of(self, start: Start, weights: "list[tf.Tensor]", steps: int) -> Start:
        """What tasks start from: the plain start, changed by a method's own weights.

        Args:
            start: from the model's weights.
            weights: values of `method_weights()`.
            steps: number of inner steps.
        """
        return start

    def after_step(self, adaptation: Adaptation, results: Results, tasks: tf.Tensor) -> None:
        """What follows a step of meta-training: statistics and other state that is not trained."""
        followed_state.follow(
            adaptation.network,
            self._policy,
            self.step_statistics,
            results,
            tasks,
            self.optimizer.iterations,
        )

    def inner_loop(self, network: StatelessNetwork, training: bool) -> InnerLoop:
        """How inner steps are taken, and differentiated."""
        return self.loop_of(InnerLoop, network, training)

    def loop_of(self, kind: type, network: StatelessNetwork, training: bool, **arguments):
        """An `InnerLoop`, or a subclass with further arguments."""
        return kind(
            network,
            self._inner_loss(),
            self._inner_step()[0],
            self.second_order,
            every_statistic=training and self._policy.per_step,
            learnt_rates=bool(self.method_weights()),
            **arguments,
        )

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
        adaptation, learnt = self.adaptation(training=False, steps=steps)
        one = keras.tree.map_structure(lambda x: x[None], (support_x, support_y))
        checks = self.checks_of_labels(adaptation, {"query_x": one[0], "support_y": one[1]})
        with tf.control_dependencies(checks):
            adapted, start, statistics = adaptation.one(support_x, support_y, learnt)
            return adapted.weights, start.others_at(steps), adapted.state, statistics

    def _predicted_along(self, steps, episode):
        adaptation, learnt = self.adaptation(training=False, steps=steps)
        with tf.control_dependencies(self.checks_of_labels(adaptation, episode)):
            return adaptation.along(episode, learnt)

    def _network(self):
        return StatelessNetwork(self.model, self.is_adapted())

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

    def task_losses(self):
        outer = None
        names = getattr(self.model, "output_names", None)
        if self.compiled:
            outer = TaskLoss(self.loss, self._loss_weights, names)
        if self.inner_loss is None and outer is None:
            raise ValueError(
                f"{type(self).__name__} needs a loss to adapt by: call `compile(loss=…)` first, or "
                "pass `inner_loss`. Received: neither"
            )
        if isinstance(self.inner_loss, keras.Layer):
            return None, outer
        return outer if self.inner_loss is None else TaskLoss(self.inner_loss, None, names), outer

    def _inner_loss(self):
        """``(targets, outputs, weights of the loss) → scalar``."""
        loss, _ = self.task_losses()
        if loss is None:
            return LearntLoss(self.inner_loss)
        return lambda targets, outputs, _: loss(targets, outputs)

    def _learnt_loss_weights(self):
        is_layer = isinstance(self.inner_loss, keras.Layer)
        return list(self.inner_loss.trainable_variables) if is_layer else []

    def learnt_variables(self, network):
        """All that gets a meta-gradient, in the order of `Learnt.tensors`."""
        return [
            *network.adapted,
            *network.others,
            *self._learnt_loss_weights(),
            *self.method_weights(),
        ]

    def adaptation(self, training, steps=None, through_inputs=False):
        """How to adapt, and what every task starts from: variables, read once, before any loop."""
        network = self._network()
        network.read_frozen()
        if self._policy.per_step:
            network.renormalized = self._settled() if training else tf.constant(1.0)
        if self.owns_weights_for_each and _ids(network) != self._ids_at_build:
            raise ValueError(
                "Layers of `model` must be frozen, or unfrozen, before the meta-learner is made, which has "
                f"weights of its own for each of theirs. Received: {type(self).__name__} of a model that "
                "was changed since"
            )
        steps = self._steps(training) if steps is None else steps
        adaptation = self.adaptation_class(
            network,
            self.inner_loop(network, training),
            self._policy,
            steps,
            training,
            through_inputs,
            self.vectorized,
        )
        rate = self._inner_step()[1]
        statistics = self.step_statistics if self._policy.per_step else network.statistics
        state, statistics = _values(network.state), _values(statistics)
        sizes = [len(network.adapted), len(network.others), len(self._learnt_loss_weights())]

        def start(tensors):
            adapted, others, of_loss, own = _split(tensors, sizes)
            rates = [tf.constant(rate, w.dtype) for w in adapted]
            plain = Start(adapted, others, rates, state, statistics, of_loss)
            return self.start_of(plain, own, steps)

        return adaptation, Learnt(_values(self.learnt_variables(network)), start)

    def _settled(self):
        """How far moving statistics are taken in meta-training: not at first, all the way after 200 steps."""
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None:
            return tf.constant(1.0)
        return tf.minimum(tf.cast(optimizer.iterations, tf.float32) / _SETTLED_AFTER, 1.0)

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


def _ids(network):
    return [*map(id, network.adapted), 0, *map(id, network.others)]


def _split(tensors, sizes):
    """Groups of these sizes, and what is left."""
    tensors, groups = list(tensors), []
    for size in sizes:
        groups.append(tensors[:size])
        tensors = tensors[size:]
    return *groups, tensors


def _every_step(variable, passes):
    """An initializer: the variable's value for every pass."""
    values = np.repeat(variable.numpy()[None], passes, axis=0)
    return lambda shape, dtype=None: keras.ops.convert_to_tensor(values, dtype=dtype)


def _values(variables):
    return [tf.convert_to_tensor(v.value) for v in variables]
