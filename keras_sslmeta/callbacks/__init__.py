"""Keras callbacks that watch a representation while it is trained."""

from keras_sslmeta.callbacks.knn_probe import KNNProbe
from keras_sslmeta.callbacks.linear_probe import LinearProbe
from keras_sslmeta.callbacks.representation_health import RepresentationHealth

__all__ = ["KNNProbe", "LinearProbe", "RepresentationHealth"]
