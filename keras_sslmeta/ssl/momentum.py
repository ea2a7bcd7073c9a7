"""`MomentumModel`: what methods share whose targets come from a momentum network."""

from typing import Any

import keras

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.mechanisms.momentum_copy import MomentumCopy
from keras_sslmeta.ssl.prediction import PredictionModel


class MomentumModel(PredictionModel):
    """Parent of the methods whose targets come from encoder and projector at averaged weights.

    ```
    t_v = projector̄(encoder̄(view v))        w̄ ← m · w̄ + (1 − m) · w after each step of the optimizer
    ```

    The averages start at the weights, get no gradient, are equal on all replicas and are saved. With
    `gradient_accumulation_steps` they move when the weights do, once in so many steps. Batch normalisation
    is not averaged: in training the target normalises by its own batch, in evaluation by the
    network's moving statistics.

    Args:
        encoder, augmentation, projector, predictor: as in `PredictionModel`.
        momentum: m, a number from 0 to 1, or a `keras.optimizers.schedules.LearningRateSchedule` that
            gives it by the number of batches, as for learning rates.
        views, micro_batch_size: as in `TwoViewModel`.
        **kwargs: of `keras.Model`.

    Attributes:
        momentum_encoder, momentum_projector: the networks at averaged weights, layers that can be called.

    Raises:
        ValueError: as in `PredictionModel`; if `momentum` is not as above.
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
        super().__init__(encoder, augmentation, projector, predictor, views, **kwargs)
        self.momentum = _checked(momentum)

    def build_heads(self, features):
        dim = super().build_heads(features)
        self.momentum_encoder = MomentumCopy(self.encoder, name="momentum_encoder")
        self.momentum_projector = MomentumCopy(self.projector, name="momentum_projector")
        return dim

    def targets_of(self, samples, projections):
        return self.momentum_projector(self.momentum_encoder(samples))

    def after_step(self, moved):
        """The averages follow the weights."""
        momentum = self.momentum
        if isinstance(momentum, keras.optimizers.schedules.LearningRateSchedule):
            optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            # Of the step that was just taken, counted as Keras counts for learning rates.
            momentum = momentum(optimizer._iterations - 1)
        for copy in (self.momentum_encoder, self.momentum_projector):
            copy.update(momentum, when=moved)

    def get_config(self):
        momentum = self.momentum
        if not isinstance(momentum, float):
            momentum = keras.saving.serialize_keras_object(momentum)
        return {**super().get_config(), "momentum": momentum}


def _checked(momentum):
    if isinstance(momentum, keras.optimizers.schedules.LearningRateSchedule):
        return momentum
    if not arguments.is_number(momentum) or not 0 <= momentum <= 1:
        raise ValueError(
            "`momentum` must be a number from 0 to 1, or a schedule of them by step, a "
            f"keras.optimizers.schedules.LearningRateSchedule. Received: momentum={momentum!r}"
        )
    return float(momentum)
