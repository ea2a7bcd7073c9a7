"""Layers: the image augmentations that Keras lacks, and the parts of self-supervised models."""

from keras_sslmeta.layers.image_augmentation import ImageAugmentation
from keras_sslmeta.layers.per_view import PerView
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.layers.random_apply import RandomApply
from keras_sslmeta.layers.random_color_jitter import RandomColorJitter
from keras_sslmeta.layers.random_gaussian_blur import RandomGaussianBlur
from keras_sslmeta.layers.random_resized_crop import RandomResizedCrop
from keras_sslmeta.layers.sim_clr_augmentation import SimCLRAugmentation

__all__ = [
    "ImageAugmentation",
    "PerView",
    "ProjectionHead",
    "RandomApply",
    "RandomColorJitter",
    "RandomGaussianBlur",
    "RandomResizedCrop",
    "SimCLRAugmentation",
]
