"""The remedy that lets a Keras 3 model `fit` under `MultiWorkerMirroredStrategy`.

Keras (checked with 3.15; Keras issue 20585, open since 2024) fails there for two reasons:

1. before the first step it builds the model from one batch that it reduces over replicas
   (`_maybe_symbolic_build`), and cannot convert what it got into a tensor; the same reduction turns
   integer labels into floats and fails on shares of different sizes under any strategy;
2. it reduces the logs of a step over axis 0, and scalars have none.

Building from the first *local* batch cures the first, and logs with an axis of length one the second.
Both do no harm where Keras needs no cure. Once it is mended there, this file goes.
"""

import keras
import tensorflow as tf


class MultiWorkerFit(keras.Model):
    """A model whose `fit`, `evaluate` and `predict` run on many workers."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self._distribute_strategy is None:
            return
        strategy = self.distribute_strategy
        if iterator is not None:
            for _, _, batches in iterator:
                data_batch = _first_local(strategy, next(batches))
                break
        with strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    def train_step(self, data):
        return reducible(super().train_step(data))

    def test_step(self, data):
        return reducible(super().test_step(data))


def _first_local(strategy, batch):
    """The share of this worker's first replica."""
    return keras.tree.map_structure(lambda x: strategy.experimental_local_results(x)[0], batch)


def reducible(logs):
    """Scalar logs with an axis of length one, where Keras will reduce over it."""
    strategy = tf.distribute.get_strategy()
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not is_multi_worker or strategy.num_replicas_in_sync == 1:
        return logs
    return keras.tree.map_structure(lambda x: tf.reshape(x, [1]) if len(x.shape) == 0 else x, logs)
