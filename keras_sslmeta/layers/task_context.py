"""`TaskContext` and `FiLM`: what CAVIA adapts, and how a network hears of it."""

import keras

from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class TaskContext(keras.layers.Layer):
    """Context parameters: numbers that are the same for all samples of a task.

    One trainable vector, zeros at the start, given out once for each sample. `keras_sslmeta.CAVIA` adapts it
    to each task, and nothing else.

    Args:
        size: how many numbers.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: samples, `(batch, …)`, for their number alone.

    Returns:
        `(batch, size)`.

    Raises:
        ValueError: if `size` is not a positive integer.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> x = keras.Input((1,))
    >>> with_context = keras.layers.Concatenate()([x, ksm.layers.TaskContext(5)(x)])
    >>> with_context.shape
    (None, 6)

    Reference:
        Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning", ICML 2019,
        section 3.1. https://arxiv.org/abs/1810.03642
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = arguments.count("size", size)

    def build(self, input_shape):
        self.context = self.add_weight(shape=(self.size,), initializer="zeros", name="context")

    def call(self, inputs):
        count = keras.ops.shape(inputs)[0]
        return keras.ops.broadcast_to(
            keras.ops.cast(self.context, self.compute_dtype), (count, self.size)
        )

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs.shape[0], self.size), dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class FiLM(keras.layers.Layer):
    """Feature-wise linear modulation: channels scaled and shifted by functions of a context.

    ```
    y = (1 + γ(c)) · x + β(c)
    ```

    with γ and β one dense layer each. Without a bias, a context of zeros changes nothing.

    Args:
        use_bias: whether γ and β have a bias. Defaults to True.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: `[x, c]`: features `(batch, …, channels)` and contexts `(batch, size)`.

    Returns:
        As x.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> images = keras.Input((28, 28, 1))
    >>> context = ksm.layers.TaskContext(100)(images)
    >>> x = keras.layers.Conv2D(32, 3, padding="same")(images)
    >>> ksm.layers.FiLM()([x, context]).shape
    (None, 28, 28, 32)

    Reference:
        Perez, Strub, de Vries, Dumoulin, Courville, "FiLM: Visual Reasoning with a General Conditioning
        Layer", AAAI 2018, Eq. 2; as CAVIA uses it for images, section 5.2 there.
    """

    def __init__(self, use_bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.use_bias = use_bias

    def build(self, input_shape):
        channels, dtype = input_shape[0][-1], self.dtype_policy
        self.scale = keras.layers.Dense(channels, use_bias=self.use_bias, dtype=dtype, name="scale")
        self.shift = keras.layers.Dense(channels, use_bias=self.use_bias, dtype=dtype, name="shift")
        self.scale.build(input_shape[1])
        self.shift.build(input_shape[1])

    def call(self, inputs):
        x, context = inputs
        shape = (-1, *([1] * (len(x.shape) - 2)), x.shape[-1])
        scale, shift = (
            keras.ops.reshape(layer(context), shape) for layer in (self.scale, self.shift)
        )
        return (1 + scale) * x + shift

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs[0].shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "use_bias": self.use_bias}
