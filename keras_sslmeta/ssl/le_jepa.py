"""LeJEPA (Balestriero and LeCun 2025)."""

import keras
import tensorflow as tf

from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.le_jepa import LeJEPA as LeJEPALoss
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class LeJEPA(TwoViewModel):
    """LeJEPA: views agree, and their projections form a standard normal cloud.

    The loss is `keras_sslmeta.losses.LeJEPA()`: (1 − λ) times the squared distance of the views from
    their mean, and λ times SIGReg, on random directions that are other ones in every step, the same on
    every replica and after a resume.

    **When to choose it**: for one knob, λ, and no stop-gradient, momentum network, queue or schedule. Any
    number of views; the paper takes two large and several small crops. SIGReg stands against collapse, of
    the whole or of dimensions: where RankMe falls, raise λ. One step costs SimCLR's, and samples ×
    directions × 17 cosines.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            the authors': two hidden layers of 2,048 with BatchNorm, and 64 dimensions, the best of 64 to
            1,024 in the paper's Table 1d (16 in the authors' minimal example).
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
    >>> model = ksm.LeJEPA(
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
        Balestriero, LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the
        Heuristics", 2025, Sec. 5 and Algorithm 2. https://arxiv.org/abs/2511.08544
    """

    def __init__(self, encoder, augmentation=None, projector=None, views: int = 2, **kwargs):
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The paper's loss, λ 0.05."""
        return LeJEPALoss()

    def default_projector(self) -> keras.layers.Layer:
        """Three layers, the last of 64."""
        return ProjectionHead(
            64,
            hidden_dim=2048,
            hidden_layers=2,
            batch_normalization=True,
            output_normalization=False,
            name="projector",
        )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`, on directions of this step; labels are ignored."""
        step = self.optimizer.iterations if self.optimizer is not None else 0
        # A constant where the model is evaluated, so that two evaluations are equal.
        step = tf.convert_to_tensor(step) if training else tf.zeros([], tf.int64)
        return super().compute_loss(x, step, y_pred, sample_weight, training)
