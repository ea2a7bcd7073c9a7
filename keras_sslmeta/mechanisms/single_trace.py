"""The remedy for training steps that are traced twice.

On one device Keras 3 (checked with 3.15) builds the optimizer, and the metrics given to `compile`, within
the first trace of the training step. A `tf.function` whose first trace makes variables is traced once
more, so the first step takes twice as long: seconds for a small network, minutes for a meta-learner that
unrolls many steps. Under a strategy Keras builds both before, and so it does when it loads a model.

Here the optimizer is built when the function is first called; where a layer may yet make weights, which the
optimizer would not know, Keras does as before. Metrics must see predictions first, so they are built while
the step is traced, by a thread of their own: only there TensorFlow takes no note of their variables
(`tf.init_scope` does not keep it from that). Metrics that make variables in `update_state` (`F1Score`),
several losses, and layers that are not built before the first batch still cost a second trace. Once Keras
builds both before, this file goes.
"""

import threading
from typing import Any

import keras
import tensorflow as tf


class SingleTrace(keras.Model):
    """A model whose optimizer and metrics are built apart from the trace of its steps."""

    train_function: Any

    def may_make_weights(self, layer: keras.layers.Layer) -> bool:
        """Whether the layer has not been built, and does something then."""
        return not (layer.built or getattr(layer.build, "_is_default", False))

    def make_train_function(self, force=False):
        made = self.train_function
        super().make_train_function(force)
        if self.train_function is not made:
            self.train_function = self._with_optimizer(self.train_function)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        metrics = self._compile_metrics
        if self._is_to_build(metrics) and not tf.executing_eagerly():
            tensors = [tensor for tensor in keras.tree.flatten((y, y_pred)) if tensor is not None]
            if all(tensor.shape.rank is not None for tensor in tensors):
                _apart(metrics.build, *keras.tree.map_structure(_spec, (y, y_pred)))
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _with_optimizer(self, function):
        """Builds the optimizer before the first call: until then callbacks may freeze layers."""

        def step(iterator):
            if self._is_to_build(getattr(self, "optimizer", None)) and self._is_complete():
                self.optimizer.build(self.trainable_variables)
            return function(iterator)

        return step

    def _is_complete(self):
        return self.built and not any(map(self.may_make_weights, self._flatten_layers()))

    def _is_to_build(self, part):
        # Under a strategy, even of one replica, Keras builds both before.
        one_device = self.distribute_strategy.num_replicas_in_sync == 1
        alone = self._distribute_strategy is None and one_device
        return part is not None and not part.built and alone


def _apart(build, *arguments):
    """Builds in a thread, within the scope of `tf.device` of this one; raises what is raised there."""
    with tf.init_scope():
        device = _device()
    errors = []

    def run():
        try:
            with tf.device(None if device == _device() else device):
                build(*arguments)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _device():
    return tf.zeros(()).device


def _spec(x):
    return None if x is None else keras.KerasTensor(x.shape, dtype=x.dtype.name)
