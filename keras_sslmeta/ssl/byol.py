"""BYOL (Grill et al. 2020)."""

from typing import Any

import keras

from keras_sslmeta.layers.predictor_head import PredictorHead
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.negative_cosine import NegativeCosine
from keras_sslmeta.ssl.momentum import MomentumModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class BYOL(MomentumModel):
    """Bootstrap your own latent: predict what a momentum network makes of the other view.

    ```
    loss = 2 − 2 cos(p₁, t₂) + 2 − 2 cos(p₂, t₁)
    ```

    with p the predictions and t the projections of the momentum network (`BYOLLoss`; of more than two views,
    the mean over pairs).

    **When to choose it**: where negatives hurt, since many samples are alike, and for batches down to
    256; it is robust to the choice of augmentations. There is nothing in the loss against collapse:
    predictor, momentum network and batch normalisation in the heads keep it away. If the loss falls to 0
    and `feature_std` too, raise the momentum, lower the learning rate, and see that the predictor trains.
    One step costs SimCLR's and a forward pass on both views; memory, the weights once more.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            the paper's: a hidden layer of 4,096 with BatchNorm, and 256 dimensions.
        predictor: a Keras layer or model, `(n, dim) → (n, dim)`. Defaults to None, the paper's, as the
            projector. `keras.layers.Identity()` leaves it out.
        momentum: m, a number from 0 to 1, or a schedule by step. Defaults to 0.996, where the paper's
            schedule begins: `keras_sslmeta.optimizers.CosineSchedule(0.996, 1.0, steps)`.
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
    >>> model = ksm.BYOL(
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
        Grill, Strub, Altché, Tallec, Richemond, et al., "Bootstrap Your Own Latent: A New Approach to
        Self-Supervised Learning", NeurIPS 2020, Eq. 2. https://arxiv.org/abs/2006.07733
    """

    def __init__(
        self,
        encoder,
        augmentation=None,
        projector=None,
        predictor=None,
        momentum: Any = 0.996,
        views: int = 2,
        **kwargs,
    ):
        super().__init__(encoder, augmentation, projector, predictor, momentum, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The sum of both directions' squared distances."""
        return BYOLLoss()

    def default_projector(self) -> keras.layers.Layer:
        """The paper's: 4,096, then 256."""
        return ProjectionHead(
            256,
            hidden_dim=4096,
            batch_normalization=True,
            output_normalization=False,
            name="projector",
        )

    def default_predictor(self) -> keras.layers.Layer:
        """The paper's: 4,096, then 256."""
        return PredictorHead(4096, name="predictor")


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class BYOLLoss(NegativeCosine):
    """Of unit vectors, twice the squared distance, mean over views: 4 − 4 cos, the sum of two directions."""

    def __init__(self, reduction="sum_over_batch_size", name: str = "byol", dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true, y_pred):
        return 4 + 4 * super().call(y_true, y_pred)
