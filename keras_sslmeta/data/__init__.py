"""Image sets by name, datasets of views, and few-shot episodes."""

from keras_sslmeta.data.cactus import cactus, cluster_labels
from keras_sslmeta.data.catalog import ImageData, download_report, load
from keras_sslmeta.data.episode_indices import episode_indices
from keras_sslmeta.data.episodes import episodes
from keras_sslmeta.data.sinusoids import sinusoids
from keras_sslmeta.data.split_classes import split_classes
from keras_sslmeta.data.umtra import umtra
from keras_sslmeta.data.views import two_views

__all__ = [
    "ImageData",
    "cactus",
    "cluster_labels",
    "download_report",
    "episode_indices",
    "episodes",
    "load",
    "sinusoids",
    "split_classes",
    "two_views",
    "umtra",
]
