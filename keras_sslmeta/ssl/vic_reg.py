"""VICReg (Bardes et al. 2022)."""

import keras

from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.vic_reg import VICReg as VICRegLoss
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class VICReg(TwoViewModel):
    """VICReg: views agree, each dimension varies, and no two say the same.

    The loss is `keras_sslmeta.losses.VICReg()`, on projections that nothing normalises.

    **When to choose it**: where two branches differ (other encoders, other modalities), or to see what each
    term does: invariance, variance and covariance have weights of their own. The variance term is what stands
    against collapse: where `feature_std` falls, raise it. One step costs SimCLR's, and the wide head:
    with 8,192 dimensions and a small encoder, most of it.

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
    >>> model = ksm.VICReg(
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
        Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
        Learning", ICLR 2022, Sec. 4. https://arxiv.org/abs/2105.04906
    """

    def __init__(self, encoder, augmentation=None, projector=None, views: int = 2, **kwargs):
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The paper's loss, weights 25, 25 and 1."""
        return VICRegLoss()

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
