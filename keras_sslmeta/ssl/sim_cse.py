"""SimCSE (Gao et al. 2021)."""

import keras

from keras_sslmeta.losses.info_nce import InfoNCE
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class SimCSE(TwoViewModel):
    """SimCSE: a sentence against itself, with dropout as the only augmentation.

    The encoder sees every sentence twice in training mode, and its dropout makes two embeddings, which are
    to find each other among all of the global batch, `InfoNCE(temperature=0.05)`. Both get a gradient.

    Supervised SimCSE takes ready-made views: pairs `(batch, 2, …)` of sentences that mean the same, or
    triplets `(batch, 3, …)` with one that contradicts, a hard negative, in third place.

    **When to choose it**: for embeddings of text, or of anything for which no augmentation comes to mind,
    with an encoder that has dropout of about 0.1; pretrained encoders need few steps. Negatives keep it
    from collapsing, but without dropout the two views are the same and nothing is learnt of what to
    ignore. Loss is close to 0 early; judge by a probe. One step costs what SimCLR's does. `evaluate` has
    no dropout: it measures how far apart sentences are.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`, such as token ids to a sentence
            vector; trained in place.
        augmentation: layer, callable or list of one a view, for more than dropout does. Defaults to None:
            each sample twice, as it is.
        projector: a Keras layer or model on the features, which `predict` leaves out (as the paper does
            without supervision). Defaults to None, the paper's: Dense with tanh, of the features' width.
        views: number of views of plain samples. Defaults to 2.
        **kwargs: `micro_batch_size` of `TwoViewModel`, and those of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, views, …)`.
        training: whether encoder and projector are in training mode.

    Returns:
        `call`: projections `(batch, views, dim)`. `predict`: features `(samples, features)` of plain
        samples. `evaluate`: the loss on views.

    Raises:
        ValueError: as in `TwoViewModel`.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential(
    ...     [
    ...         keras.Input((10,), dtype="int32"),
    ...         keras.layers.Embedding(100, 32),
    ...         keras.layers.GlobalAveragePooling1D(),
    ...         keras.layers.Dropout(0.1),
    ...     ]
    ... )
    >>> model = ksm.SimCSE(encoder)
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> tokens = np.random.default_rng(0).integers(100, size=(64, 10))
    >>> history = model.fit(tokens, batch_size=32, verbose=0)
    >>> model.predict(tokens, verbose=0).shape
    (64, 32)

    Reference:
        Gao, Yao, Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", EMNLP 2021, Eq. 4 and 5.
        https://arxiv.org/abs/2104.08821
    """

    def __init__(self, encoder, augmentation=None, projector=None, views: int = 2, **kwargs):
        augmentation = keras.layers.Identity(name="twice") if augmentation is None else augmentation
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        if self.views != 2:
            raise ValueError(
                "`views` must be 2: a third view of a sentence would be its hard negative. Triplets that "
                f"come ready-made, (batch, 3, …), need no argument. Received: views={views}"
            )
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """InfoNCE in the batch, at the paper's temperature."""
        return InfoNCE(temperature=0.05)

    def default_projector(self) -> keras.layers.Layer:
        """Dense with tanh, as wide as the features."""
        return TanhHead(name="projector")


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class TanhHead(keras.layers.Layer):
    """Dense with tanh, of as many dimensions as it gets."""

    def build(self, input_shape):
        self.dense = keras.layers.Dense(input_shape[-1], "tanh", dtype=self.dtype_policy)
        self.dense.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.dense(inputs)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)
