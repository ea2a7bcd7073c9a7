"""The remedy for training steps that are traced twice.

On one device Keras 3 (checked with 3.15) builds the optimizer, and the metrics given to `compile`, within
the first trace of the training step. A `tf.function` whose first trace makes variables is traced once
more, so the first step takes twice as long: seconds for a small network, minutes for a meta-learner that
unrolls many steps. Under a strategy Keras builds both before, and so it does when it loads a model.

Here the optimizer is built as soon as the function is asked for; where a layer may yet make weights, which
the optimizer would not know, Keras does as before. Metrics must see predictions first, so they are built
while the step is traced, by a thread of their own: only there TensorFlow takes no note of their variables
(`tf.init_scope` does not keep it from that). Once Keras builds both before, this file goes.
"""

from concurrent import futures

import keras


class SingleTrace(keras.Model):
    """A model whose optimizer and metrics are built apart from the trace of its steps."""

    def may_make_weights(self, layer: keras.layers.Layer) -> bool:
        """Whether the layer has not been built, and does something then."""
        return not (layer.built or getattr(layer.build, "_is_default", False))

    def make_train_function(self, force=False):
        if self._is_to_build(getattr(self, "optimizer", None)) and self._is_complete():
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        metrics = self._compile_metrics
        if self._is_to_build(metrics):
            specs = keras.tree.map_structure(_spec, (y, y_pred))
            with futures.ThreadPoolExecutor(1) as apart:
                apart.submit(metrics.build, *specs).result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _is_complete(self):
        return self.built and not any(map(self.may_make_weights, self._flatten_layers()))

    def _is_to_build(self, part):
        on_one_device = self.distribute_strategy.num_replicas_in_sync == 1
        return part is not None and not part.built and on_one_device


def _spec(x):
    return None if x is None else keras.KerasTensor(x.shape, dtype=x.dtype.name)
