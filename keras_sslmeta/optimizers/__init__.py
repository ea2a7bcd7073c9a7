"""Optimisers and schedules that self-supervised methods ask for and Keras lacks."""

from keras_sslmeta.optimizers.adam_w import AdamW
from keras_sslmeta.optimizers.cosine_schedule import CosineSchedule
from keras_sslmeta.optimizers.is_bias_or_norm import is_bias_or_norm
from keras_sslmeta.optimizers.lars import LARS
from keras_sslmeta.optimizers.scheduled_weight_decay import ScheduledWeightDecay
from keras_sslmeta.optimizers.sgd import SGD

__all__ = [
    "LARS",
    "SGD",
    "AdamW",
    "CosineSchedule",
    "ScheduledWeightDecay",
    "is_bias_or_norm",
]
