"""SimSiam (Chen and He 2021)."""

import keras

from keras_sslmeta.layers.predictor_head import PredictorHead
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.negative_cosine import NegativeCosine
from keras_sslmeta.ssl.prediction import PredictionModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class SimSiam(PredictionModel):
    """SimSiam: predict the projection of one view from the other, and stop the gradient at the target.

    ```
    loss = − ½ cos(p₁, stop z₂) − ½ cos(p₂, stop z₁)
    ```

    with z the projections and p the predictions: `keras_sslmeta.losses.NegativeCosine()`.

    **When to choose it**: for small batches, and where memory is short: there are no negatives, no queue
    and no momentum network. Predictor and stop-gradient are all that stands against collapse. If the loss
    falls to −1 within an epoch and `feature_std` to 0, it has collapsed: look whether the predictor
    trains, at its own learning rate without decay (the paper), and lower the learning rate. One step
    costs what SimCLR's does.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            the paper's: two hidden layers of 2,048, 2,048 dimensions, BatchNorm after each Dense
            layer, after the last without scale and shift.
        predictor: a Keras layer or model, `(n, dim) → (n, dim)`. Defaults to None, the paper's: a hidden
            layer of 512 with BatchNorm. `keras.layers.Identity()` leaves it out, and the model collapses.
        views: number of views that `augmentation` makes. Defaults to 2.
        **kwargs: `micro_batch_size` of `TwoViewModel`, and those of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, views, …)`.
        training: whether the networks are in training mode.

    Returns:
        `call`: the prediction of each view, and then the target of each, `(batch, 2 · views, dim)`.
        `predict`: features `(samples, features)` of plain samples. `evaluate`: the loss on views.

    Raises:
        ValueError: as in `TwoViewModel`; if `predictor` gives other dimensions than `projector`.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32)])
    >>> model = ksm.SimSiam(
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
        Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021, Eq. 1 to 4.
        https://arxiv.org/abs/2011.10566
    """

    def __init__(
        self, encoder, augmentation=None, projector=None, predictor=None, views: int = 2, **kwargs
    ):
        super().__init__(encoder, augmentation, projector, predictor, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The negative cosine."""
        return NegativeCosine()

    def default_projector(self) -> keras.layers.Layer:
        """The paper's three layers of 2,048."""
        return ProjectionHead(
            2048,
            hidden_dim=2048,
            hidden_layers=2,
            batch_normalization=True,
            output_normalization="plain",
            name="projector",
        )

    def default_predictor(self) -> keras.layers.Layer:
        """The paper's bottleneck of 512."""
        return PredictorHead(512, name="predictor")
