"""`LogitScale`: CLIP's learnt temperature (Radford et al. 2021), SigLIP's bias (Zhai et al. 2023)."""

import math

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, unit_vectors


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class LogitScale(keras.layers.Layer):
    r"""Embeddings of two modalities whose dot products are the logits, with a learnt scale and bias.

    ```
    a' = [√t · a/‖a‖, b]       c' = [√t · c/‖c‖, 1]       a' · c' = t · cos(a, c) + b
    ```

    The scale t = exp(log-scale) is learnt as its logarithm, b as it is; without `initial_bias` there is
    no bias and no further column. A loss has no variables, so these live here, and the loss must
    leave the embeddings alone: `CLIP(temperature=1.0, normalize=False)`, or `SigLIP(temperature=1.0,
    bias=0.0, normalize=False)`.

    The log-scale is clipped at ln `max_scale` by a variable's constraint, after each step of the
    optimiser: clipping in the forward pass would take its gradient away at the limit, and with it the
    way back. Optimisers that decay weights should leave both variables out:
    `optimizer.exclude_from_weight_decay(var_names=["log_scale", "bias"])`.

    Args:
        initial_temperature: 1/t at the start, a positive number. Defaults to 0.07 (CLIP; SigLIP 0.1).
        max_scale: the largest t, a positive number, or None for no limit (SigLIP). Defaults to 100
            (CLIP).
        initial_bias: b at the start (SigLIP: −10), or None for no bias. Defaults to None.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: a stack `(batch, 2, dim)` of both modalities, or a list or tuple of two, `(batch, dim)`
            each.

    Returns:
        The same structure; the last axis is longer by one where there is a bias. The values are in
        float32 (float64 under a float64 policy) in mixed precision too, which would round the bias.

    Raises:
        ValueError: if an argument is not as above, if the start is above `max_scale` already, or if the
            inputs are neither a stack of two nor two tensors.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> images, texts = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
    >>> a, b = ksm.layers.LogitScale(initial_temperature=0.1, initial_bias=-10.0)([images, texts])
    >>> cosine = images[0] @ texts[0] / np.linalg.norm(images[0]) / np.linalg.norm(texts[0])
    >>> bool(np.isclose(np.dot(a[0], b[0]), 10 * cosine - 10, atol=1e-4))
    True

    Reference:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
        2021, Sec. 2.5. https://arxiv.org/abs/2103.00020
        Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid Loss for Language Image Pre-Training", ICCV 2023,
        Sec. 3.2. https://arxiv.org/abs/2303.15343
    """

    def __init__(
        self,
        initial_temperature: float = 0.07,
        max_scale: float | None = 100.0,
        initial_bias: float | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.initial_temperature = arguments.positive_number(
            "initial_temperature", initial_temperature
        )
        self.max_scale = (
            None if max_scale is None else arguments.positive_number("max_scale", max_scale)
        )
        if self.max_scale is not None and 1 / self.initial_temperature > self.max_scale * (
            1 + 1e-6
        ):
            raise ValueError(
                "`initial_temperature` must be at least 1/max_scale. Received: "
                f"initial_temperature={initial_temperature!r}, max_scale={max_scale!r}"
            )
        if initial_bias is not None and not arguments.is_number(initial_bias):
            raise ValueError(
                f"`initial_bias` must be a number or None. Received: initial_bias={initial_bias!r}"
            )
        self.initial_bias = None if initial_bias is None else float(initial_bias)

    def build(self, input_shape):
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        self.log_scale = self.add_weight(
            name="log_scale",
            shape=(),
            initializer=keras.initializers.Constant(-math.log(self.initial_temperature)),
            constraint=None if self.max_scale is None else _AtMost(math.log(self.max_scale)),
            dtype=dtype,
            autocast=False,
            # Constraints assign on each replica, the same value.
            aggregation="only_first_replica",
        )
        self.bias = None
        if self.initial_bias is not None:
            self.bias = self.add_weight(
                name="bias",
                shape=(),
                initializer=keras.initializers.Constant(self.initial_bias),
                dtype=dtype,
                autocast=False,
            )
        self.built = True

    def call(self, inputs):
        if isinstance(inputs, (list, tuple)):
            if len(inputs) != 2 or any(len(x.shape) != 2 for x in inputs):
                _refuse([tuple(x.shape) for x in inputs])
            scaled = (self._scaled(x, first=i == 0) for i, x in enumerate(inputs))
            return type(inputs)(scaled)
        if len(inputs.shape) != 3 or inputs.shape[1] != 2:
            _refuse([tuple(inputs.shape)])
        return tf.stack([self._scaled(inputs[:, i], first=i == 0) for i in range(2)], axis=1)

    def _scaled(self, x, first):
        log_scale = tf.convert_to_tensor(self.log_scale)
        x = unit_vectors.normalize(tf.cast(x, log_scale.dtype)) * tf.exp(log_scale / 2)
        if self.bias is None:
            return x
        column = tf.ones_like(x[:, :1])
        return tf.concat([x, column * tf.convert_to_tensor(self.bias) if first else column], axis=1)

    def get_config(self):
        return {
            **super().get_config(),
            "initial_temperature": self.initial_temperature,
            "max_scale": self.max_scale,
            "initial_bias": self.initial_bias,
        }


class _AtMost(keras.constraints.Constraint):
    """Keeps a variable at or below a limit."""

    def __init__(self, limit: float):
        self.limit = limit

    def __call__(self, w):
        return tf.minimum(tf.convert_to_tensor(w), self.limit)


def _refuse(shapes):
    raise ValueError(
        "`inputs` must be a stack of two modalities (batch, 2, dim) or a list of two (batch, dim) "
        f"tensors. Received: shapes={shapes}"
    )
