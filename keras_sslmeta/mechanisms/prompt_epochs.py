"""The remedy for epochs that end long after their last step.

TensorFlow (checked with 2.21) tunes a dataset's parallelism by a thread of its own, which sleeps for 10 ms,
then for twice as long each time, up to a minute. The destructor of an iterator cancels that thread and waits
for it. But the thread is woken before the cancellation can be seen (`CancellationManager` calls back first
and sets its flag afterwards), so it often goes back to sleep for the rest of its turn. Keras 3 makes an
iterator for every epoch: epochs of `fit` on arrays take 5.1, 10.2, 20.5, 41 or 82 seconds, whichever comes
next after their last step. (Keras's `predict` has no place to step in, and under a strategy the dataset has
been shared out before there is one: both stay as they are.)

Without tuning there is no such thread, and `AUTOTUNE` stands for as many parallel calls as there are cores,
16 at most. That is enough for Keras's own gathering of batches from arrays, and for ours; datasets of users
are left as they are. Once TensorFlow's iterators end at once, this file goes.
"""

import keras
import tensorflow as tf


class PromptEpochs(keras.Model):
    """A model whose epochs on arrays end with their last step."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        dataset = getattr(iterator, "_distributed_dataset", None)
        is_from_arrays = (
            type(getattr(iterator, "data_adapter", None)).__name__ == "ArrayDataAdapter"
        )
        if is_from_arrays and isinstance(dataset, tf.data.Dataset) and is_tuned(dataset):
            iterator._distributed_dataset = dataset.with_options(untuned())
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)


def untuned() -> tf.data.Options:
    """Options of a dataset that is not tuned while it is read."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def is_tuned(dataset: tf.data.Dataset) -> bool:
    """Whether it will be; TensorFlow's default is yes."""
    return dataset.options().autotune.enabled is not False
