"""`Centering`: the centre of DINO's teacher (Caron et al. 2021)."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, cross_replica


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class Centering(keras.layers.Layer):
    """Subtracts a moving mean of earlier batches, so that no output of a teacher can dominate.

    ```
    outputs = inputs − c            c ← momentum · c + (1 − momentum) · mean(inputs)     in training
    ```

    The centre c that is subtracted is the one from before this batch, as in DINO, whose loss comes first
    and update second. The mean goes over all samples and views of the **global** batch, so the centre is
    the same on all replicas. c starts at zero, is kept in float32 (float64 under a float64 policy) and
    gets no gradient; the inputs get theirs.

    Args:
        momentum: in [0, 1]. Defaults to 0.9 (DINO).
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: the teacher's logits `(…, outputs)`, with or without an axis of views.
        training: whether the centre moves.

    Returns:
        The centred logits, of the same shape; `y_true` of `losses.SelfDistillation`.

    Raises:
        ValueError: if `momentum` is not a number from 0 to 1; if the inputs' last axis has no static length.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> centering = ksm.layers.Centering(momentum=0.5)
    >>> ones = np.ones((4, 2, 1), "float32")
    >>> [float(centering(ones, training=True)[0, 0, 0]) for _ in range(3)]
    [1.0, 0.5, 0.25]

    Reference:
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, Eq. 4.
        https://arxiv.org/abs/2104.14294
    """

    def __init__(self, momentum: float = 0.9, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if not arguments.is_number(momentum) or not 0 <= momentum <= 1:
            raise ValueError(
                f"`momentum` must be a number from 0 to 1. Received: momentum={momentum!r}"
            )
        self.momentum = float(momentum)

    def build(self, input_shape):
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                "`inputs` must be logits (…, outputs), with a static number of outputs. "
                f"Received: shape={tuple(input_shape)}"
            )
        self.center = self.add_weight(
            name="center",
            shape=(input_shape[-1],),
            initializer="zeros",
            dtype="float64" if self.compute_dtype == "float64" else "float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )
        self.built = True

    def call(self, inputs, training=None):
        center = tf.convert_to_tensor(self.center)
        outputs = tf.cast(inputs, center.dtype) - center
        if training:
            self._move(center, tf.stop_gradient(outputs))
        return tf.cast(outputs, self.compute_dtype)

    def _move(self, center, outputs):
        # The mean of what is left over is how far the mean is from the centre; nothing moves it where
        # there is nothing at all.
        axes = list(range(outputs.shape.rank - 1))
        rows = tf.cast(tf.reduce_prod(tf.shape(outputs)[:-1]), center.dtype)
        distance = tf.math.divide_no_nan(
            cross_replica.total(tf.reduce_sum(outputs, axis=axes)), cross_replica.total(rows)
        )
        self.center.assign(center + (1 - self.momentum) * distance)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}
