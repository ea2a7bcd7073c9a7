"""`Prototypes`: the learnt cluster centres of SwAV (Caron et al. 2020)."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, unit_vectors


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class Prototypes(keras.layers.Layer):
    """Cosines of embeddings with learnt prototypes, the scores of `losses.SwappedPrediction`.

    Embeddings and prototypes are L2-normalised whenever they are used, so no step of an optimiser can
    take the prototypes in use off the unit sphere. (SwAV's code writes normalised prototypes back before
    each step, so its steps differ where gradients point away from the sphere.) A zero embedding has score
    0 everywhere.

    In the first `frozen_steps` training calls no gradient reaches the prototypes, since early on they
    would all fall together. The number of training calls is a variable, saved with the weights.

    Args:
        count: number of prototypes, a positive integer (SwAV: 3,000 on ImageNet).
        frozen_steps: training calls without a gradient for the prototypes, an integer from 0. Defaults
            to 0; SwAV freezes them in the first epoch, so the number of batches in one.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: embeddings `(…, features)`, with or without an axis of views.
        training: whether the call counts among the first `frozen_steps`, and may be one of them.

    Returns:
        Scores `(…, count)` in [−1, 1].

    Raises:
        ValueError: if `count` is not a positive integer or `frozen_steps` not an integer from 0; if the
            inputs' last axis has no static length.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> scores = ksm.layers.Prototypes(10)(np.ones((4, 2, 8), "float32"))
    >>> scores.shape, bool(np.abs(scores).max() <= 1.001)
    (TensorShape([4, 2, 10]), True)

    Reference:
        Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        NeurIPS 2020, Sec. 3.1 and App. A. https://arxiv.org/abs/2006.09882
    """

    def __init__(self, count: int, frozen_steps: int = 0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.count = arguments.count("count", count)
        self.frozen_steps = arguments.count("frozen_steps", frozen_steps, least=0)

    def build(self, input_shape):
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                "`inputs` must be embeddings (…, features), with a static number of features. "
                f"Received: shape={tuple(input_shape)}"
            )
        self.prototypes = self.add_weight(
            name="prototypes",
            shape=(input_shape[-1], self.count),
            # Normal components: directions uniform on the sphere.
            initializer=keras.initializers.RandomNormal(stddev=1.0),
            dtype="float64" if self.compute_dtype == "float64" else "float32",
            autocast=False,
        )
        self.steps = self.add_weight(
            name="steps",
            shape=(),
            initializer="zeros",
            dtype="int64",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.built = True

    def call(self, inputs, training=None):
        prototypes = tf.convert_to_tensor(self.prototypes)
        if training:
            if self.frozen_steps:
                is_frozen = tf.convert_to_tensor(self.steps) < self.frozen_steps
                prototypes = tf.where(is_frozen, tf.stop_gradient(prototypes), prototypes)
            self.steps.assign(self.steps + 1)
        embeddings = unit_vectors.normalize(tf.cast(inputs, prototypes.dtype))
        directions = unit_vectors.normalize(tf.transpose(prototypes))
        # Norms in full precision, products in the layer's own; one product of matrices for all axes, since
        # a batched one would hold a gradient of the prototypes for each sample.
        return tf.tensordot(
            tf.cast(embeddings, self.compute_dtype),
            tf.cast(directions, self.compute_dtype),
            axes=[[-1], [1]],
        )

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.count)

    def get_config(self):
        return {**super().get_config(), "count": self.count, "frozen_steps": self.frozen_steps}
