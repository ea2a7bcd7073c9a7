"""MoCo v3 (Chen, Xie and He 2021)."""

from typing import Any

import keras

from keras_sslmeta.layers.predictor_head import PredictorHead
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.info_nce import InfoNCE
from keras_sslmeta.mechanisms import view_axis
from keras_sslmeta.ssl.momentum import MomentumModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class MoCoV3(MomentumModel):
    """Momentum contrast without a queue: predictions of one view against all momentum keys of the other.

    ```
    loss = 2T · [ InfoNCE(p₁; k₂) + InfoNCE(p₂; k₁) ]
    ```

    with p the predictions, k the projections of the momentum network, and as negatives the other keys of the
    global batch (of more than two views, twice the mean over ordered pairs). T is the compiled loss's
    temperature; for a loss without one, the factor is 1.

    **When to choose it**: for vision transformers, and for large batches, 1,024 or more over all
    replicas. Negatives keep it from collapsing; transformers can still be unstable, which freezing the
    patch embedding helps against (the paper). One step costs SimCLR's and a forward pass on both views;
    memory, the weights once more.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            the paper's for transformers: two hidden layers of 4,096 and 256 dimensions, BatchNorm after
            each Dense layer, after the last without scale and shift (the authors' code).
        predictor: a Keras layer or model, `(n, dim) → (n, dim)`. Defaults to None, the paper's: a hidden
            layer of 4,096, normalised like the projector. `keras.layers.Identity()` leaves it out.
        momentum: m, a number from 0 to 1, or a schedule by step. Defaults to 0.99, the paper's,
            where the authors' schedule begins: `keras_sslmeta.optimizers.CosineSchedule(0.99, 1.0, steps)`.
        views: number of views that `augmentation` makes. Defaults to 2.
        **kwargs: `micro_batch_size` of `TwoViewModel`, and those of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, views, …)`.
        training: whether the networks are in training mode.

    Returns:
        `call`: the prediction of each view, and then the target of each, `(batch, 2 · views, dim)`.
        `predict`: features `(samples, features)` of plain samples. `evaluate`: the loss on views.

    Raises:
        ValueError: as in `TwoViewModel`; if `predictor` gives other dimensions than `projector`, or
            `momentum` is not as above.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32)])
    >>> model = ksm.MoCoV3(
    ...     encoder,
    ...     augmentation=keras.layers.RandomTranslation(0.2, 0.2),
    ...     projector=ksm.layers.ProjectionHead(16),
    ...     predictor=ksm.layers.ProjectionHead(16, 8),
    ... )
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 32)

    Reference:
        Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021,
        Algorithm 1. https://arxiv.org/abs/2104.02057
    """

    def __init__(
        self,
        encoder,
        augmentation=None,
        projector=None,
        predictor=None,
        momentum: Any = 0.99,
        views: int = 2,
        **kwargs,
    ):
        super().__init__(encoder, augmentation, projector, predictor, momentum, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """InfoNCE in the batch, at the paper's temperature for transformers (1.0 for ResNet-50)."""
        return InfoNCE(temperature=0.2)

    def default_projector(self) -> keras.layers.Layer:
        """The paper's for transformers: 4,096, 4,096, then 256."""
        return ProjectionHead(
            256,
            hidden_dim=4096,
            hidden_layers=2,
            batch_normalization=True,
            output_normalization="plain",
            name="projector",
        )

    def default_predictor(self) -> keras.layers.Layer:
        """The paper's: 4,096, then 256."""
        return PredictorHead(4096, output_normalization="plain", name="predictor")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`, of each prediction with the keys of every other view."""
        targets, predictions = view_axis.crossed(*reversed(self.split(y_pred)))
        temperature = getattr(self.loss, "temperature", 0.5)
        return self.loss_of_pairs(
            [(targets[:, i], predictions[:, i]) for i in range(targets.shape[1])],
            sample_weight,
            factor=2 * 2 * temperature,
        )
