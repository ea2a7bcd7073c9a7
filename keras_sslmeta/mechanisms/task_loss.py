"""The compiled loss, on one task: a pure function, where Keras's own keeps metrics and knows replicas."""

from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


class TaskLoss:
    """What `compile(loss=…, loss_weights=…)` means for the outputs and targets of one task.

    Args:
        loss: a loss, or a list or dict of them (None for an output without), as in `compile`.
        loss_weights: as in `compile`.
        output_names: names of the outputs, where the model has some.

    Raises:
        ValueError: if the losses reduce in different ways.
    """

    def __init__(self, loss: Any, loss_weights: Any = None, output_names=None):
        self.loss, self._weights, self._names = loss, loss_weights, output_names
        flat = [_as_loss(x) for x in keras.tree.flatten(loss) if x is not None]
        reductions = {x.reduction for x in flat}
        if len(reductions) > 1:
            raise ValueError(
                "The losses of all outputs must have the same `reduction`. "
                f"Received: {sorted(map(str, reductions))}"
            )
        (self.reduction,) = reductions
        self.is_mean = self.reduction in _MEANS
        self.is_sparse = any(map(_is_sparse, flat))

    def __call__(self, targets, outputs, sample_weight=None) -> tf.Tensor:
        """The loss, a scalar: the mean over the task's samples, unless the reduction is another."""
        return tf.reduce_sum(self.each(targets, outputs, sample_weight))

    def each(self, targets, outputs, sample_weight=None) -> tf.Tensor:
        """Every output's part of it, `(outputs,)`."""
        values = []
        for loss, weight, target, output, samples in self._pairs(targets, outputs, sample_weight):
            value = tf.reduce_sum(loss(target, output, sample_weight=samples))
            if self.is_mean:  # Keras has divided by the number of replicas.
                value *= tf.cast(cross_replica.count(), value.dtype)
            values.append(value if weight is None else value * tf.cast(weight, value.dtype))
        return tf.stack(values)

    def factors(self, targets, outputs, sample_weight, tasks, dtype) -> tf.Tensor:
        """What each task's parts count in the loss of all tasks on all replicas, `(tasks, outputs + 1)`.

        The last column is for what layers add to the loss: the mean over tasks.

        Args:
            targets, outputs: of all tasks, or specifications.
            sample_weight: None, or a nest of `(tasks, queries)`.
            tasks: number of tasks here.
            dtype: of the result.
        """
        weights = [samples for *_, samples in self._pairs(targets, outputs, sample_weight)]
        equal = tf.ones([tasks], dtype) / tf.cast(cross_replica.total(tasks), dtype)
        if not self.is_mean:
            return tf.stack([tf.ones([tasks], dtype)] * len(weights) + [equal], axis=1)
        if self.reduction != "mean_with_sample_weight":
            return tf.stack([equal] * (len(weights) + 1), axis=1)
        columns = []
        for weight in weights:
            if weight is None:
                columns.append(equal)
                continue
            of_tasks = tf.reduce_sum(tf.cast(weight, dtype), axis=1)
            total = cross_replica.total(tf.reduce_sum(of_tasks))
            columns.append(tf.math.divide_no_nan(of_tasks, total))
        return tf.stack([*columns, equal], axis=1)

    def checks_of_labels(self, name: str, targets, outputs) -> list:
        """Assertions that integer labels are classes of the outputs: on a GPU others would give NaN.

        Args:
            name: of the targets, for the message.
            targets: the targets.
            outputs: the outputs, or their specification.
        """
        checks = []
        for loss, _, labels, output, _ in self._pairs(targets, outputs, None):
            if not _is_sparse(loss):
                continue
            classes = output.shape[getattr(loss, "axis", -1)]
            message = (
                f"`{name}` must hold labels from 0 to {classes - 1}: the model's head has {classes} "
                "classes. Received:"
            )
            labels = tf.cast(labels, tf.int64)
            is_valid = (labels >= 0) & (labels < classes)
            ignored = getattr(loss, "ignore_class", None)
            if ignored is not None:
                is_valid |= labels == ignored
            valid = tf.reduce_all(is_valid)
            checks.append(tf.debugging.Assert(valid, [message, labels], summarize=100))
        return checks

    def checks_of_width(self, labels, outputs, is_asked: tf.Tensor) -> list:
        """Assertions that heads are no wider than tasks have ways.

        Several tasks that all have the same number of classes, and fewer than the head, are told; tasks of
        different numbers are let be.

        Args:
            labels: the support sets', nest of `(tasks, samples)`.
            outputs: the outputs, or their specification.
            is_asked: whether to look at all.
        """
        checks = []
        for loss, _, of_output, output, _ in self._pairs(labels, outputs, None):
            if not _is_sparse(loss):
                continue
            classes = output.shape[getattr(loss, "axis", -1)]
            of_tasks = tf.reshape(tf.cast(of_output, tf.int64), [tf.shape(of_output)[0], -1])
            ways = 1 + tf.reduce_max(of_tasks, axis=1)
            is_one = tf.reduce_all(ways == ways[:1]) & (tf.size(ways) > 1)
            is_wider = is_asked & is_one & (tf.reduce_max(ways) < classes)
            message = (
                f"The model's head must have as many classes as the tasks have ways. It has {classes}, "
                "and the largest label of every task is one less than:"
            )
            checks.append(tf.debugging.Assert(~is_wider, [message, ways], summarize=100))
        return checks

    def _pairs(self, targets, outputs, sample_weight):
        count = len(keras.tree.flatten(outputs))
        columns = [
            self._aligned(x, outputs, name)
            for x, name in (
                (self.loss, "loss"),
                (self._weights, "loss_weights"),
                (targets, "targets"),
                (sample_weight, "sample_weight"),
            )
        ]
        losses, weights, targets, samples = columns
        if len(targets) == 1 and count > 1:
            raise ValueError(
                f"The model has {count} outputs, and needs targets for each. Received: one"
            )
        return [
            (_as_loss(loss), weight, target, output, sample)
            for loss, weight, target, output, sample in zip(
                losses, weights, targets, keras.tree.flatten(outputs), samples, strict=True
            )
            if loss is not None
        ]

    def _aligned(self, value, outputs, name):
        """`value` as a list, one entry an output."""
        count = len(keras.tree.flatten(outputs))
        if isinstance(value, dict):
            names = list(outputs) if isinstance(outputs, dict) else self._names
            if names is not None and set(value) <= set(names):
                return [
                    value.get(key)
                    for key in (sorted(names) if isinstance(outputs, dict) else names)
                ]
        elif isinstance(value, (list, tuple)):
            flat = keras.tree.flatten(value)
            if len(flat) == count:
                return flat
        elif name != "targets" or count == 1:
            return [value] * count
        raise ValueError(
            f"`{name}` must have the structure of the model's outputs. "
            f"Received: {keras.tree.map_structure(lambda _: '*', value)} for "
            f"{keras.tree.map_structure(lambda _: '*', outputs)}"
        )


def _is_sparse(loss):
    if isinstance(loss, _FunctionLoss):
        return loss.function is keras.losses.sparse_categorical_crossentropy
    return isinstance(loss, keras.losses.SparseCategoricalCrossentropy)


def _as_loss(loss):
    loss = keras.losses.get(loss)
    return loss if isinstance(loss, keras.losses.Loss) else _FunctionLoss(loss)


class _FunctionLoss(keras.losses.Loss):
    """A function of targets and outputs, as Keras wraps one."""

    def __init__(self, function):
        super().__init__(name="loss")
        self.function = function

    def call(self, y_true, y_pred):
        if len(y_pred.shape) == len(y_true.shape) + 1 and y_pred.shape[-1] == 1:
            y_true = y_true[..., None]
        elif len(y_true.shape) == len(y_pred.shape) + 1 and y_true.shape[-1] == 1:
            y_true = y_true[..., 0]
        return self.function(y_true, y_pred)
