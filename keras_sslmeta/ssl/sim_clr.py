"""SimCLR (Chen et al. 2020)."""

import keras

from keras_sslmeta.losses.nt_xent import NTXent
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class SimCLR(TwoViewModel):
    """SimCLR: two augmented views of each sample, told from all other samples of the batch.

    `z = projector(encoder(view))`, and the default loss is `NTXent(temperature=0.1)` on the projections,
    over the global batch. The projector is thrown away afterwards: `predict`, `model.encoder` and the
    probes use the encoder's features.

    **When to choose it**: the plain baseline, without momentum network, queue or stop-gradient, and without a
    way to collapse, since the other samples push apart. It lives on negatives: it wants a batch of
    256 or more (any number of replicas counts as one batch here) and strong augmentation.
    One step costs the encoder's forward and backward pass on both views.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views, such as
            `keras_sslmeta.layers.SimCLRAugmentation((32, 32))`, whose `value_range` must be that of the
            images. Defaults to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None:
            `keras_sslmeta.layers.ProjectionHead()`: Dense, ReLU, Dense to 128 dimensions, as in the paper;
            `ProjectionHead(hidden_layers=2, batch_normalization=True)` is SimCLR v2's.
        views: number of views that `augmentation` makes. Defaults to 2 (the paper).
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, views, …)`.
        training: whether encoder and projector are in training mode.

    Returns:
        `call`: projections `(batch, views, dim)`. `predict`: features `(samples, features)` of plain
        samples. `evaluate`: the loss on views; it grows with the batch size, 32 unless given.

    Raises:
        ValueError: if `encoder` is not a model, or its output not one vector a sample; if `projector`
            is not a layer; if plain samples come without an `augmentation`.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32)])
    >>> model = ksm.SimCLR(encoder, augmentation=keras.layers.RandomTranslation(0.2, 0.2))
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 32)

    Reference:
        Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
        Representations", ICML 2020. https://arxiv.org/abs/2002.05709
    """

    def __init__(self, encoder, augmentation=None, projector=None, views: int = 2, **kwargs):
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """NT-Xent at the paper's temperature."""
        return NTXent(temperature=0.1)
