"""Layers: the augmentations that Keras lacks, and the parts of self-supervised models."""

from keras_sslmeta.layers.byol_augmentation import BYOLAugmentation
from keras_sslmeta.layers.centering import Centering
from keras_sslmeta.layers.feature_corruption import FeatureCorruption
from keras_sslmeta.layers.image_augmentation import ImageAugmentation
from keras_sslmeta.layers.logit_scale import LogitScale
from keras_sslmeta.layers.memory_queue import MemoryQueue
from keras_sslmeta.layers.mo_co_v2_augmentation import MoCoV2Augmentation
from keras_sslmeta.layers.per_view import PerView
from keras_sslmeta.layers.predictor_head import PredictorHead
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.layers.prototypes import Prototypes
from keras_sslmeta.layers.random_apply import RandomApply
from keras_sslmeta.layers.random_color_jitter import RandomColorJitter
from keras_sslmeta.layers.random_gain import RandomGain
from keras_sslmeta.layers.random_gaussian_blur import RandomGaussianBlur
from keras_sslmeta.layers.random_jitter import RandomJitter
from keras_sslmeta.layers.random_permutation import RandomPermutation
from keras_sslmeta.layers.random_resized_crop import RandomResizedCrop
from keras_sslmeta.layers.random_scaling import RandomScaling
from keras_sslmeta.layers.random_solarization import RandomSolarization
from keras_sslmeta.layers.random_time_crop import RandomTimeCrop
from keras_sslmeta.layers.random_time_shift import RandomTimeShift
from keras_sslmeta.layers.random_time_warp import RandomTimeWarp
from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.layers.sim_clr_augmentation import SimCLRAugmentation
from keras_sslmeta.layers.spec_augment import SpecAugment
from keras_sslmeta.layers.task_context import FiLM, TaskContext
from keras_sslmeta.layers.token_dropout import TokenDropout
from keras_sslmeta.layers.vic_reg_augmentation import VICRegAugmentation

__all__ = [
    "BYOLAugmentation",
    "Centering",
    "FeatureCorruption",
    "FiLM",
    "ImageAugmentation",
    "LogitScale",
    "MemoryQueue",
    "MoCoV2Augmentation",
    "PerView",
    "PredictorHead",
    "ProjectionHead",
    "Prototypes",
    "RandomApply",
    "RandomColorJitter",
    "RandomGain",
    "RandomGaussianBlur",
    "RandomJitter",
    "RandomPermutation",
    "RandomResizedCrop",
    "RandomScaling",
    "RandomSolarization",
    "RandomTimeCrop",
    "RandomTimeShift",
    "RandomTimeWarp",
    "SampleAugmentation",
    "SimCLRAugmentation",
    "SpecAugment",
    "TaskContext",
    "TokenDropout",
    "VICRegAugmentation",
]
