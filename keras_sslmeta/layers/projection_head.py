"""`ProjectionHead`: the small network between an encoder and a contrastive loss."""

import keras


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class ProjectionHead(keras.layers.Layer):
    """Multi-layer perceptron whose output, and not the encoder's, the loss compares.

    `hidden_layers` times Dense – (BatchNorm) – ReLU, then a Dense layer without activation. SimCLR's head
    is the default: one hidden layer as wide as its input, and 128 outputs. With
    `batch_normalization=True` each Dense layer, the last one too, is followed by a BatchNorm that is
    synchronised over replicas, and has no bias of its own (SimCLR's published code, and v2). Of the last
    one, `output_normalization` can say otherwise: `False` for none (BYOL, Barlow Twins, VICReg),
    `"plain"` for one without scale and shift (SimSiam, MoCo v3).

    Args:
        output_dim: dimension of the projections. Defaults to 128 (SimCLR).
        hidden_dim: width of the hidden layers. Defaults to None, the width of the input (SimCLR's 2,048
            for ResNet-50).
        hidden_layers: their number. Defaults to 1 (SimCLR; v2's deeper head has 2).
        batch_normalization: whether Dense layers are followed by BatchNorm. Defaults to False.
        output_normalization: whether the last one is: True, False or `"plain"`. Defaults to None, as
            `batch_normalization`.
        output_bias: whether the last Dense layer has a bias, where no BatchNorm follows it. Defaults to True
            (BYOL's and MoCo v2's papers; not SimCLR, Barlow Twins, VICReg).
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: `(…, features)`, with or without an axis of views.
        training: whether BatchNorm uses the statistics of the batch.

    Returns:
        `(…, output_dim)`.

    Raises:
        ValueError: if a dimension or the number of layers is not a positive integer (0 hidden layers
            are allowed: a linear head), or `output_normalization` none of its values.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> ksm.layers.ProjectionHead(output_dim=64)(np.zeros((4, 2, 32), "float32")).shape
    TensorShape([4, 2, 64])

    Reference:
        Chen et al. 2020, Sec. 4.2; SimCLR v2: Chen et al. 2020, arXiv 2006.10029, Sec. 2.
    """

    def __init__(
        self,
        output_dim: int = 128,
        hidden_dim: int | None = None,
        hidden_layers: int = 1,
        batch_normalization: bool = False,
        output_normalization: bool | str | None = None,
        output_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, least in (
            ("output_dim", output_dim, 1),
            ("hidden_dim", 1 if hidden_dim is None else hidden_dim, 1),
            ("hidden_layers", hidden_layers, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` must be an integer ≥ {least}. Received: {value!r}")
        if output_normalization not in (None, True, False, "plain"):
            raise ValueError(
                '`output_normalization` must be None, True, False or "plain". '
                f"Received: {output_normalization!r}"
            )
        self.output_dim = output_dim
        self.hidden_dim = hidden_dim
        self.hidden_layers = hidden_layers
        self.batch_normalization = batch_normalization
        self.output_normalization = output_normalization
        self.output_bias = bool(output_bias)

    def build(self, input_shape):
        features = input_shape[-1]
        widths = [self.hidden_dim or features] * self.hidden_layers + [self.output_dim]
        last = self.output_normalization
        normalizations: list[bool | str] = [self.batch_normalization] * self.hidden_layers
        normalizations.append(self.batch_normalization if last is None else last)
        blocks = []
        for i, (width, normalization) in enumerate(zip(widths, normalizations, strict=True)):
            has_bias = not normalization and (i < self.hidden_layers or self.output_bias)
            blocks.append(keras.layers.Dense(width, use_bias=has_bias, dtype=self.dtype_policy))
            if normalization:
                has_weights = normalization != "plain"
                blocks.append(
                    keras.layers.BatchNormalization(
                        center=has_weights,
                        scale=has_weights,
                        synchronized=True,
                        dtype=self.dtype_policy,
                    )
                )
            if i < self.hidden_layers:
                blocks.append(keras.layers.ReLU(dtype=self.dtype_policy))
        self.blocks = blocks
        for block in blocks:
            block.build((*input_shape[:-1], features))
            features = getattr(block, "units", features)
        self.built = True

    def call(self, inputs, training=None):
        x = inputs
        for block in self.blocks:
            if isinstance(block, keras.layers.BatchNormalization):
                x = block(x, training=training)
            else:
                x = block(x)
        return x

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.output_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "hidden_dim": self.hidden_dim,
            "hidden_layers": self.hidden_layers,
            "batch_normalization": self.batch_normalization,
            "output_normalization": self.output_normalization,
            "output_bias": self.output_bias,
        }
