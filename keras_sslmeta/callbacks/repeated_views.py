"""The same random views time and again, drawn by somebody else's augmentation without moving it on."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import augmented_views, byte_images, sample_nest, view_axis
from keras_sslmeta.mechanisms.state_recorder import StateRecorder


class RepeatedViews:
    """Augmented views of samples, equal on every pass.

    The augmentation is called as a function of the values of its variables: the states of its seed
    generators, and of Keras's global one, stay as they are, and every pass starts from their values
    at the first. Functions that draw by TensorFlow's own operations (`tf.image.random_crop`) are
    compiled apart, so a model's draws are not moved on either, but their views differ from pass to
    pass.

    Args:
        samples: `(n, …)`, or a nest of such arrays.
        augmentation: as `TwoViewModel` takes it.
        views: number of views.
        encoder: what the views are for; one that takes no integers gets images of bytes as floats.
    """

    def __init__(self, samples: Any, augmentation: Any, views: int, encoder: Any):
        self.samples = samples
        self.augmentation, self.views, self.encoder = augmentation, views, encoder
        spec = keras.tree.map_structure(
            lambda x: tf.TensorSpec((None, *x.shape[1:]), tf.constant(x[:1]).dtype), samples
        )
        self._variables: list[Any] = []
        tf.function(self._trace, autograph=False).get_concrete_function(spec)
        self._start = [tf.convert_to_tensor(v.value) for v in self._variables]
        states = [tf.TensorSpec(v.shape, v.dtype) for v in self._variables]
        make = tf.function(self._make, autograph=False)
        self._made = make.get_concrete_function(spec, states)

    def __call__(self, batch_size: int) -> Iterator[Any]:
        """Views of so many samples at a time, `(batch · views, …)`, as nested as the samples."""
        states = self._start
        for i in range(0, sample_nest.count(self.samples), batch_size):
            part = sample_nest.take(self.samples, slice(i, i + batch_size))
            made, states = self._made(keras.tree.map_structure(tf.constant, part), states)
            yield keras.tree.map_structure(lambda x: x.numpy(), made)

    def _trace(self, x):
        with StateRecorder() as recorder:
            self._views(x)
        self._variables = recorder.assigned

    def _make(self, x, states):
        with keras.StatelessScope(list(zip(self._variables, states, strict=True))) as scope:
            made = self._views(x)
        return made, [tf.convert_to_tensor(scope.get_current_value(v)) for v in self._variables]

    def _views(self, x):
        x = byte_images.as_the_model_takes_them(self.encoder, x)
        return view_axis.merge(augmented_views.make(x, self.augmentation, self.views))
