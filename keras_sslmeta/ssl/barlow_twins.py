"""Barlow Twins (Zbontar et al. 2021)."""

import keras

from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.barlow_twins import BarlowTwins as BarlowTwinsLoss
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class BarlowTwins(TwoViewModel):
    """Barlow Twins: the dimensions of two views' projections agree each with itself and with no other.

    The loss is `keras_sslmeta.losses.BarlowTwins()`, of the cross-correlation matrix of the projections over
    the global batch.

    **When to choose it**: without negatives, momentum network or stop-gradient, for batches from 128 on;
    it wants wide projections, thousands of dimensions. Its off-diagonal term keeps all dimensions from
    saying the same; where they do so nevertheless (RankMe falls), raise λ or the batch. One step costs
    SimCLR's, and the wide head: with 8,192 dimensions and a small encoder, most of it.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            the paper's: two hidden layers of 8,192 with BatchNorm, and 8,192 dimensions without bias.
        views: number of views that `augmentation` makes. Defaults to 2.
        **kwargs: `micro_batch_size` of `TwoViewModel`, and those of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, views, …)`.
        training: whether the networks are in training mode.

    Returns:
        `call`: projections `(batch, views, dim)`. `predict`: features `(samples, features)` of plain
        samples. `evaluate`: the loss on views.

    Raises:
        ValueError: as in `TwoViewModel`.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32)])
    >>> model = ksm.BarlowTwins(
    ...     encoder,
    ...     augmentation=keras.layers.RandomTranslation(0.2, 0.2),
    ...     projector=ksm.layers.ProjectionHead(16),
    ... )
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 32)

    Reference:
        Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
        ICML 2021, Eq. 1, Sec. 2.2. https://arxiv.org/abs/2103.03230
    """

    def __init__(self, encoder, augmentation=None, projector=None, views: int = 2, **kwargs):
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The paper's loss, λ 0.005."""
        return BarlowTwinsLoss()

    def default_projector(self) -> keras.layers.Layer:
        """The paper's three layers of 8,192."""
        return ProjectionHead(
            8192,
            hidden_dim=8192,
            hidden_layers=2,
            batch_normalization=True,
            output_normalization=False,
            output_bias=False,
            name="projector",
        )
