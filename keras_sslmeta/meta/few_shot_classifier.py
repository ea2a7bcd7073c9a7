"""`FewShotClassifier`: one task's classifier, out of a meta-learner that compares."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import byte_images
from keras_sslmeta.mechanisms.nested_config import NestedConfig


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class FewShotClassifier(NestedConfig):
    """An ordinary Keras model that classifies samples of one task, as `adapt` gives it.

    It holds a copy of the meta-learner and what that needs of the task's support set (class means,
    say), as weights that are not trained. Use it, save it, or train its encoder further; it does not adapt
    again. Its predictions are those of the meta-learner: logits, or scores of a relation network.

    Args:
        learner: the meta-learner, built; `adapt` gives it a copy.
        specs: shape and dtype of what is kept of the support set, by name.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: samples as the encoder takes them, `(n, …)` or a nest.
        training: as in Keras.

    Returns:
        `(n, ways)`.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    >>> classifier = ksm.PrototypicalNetwork(encoder).adapt(np.eye(3), np.array([0, 1, 2]))
    >>> classifier.predict(np.eye(3), verbose=0).argmax(axis=1).tolist()
    [0, 1, 2]
    """

    def __init__(self, learner, specs, **kwargs):
        super().__init__(autocast=False, **kwargs)
        learner.stop_adapting()
        self.learner = learner
        self.specs = {name: (list(shape), dtype) for name, (shape, dtype) in dict(specs).items()}
        self._summary = {
            name: self.add_weight(
                shape=tuple(shape),
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,  # Comparisons are in float32 under mixed precision, too.
                name=name,
            )
            for name, (shape, dtype) in self.specs.items()
        }
        self.built = True

    def remember(self, summary: "dict[str, tf.Tensor]"):
        """Takes what is to be kept of a support set, by name."""
        for name, value in summary.items():
            self._summary[name].assign(value)

    def build(self, input_shape):
        """Nothing: it is built from the start, but Keras keeps the shape for `export`."""

    def call(self, inputs, training=None):
        inputs = keras.tree.map_structure(tf.convert_to_tensor, inputs)
        inputs = byte_images.as_the_model_takes_them(self.learner.encoder, inputs)
        queries = self.learner.embed(inputs, training=training)
        summary = {name: v.value[None] for name, v in self._summary.items()}
        return self.learner.compare(queries[None], summary, training=training)[0]

    def get_config(self):
        learner = keras.saving.serialize_keras_object(self.learner)
        return {**super().get_config(), "learner": learner, "specs": self.specs}
