"""Keras's batch normalisation by TensorFlow's fused kernels, while a model trains.

Keras normalises operation by operation. Where XLA does not fuse them, as on CPUs, each is a pass over the
data, and their derivatives are several more.
"""

import collections
import contextlib
import threading

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import batch_normalization, cross_replica, xla

_LOCK = threading.Lock()
_SCOPES: "collections.Counter[int]" = collections.Counter()  # Of a layer, by its id.


@contextlib.contextmanager
def of(model: keras.Model):
    """A scope in which the model's layers of batch normalisation do in training what they do, but fused.

    Outputs, gradients and moving statistics are those of `keras.layers.BatchNormalization`, but for rounding.
    Layers that are synchronised among several replicas, renormalise, have a mask, another axis than the
    last or a way of their own stay with Keras, and so do all under XLA, which fuses by itself. Scopes may
    overlap, as those of replicas do.
    """
    layers = [layer for layer in model._flatten_layers() if batch_normalization.is_keras_own(layer)]
    with _LOCK:
        for layer in layers:
            if not _SCOPES[id(layer)] and "call" not in vars(layer):
                layer.call = _Fused(layer)
            _SCOPES[id(layer)] += 1
    try:
        yield
    finally:
        with _LOCK:
            for layer in layers:
                _SCOPES[id(layer)] -= 1
                if not _SCOPES[id(layer)]:
                    del _SCOPES[id(layer)]
                    if isinstance(vars(layer).get("call"), _Fused):
                        del layer.call  # The method of its class again.


class _Fused:
    """In place of a layer's `call`."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, inputs, training=None, mask=None):
        layer = self.layer
        is_apart = not (layer.synchronized and cross_replica.count() > 1)
        if training and is_apart and inputs.shape.rank and not xla.is_compiling():
            is_half = inputs.dtype in (tf.float16, tf.bfloat16)
            wide = tf.cast(inputs, tf.float32) if is_half else inputs
            if batch_normalization.applies(layer, wide, mask):
                return batch_normalization.in_training(layer, wide)
        return type(layer).call(layer, inputs, training=training, mask=mask)
