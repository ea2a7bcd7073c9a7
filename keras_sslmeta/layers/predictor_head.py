"""`PredictorHead`: from projections to what they predict, of as many dimensions."""

import keras

from keras_sslmeta.layers.projection_head import ProjectionHead


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class PredictorHead(keras.layers.Layer):
    """Multi-layer perceptron that gives as many dimensions as it gets: a predictor.

    Dense – BatchNorm – ReLU, then a Dense layer to the dimensions of the input, as in BYOL, SimSiam and
    NNCLR. BatchNorm is synchronised over replicas.

    Args:
        hidden_dim: width of the hidden layer. Defaults to 4096 (BYOL; SimSiam has 512).
        batch_normalization: whether the hidden layer has BatchNorm. Defaults to True.
        output_normalization: whether the last layer has: True, False or `"plain"`, without scale and
            shift (MoCo v3). Defaults to False.
        output_bias: whether the last layer has a bias, where no BatchNorm follows it. Defaults to True.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: `(…, dim)`.
        training: whether BatchNorm uses the statistics of the batch.

    Returns:
        `(…, dim)`.

    Raises:
        ValueError: if `hidden_dim` is not a positive integer, or `output_normalization` none of its values.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> ksm.layers.PredictorHead(64)(np.zeros((4, 16), "float32")).shape
    TensorShape([4, 16])

    Reference:
        Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, App. J. https://arxiv.org/abs/2006.07733
    """

    def __init__(
        self,
        hidden_dim: int = 4096,
        batch_normalization: bool = True,
        output_normalization: bool | str = False,
        output_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.batch_normalization = batch_normalization
        self.output_normalization = output_normalization
        self.output_bias = bool(output_bias)
        self._head(1)  # Refuses what cannot be.

    def _head(self, dim):
        return ProjectionHead(
            dim,
            hidden_dim=self.hidden_dim,
            batch_normalization=self.batch_normalization,
            output_normalization=self.output_normalization,
            output_bias=self.output_bias,
            dtype=self.dtype_policy,
            name="head",
        )

    def build(self, input_shape):
        self.head = self._head(int(input_shape[-1]))
        self.head.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        return self.head(inputs, training=training)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "batch_normalization": self.batch_normalization,
            "output_normalization": self.output_normalization,
            "output_bias": self.output_bias,
        }
