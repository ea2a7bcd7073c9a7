"""What training and saving need beside Keras's own, in one parent of the models of both halves."""

import tensorflow as tf

from keras_sslmeta.mechanisms.custom_compile import CustomCompile
from keras_sslmeta.mechanisms.multi_worker import MultiWorkerFit
from keras_sslmeta.mechanisms.nested_config import NestedConfig
from keras_sslmeta.mechanisms.prompt_epochs import PromptEpochs
from keras_sslmeta.mechanisms.random_state import SavedRandomState
from keras_sslmeta.mechanisms.single_trace import SingleTrace


class TrainedModel(
    SavedRandomState, CustomCompile, NestedConfig, PromptEpochs, SingleTrace, MultiWorkerFit
):
    """A model that holds others, has a `compile` of its own, and fits promptly, also on many workers."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # What `fit` and `evaluate` do before they read the first batch.
        if iterator is not None and iterator.steps_per_epoch is None:
            _refuse_endless(getattr(iterator, "_distributed_dataset", None))
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)


def _refuse_endless(dataset):
    if (
        isinstance(dataset, tf.data.Dataset)
        and dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    ):
        raise ValueError(
            "The dataset is endless, and so would the epoch be: say how many steps to take, by "
            "`steps_per_epoch=` of `fit`, `validation_steps=` for validation data, `steps=` of `evaluate`; "
            "or make it finite, as `episodes=` of `data.episodes` and `.take` do. "
            f"Received: {dataset!r}"
        )
