"""Image sets by name, datasets of views, and the draw of few-shot episodes."""

from keras_sslmeta.data.catalog import ImageData, download_report, load
from keras_sslmeta.data.episode_indices import episode_indices
from keras_sslmeta.data.views import two_views

__all__ = ["ImageData", "download_report", "episode_indices", "load", "two_views"]
