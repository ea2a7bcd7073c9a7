"""`PredictionModel`: what methods share that predict the embedding of one view from another."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import view_axis
from keras_sslmeta.ssl.two_view import TwoViewModel, built_on
from keras_sslmeta.ssl.two_view_inputs import check_layers


class PredictionModel(TwoViewModel):
    """Parent of the methods that predict the embedding of one view from another, which gets no gradient.

    ```
    p_v = predictor(projector(encoder(view v)))      t_v = target of view v, without gradient
    loss = mean of loss(t_u, p_v) over all views u ≠ v
    ```

    The target is the projection itself, as in SimSiam; a method that has another writes `targets_of`. The
    compiled loss gets crossed stacks `(batch, V·(V − 1), dim)` of targets as `y_true` and of predictions as
    `y_pred`; a method that compares them otherwise writes `compute_loss`, with `split` to tell them apart.

    Args:
        encoder, augmentation, projector: as in `TwoViewModel`.
        predictor: a Keras layer or model, `(n, dim) → (n, dim)`, of the projector's dimensions;
            `keras.layers.Identity()` for none. Defaults to None, the method's own.
        views, micro_batch_size: as in `TwoViewModel`.
        **kwargs: of `keras.Model`.

    Returns:
        `call`: the prediction of each view and then the target of each, `(batch, 2 · views, dim)`.

    Raises:
        ValueError: as in `TwoViewModel`; if `predictor` is not a layer, or gives other dimensions than the
            projector.
    """

    def __init__(
        self, encoder, augmentation=None, projector=None, predictor=None, views: int = 2, **kwargs
    ):
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        check_layers(predictor=predictor)
        self.predictor = self.default_predictor() if predictor is None else predictor

    def default_predictor(self) -> keras.layers.Layer:
        """The predictor of the paper, used where the constructor is given none."""
        return keras.layers.Identity(name="predictor")

    def build_heads(self, features):
        dim = super().build_heads(features)
        predicted = built_on(self.predictor, dim)
        if predicted != dim:
            raise ValueError(
                "`predictor` must give as many dimensions as `projector`, whose outputs it predicts. "
                f"Received: {predicted} and {dim} dimensions"
            )
        return dim

    def call(self, inputs, training=None):
        views = self.views_of(inputs)
        count, samples = view_axis.count(views), view_axis.merge(views)
        projections = self.projector(self.encode(samples))
        predictions = self.predictor(projections)
        targets = tf.cast(self.targets_of(samples, projections), predictions.dtype)
        both = [view_axis.split(z, count) for z in (predictions, tf.stop_gradient(targets))]
        return tf.concat(both, axis=1)

    def targets_of(self, samples, projections: tf.Tensor) -> tf.Tensor:
        """The target of each view, `(n, dim)`.

        Args:
            samples: the views, `(n, …)`, without an axis of their own.
            projections: `(n, dim)`.
        """
        return projections

    @staticmethod
    def split(outputs: tf.Tensor) -> "tuple[tf.Tensor, tf.Tensor]":
        """What `call` gives, as predictions and targets `(batch, views, dim)`."""
        predictions, targets = tf.split(outputs, 2, axis=1)
        return predictions, targets

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`, of crossed targets and predictions."""
        predictions, targets = self.split(y_pred)
        targets, predictions = view_axis.crossed(targets, predictions)
        return super().compute_loss(x, targets, predictions, sample_weight, training)

    def get_config(self):
        predictor = keras.saving.serialize_keras_object(self.predictor)
        return {**super().get_config(), "predictor": predictor}
