"""SupCon (Khosla et al. 2020)."""

import keras

from keras_sslmeta.losses.supervised_contrastive import SupervisedContrastive
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class SupCon(TwoViewModel):
    """Supervised contrastive learning: samples of one class belong together, whatever their views.

    SimCLR with labels: the loss is `SupervisedContrastive(temperature=0.1)` on the projections, for which all
    views of all samples of the class in the global batch are positives. Labels are what `fit` gets as `y`,
    integers or strings, one a sample.

    **When to choose it**: where labels are there, to pretrain an encoder that is then probed, searched or
    fine-tuned; it takes many samples of each class in a batch. It does not collapse, since the other classes
    push apart, but within a class all that differs may go: what the labels do not say is not kept. One step
    costs what SimCLR's does.

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
    >>> model = ksm.SupCon(
    ...     encoder,
    ...     augmentation=keras.layers.RandomTranslation(0.2, 0.2),
    ... )
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> labels = np.arange(64) % 4
    >>> history = model.fit(images, labels, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 32)

    Reference:
        Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan, "Supervised Contrastive
        Learning", NeurIPS 2020, Eq. 2. https://arxiv.org/abs/2004.11362
    """

    def __init__(self, encoder, augmentation=None, projector=None, views: int = 2, **kwargs):
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The supervised contrastive loss at the paper's temperature."""
        return SupervisedContrastive(temperature=0.1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`, with labels."""
        if y is None:
            raise ValueError(
                "SupCon needs labels: pass one a sample as `y`, `fit(x, y)`, or a dataset of (x, y). Without "
                "labels, SimCLR is the same method. Received: y=None"
            )
        return super().compute_loss(x, y, y_pred, sample_weight, training)
