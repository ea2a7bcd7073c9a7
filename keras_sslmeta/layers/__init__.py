"""Layers: the image augmentations that Keras lacks, and the parts of self-supervised models."""

from keras_sslmeta.layers.centering import Centering
from keras_sslmeta.layers.image_augmentation import ImageAugmentation
from keras_sslmeta.layers.logit_scale import LogitScale
from keras_sslmeta.layers.memory_queue import MemoryQueue
from keras_sslmeta.layers.per_view import PerView
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.layers.prototypes import Prototypes
from keras_sslmeta.layers.random_apply import RandomApply
from keras_sslmeta.layers.random_color_jitter import RandomColorJitter
from keras_sslmeta.layers.random_gaussian_blur import RandomGaussianBlur
from keras_sslmeta.layers.random_resized_crop import RandomResizedCrop
from keras_sslmeta.layers.sim_clr_augmentation import SimCLRAugmentation
from keras_sslmeta.layers.task_context import FiLM, TaskContext

__all__ = [
    "Centering",
    "FiLM",
    "ImageAugmentation",
    "LogitScale",
    "MemoryQueue",
    "PerView",
    "ProjectionHead",
    "Prototypes",
    "RandomApply",
    "RandomColorJitter",
    "RandomGaussianBlur",
    "RandomResizedCrop",
    "SimCLRAugmentation",
    "TaskContext",
]
