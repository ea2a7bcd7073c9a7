"""What training and saving need beside Keras's own, in one parent of the models of both halves."""

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
