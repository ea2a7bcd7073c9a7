"""NNCLR (Dwibedi et al. 2021)."""

import keras
import tensorflow as tf

from keras_sslmeta.layers.predictor_head import PredictorHead
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.info_nce import InfoNCE
from keras_sslmeta.mechanisms import arguments, nearest, unit_vectors, view_axis
from keras_sslmeta.ssl.prediction import PredictionModel
from keras_sslmeta.ssl.queued import Queued


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class NNCLR(Queued, PredictionModel):
    """Nearest neighbours as positives: the neighbour of one view among earlier samples, and the other view.

    With Q the projections of earlier batches and n_v the one of Q that is nearest to the projection of
    view v,

    ```
    loss = ½ InfoNCE(n₁; p₂) + ½ InfoNCE(n₂; p₁)
    ```

    where each neighbour is to find the prediction of its own sample among those of the global batch. The
    projections of view 1 enter the queue afterwards.

    **When to choose it**: where augmentations are weak or hard to think of, since positives are other
    samples; with random crops alone the paper loses 2.1% of its accuracy, relatively. Negatives keep it
    from collapsing. Early neighbours are wrong ones, so it starts slowly. One step costs SimCLR's, and 2
    · batch · queue · dim multiplications for the neighbours.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            the paper's: two hidden layers of 2,048 and 256 dimensions, BatchNorm after each.
        predictor: a Keras layer or model, `(n, dim) → (n, dim)`. Defaults to None, the paper's: a hidden
            layer of 4,096 with BatchNorm. `keras.layers.Identity()` leaves it out.
        queue_size: number of projections in Q, at least the global batch. Defaults to 98,304 (the paper).
        **kwargs: `micro_batch_size` of `TwoViewModel`, and those of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, 2, …)`.
        training: whether the networks are in training mode.

    Returns:
        `call`: the prediction of each view, and then the target of each, `(batch, 2 · views, dim)`.
        `predict`: features `(samples, features)` of plain samples. `evaluate`: the loss on views.

    Raises:
        ValueError: as in `TwoViewModel`; if `predictor` gives other dimensions than `projector`; if
            `queue_size` is not a positive integer; if there are other than two views; if a batch holds more
            samples than the queue. Under XLA, Keras's default on a GPU, a batch whose size is not known
            beforehand is not refused: its last `queue_size` projections are kept.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32)])
    >>> model = ksm.NNCLR(
    ...     encoder,
    ...     augmentation=keras.layers.RandomTranslation(0.2, 0.2),
    ...     projector=ksm.layers.ProjectionHead(16),
    ...     predictor=ksm.layers.ProjectionHead(16, 8),
    ...     queue_size=128,
    ... )
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 32)

    Reference:
        Dwibedi, Aytar, Tompson, Sermanet, Zisserman, "With a Little Help from My Friends: Nearest-Neighbor
        Contrastive Learning of Visual Representations", ICCV 2021, Eq. 2. https://arxiv.org/abs/2104.14548
    """

    def __init__(
        self,
        encoder,
        augmentation=None,
        projector=None,
        predictor=None,
        queue_size: int = 98304,
        **kwargs,
    ):
        super().__init__(encoder, augmentation, projector, predictor, **kwargs)
        view_axis.require_to_make(self, 2)
        self.queue_size = arguments.count("queue_size", queue_size)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """InfoNCE in the batch, at the paper's temperature."""
        return InfoNCE(temperature=0.1)

    def default_projector(self) -> keras.layers.Layer:
        """The paper's: 2,048, 2,048, then 256."""
        return ProjectionHead(
            256, hidden_dim=2048, hidden_layers=2, batch_normalization=True, name="projector"
        )

    def default_predictor(self) -> keras.layers.Layer:
        """The paper's: 4,096, then 256."""
        return PredictorHead(4096, name="predictor")

    def views_of(self, inputs):
        views = super().views_of(inputs)
        view_axis.require(self, views, 2)
        return views

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`; in training, the queue takes in projections afterwards."""
        predictions, projections = self.split(y_pred)
        held = self.queue(projections[:, 0], training=training)
        unit = unit_vectors.normalize(tf.cast(projections, held.dtype))
        neighbors = [nearest.among(unit[:, view], held) for view in (0, 1)]
        # As a stack of anchors and keys, both of which may have a gradient: neighbours have none.
        pairs = [
            tf.stack([tf.cast(neighbors[v], y_pred.dtype), predictions[:, 1 - v]], axis=1)
            for v in (0, 1)
        ]
        return self.loss_of_pairs([(None, pair) for pair in pairs], sample_weight)

    def get_config(self):
        config = super().get_config()
        del config["views"]  # Always two.
        return config
