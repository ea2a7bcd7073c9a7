"""Keras callbacks that watch a representation while it is trained."""

from keras_sslmeta.callbacks.knn_probe import KNNProbe

__all__ = ["KNNProbe"]
