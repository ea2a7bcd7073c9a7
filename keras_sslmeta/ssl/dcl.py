"""DCL (Yeh et al. 2022)."""

import keras

from keras_sslmeta.losses.decoupled_contrastive import DecoupledContrastive
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class DCL(TwoViewModel):
    """Decoupled contrastive learning: SimCLR without the positive in the denominator.

    In NT-Xent the positive weighs on the gradient of its own negatives, and the more so the smaller the batch
    is. The loss here, `DecoupledContrastive(temperature=0.1)`, leaves it out; `compile(loss=
    DecoupledContrastive(weighted=True))` is the paper's DCLW.

    **When to choose it**: in place of SimCLR where batches are small, below 256 or so. It does not collapse,
    since the other samples push apart. One step costs what SimCLR's does.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            SimCLR's: Dense, ReLU, Dense to 128 dimensions.
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
    >>> model = ksm.DCL(
    ...     encoder,
    ...     augmentation=keras.layers.RandomTranslation(0.2, 0.2),
    ... )
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 32)

    Reference:
        Yeh, Hong, Hsu, Liu, Chen, LeCun, "Decoupled Contrastive Learning", ECCV 2022, Eq. 6.
        https://arxiv.org/abs/2110.06848
    """

    def __init__(self, encoder, augmentation=None, projector=None, views: int = 2, **kwargs):
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The decoupled contrastive loss at the paper's temperature."""
        return DecoupledContrastive(temperature=0.1)
