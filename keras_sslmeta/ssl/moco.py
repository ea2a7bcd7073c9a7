"""MoCo v2 (He et al. 2020, Chen et al. 2020)."""

from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.losses.info_nce import InfoNCE
from keras_sslmeta.mechanisms import arguments, cross_replica, view_axis
from keras_sslmeta.ssl.momentum import MomentumModel
from keras_sslmeta.ssl.queued import Queued


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class MoCo(Queued, MomentumModel):
    """Momentum contrast: find one's own key among thousands of earlier ones.

    View 1 of a sample gives a query q, and view 2 a key k by the momentum network; the negatives are the
    keys of earlier batches, in a queue, and no others:

    ```
    loss = InfoNCE(q; k, queue)        then k enters the queue, and the oldest keys leave it
    ```

    **Batch normalisation** lets a key tell by its batch which query it belongs to. So keys are shuffled over
    the replicas before they are encoded, and sorted again (`shuffle`). On one replica that cannot help: use
    normalisation of another kind, or check that the loss does not fall much faster than the probe rises.

    **When to choose it**: for many negatives with small batches, from 32 on. Negatives keep it from
    collapsing. Keys that change fast are the danger: where the loss oscillates, raise the momentum. One
    step costs SimCLR's on one view and a forward pass on the other, about two thirds of it; memory, the
    weights once more and the queue.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: views come ready-made, `(batch, views, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None, v2's:
            Dense, ReLU, Dense to 128 dimensions.
        momentum: m, a number from 0 to 1, or a schedule by step. Defaults to 0.999 (the paper).
        queue_size: number of keys in the queue, at least the global batch. Defaults to 65,536 (the paper).
        shuffle: whether keys are shuffled over replicas to be encoded; with a `micro_batch_size` they are
            not. Defaults to True (the paper).
        **kwargs: `micro_batch_size` of `TwoViewModel`, and those of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, 2, …)`.
        training: whether the networks are in training mode.

    Returns:
        `call`: queries and keys `(batch, 2, dim)`. `predict`: features `(samples, features)` of plain
        samples. `evaluate`: the loss on views, against the queue as training left it.

    Raises:
        ValueError: as in `TwoViewModel`; if `momentum` or `queue_size` is not as above; if there are other
            than two views; if a batch holds more samples than the queue. Under XLA, Keras's default on a GPU,
            a batch whose size is not known beforehand is not refused: its last `queue_size` keys are kept.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32)])
    >>> model = ksm.MoCo(
    ...     encoder,
    ...     augmentation=keras.layers.RandomTranslation(0.2, 0.2),
    ...     projector=ksm.layers.ProjectionHead(16),
    ...     queue_size=128,
    ... )
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 32)

    Reference:
        He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
        CVPR 2020, Algorithm 1. https://arxiv.org/abs/1911.05722
        Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020.
        https://arxiv.org/abs/2003.04297
    """

    def __init__(
        self,
        encoder,
        augmentation=None,
        projector=None,
        momentum: Any = 0.999,
        queue_size: int = 65536,
        shuffle: bool = True,
        **kwargs,
    ):
        if kwargs.get("predictor") is not None:
            raise ValueError(
                "MoCo has no predictor; MoCoV3 has one. "
                f"Received: predictor={kwargs['predictor']!r}"
            )
        super().__init__(encoder, augmentation, projector, momentum=momentum, **kwargs)
        view_axis.require_to_make(self, 2)
        self.queue_size = arguments.count("queue_size", queue_size)
        self.shuffle = bool(shuffle)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """InfoNCE against the queue alone, at v2's temperature."""
        return InfoNCE(temperature=0.2, in_batch_negatives=False)

    def call(self, inputs, training=None):
        of_queries, of_keys = view_axis.both(self, self.views_of(inputs))
        queries = self.projector(self.encode(of_queries))
        if training and self.shuffle and self.micro_batch_size is None:
            of_keys, order = cross_replica.shuffled(of_keys, self._step())
            keys = cross_replica.sorted_again(self.targets_of(of_keys, None), order)
        else:
            keys = self.targets_of(of_keys, None)
        return tf.stack([queries, tf.stop_gradient(tf.cast(keys, queries.dtype))], axis=1)

    def _step(self):
        """What the order follows from, the same on every replica."""
        optimizer = getattr(self, "optimizer", None)
        return 0 if optimizer is None else optimizer.iterations

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`; in training, the queue takes in the keys afterwards."""
        queries, keys = tf.unstack(y_pred, axis=1)
        known = {"keys": keys, "memory": self.queue(keys, training=training)}
        return self.loss_of_pairs([(known, queries)], sample_weight)

    def get_config(self):
        config = {**super().get_config(), "shuffle": self.shuffle}
        del config["views"], config["predictor"]  # Always two, and none.
        return config
