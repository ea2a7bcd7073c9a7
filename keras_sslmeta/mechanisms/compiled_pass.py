"""A compiled model's pass, outputs and loss, as a function of tensors in place of its variables.

What a pass reads and what it assigns to is found by tracing it once: a model knows its own variables, but
not a loss's temperature, nor the seed generator of a function that augments.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import second_derivatives
from keras_sslmeta.mechanisms.state_recorder import StateRecorder, holds


class CompiledPass:
    """Forward pass and compiled loss of a model in training mode.

    Attributes:
        trained: the model's trainable variables.
        hyperparameters: variables that get a gradient.
        moved: the others that a pass assigns to: moving statistics, random states, counters.
        fixed: those that it reads only, and the metrics, whose values are left behind.
        loss_dtype: dtype of the loss.

    Args:
        model: a compiled model.
        hyperparameters: variables that the pass reads.
        batch: `(x, y, sample_weight)`, nests of `tf.TensorSpec`, or of None.

    Raises:
        ValueError: if a hyperparameter is read by nothing, is assigned to or is trained; if the pass assigns
            to trained weights, reads a trainable `tf.Variable`, or its loss is no scalar.
    """

    def __init__(
        self, model: keras.Model, hyperparameters: Sequence, batch: "tuple[Any, Any, Any]"
    ):
        self.model, self.hyperparameters = model, list(hyperparameters)
        recorder = self._recorded(batch)
        self.trained = list(model.trainable_variables)
        _check_hyperparameters(self.hyperparameters, self.trained, recorder)
        for v in self.trained:
            if holds(recorder.assigned, v):
                raise ValueError(
                    "Layers of `model` must not assign to their trainable weights when called, as "
                    "keras.layers.SpectralNormalization does. "
                    f"Received: a model that assigns to {v.path}"
                )
        metrics = list(model.metrics_variables)
        ours = [*self.trained, *self.hyperparameters]
        self.moved = [v for v in recorder.assigned if not holds([*ours, *metrics], v)]
        read = [v for v in recorder.read if not holds(metrics, v)]
        self.fixed = [v for v in [*read, *metrics] if not holds([*ours, *self.moved], v)]

    def __call__(
        self,
        trained: Sequence[tf.Tensor],
        hyperparameters: Sequence[tf.Tensor],
        moved: Sequence[tf.Tensor],
        fixed: "Sequence[tf.Tensor] | None",
        batch: "tuple[Any, Any, Any]",
        training: bool,
        wants_loss: bool = True,
    ) -> "tuple[Any, list[tf.Tensor]]":
        """The loss on a batch, or the outputs, and `moved` afterwards.

        Args:
            trained, hyperparameters, moved, fixed: values for the attributes of the same names; without
                `fixed` those of the variables.
            batch: `(x, y, sample_weight)`, nests of tensors, or of None.
            training: whether the pass is one of training or of evaluation.
            wants_loss: whether the loss is given, or the outputs.
        """
        mapping = [
            *zip(self.trained, trained, strict=True),
            *zip(self.hyperparameters, hyperparameters, strict=True),
            *zip(self.moved, moved, strict=True),
            *([] if fixed is None else zip(self.fixed, fixed, strict=True)),
        ]
        scope = keras.StatelessScope(state_mapping=mapping, collect_losses=True)
        with second_derivatives.exact(), scope:
            result = self._outputs(batch[0], training)
            if wants_loss:
                result = self._loss(batch, result, training)
            moved = [tf.convert_to_tensor(scope.get_current_value(v)) for v in self.moved]
        return result, moved

    def _outputs(self, x, training):
        takes_training = self.model._call_has_training_arg
        return self.model(x, training=training) if takes_training else self.model(x)

    def _loss(self, batch, outputs, training):
        x, y, sample_weight = batch
        # Keras's own step calls it so: a `compute_loss` of the user's may lack `training`.
        loss = self.model._compute_loss(
            x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=training
        )
        return tf.convert_to_tensor(loss)

    def _recorded(self, batch):
        """Traces one pass and runs nothing of it; what is not yet built gets built."""
        found: list[Any] = []

        def one_pass(*batch):
            with tf.GradientTape() as tape, StateRecorder() as recorder:
                outputs = self._outputs(batch[0], training=True)
                loss = self._loss(batch, outputs, training=True)
            # TensorFlow traces once more where variables were made: the last time counts.
            found[:] = [loss, tape.watched_variables(), recorder]

        tf.function(one_pass, autograph=False).get_concrete_function(*batch)
        loss, foreign, recorder = found
        if foreign:
            raise ValueError(
                "What the training reads must be a keras.Variable, or not trainable: a trainable "
                "tf.Variable cannot be replaced in a layer or a loss. "
                f"Received: {', '.join(v.name for v in foreign)}"
            )
        if loss.shape.rank != 0:
            raise ValueError(
                "The model's loss must be one number: leave `reduction` of the loss as it is, or take a "
                f"mean in `compute_loss`. Received: a loss of shape {tuple(loss.shape)}"
            )
        self.loss_dtype = loss.dtype
        return recorder


def _check_hyperparameters(hyperparameters, trained, recorder):
    for v in hyperparameters:
        if holds(trained, v):
            raise ValueError(
                "`hyperparameters` must not be trained by the model: make the variable with "
                "`trainable=False`, or pass its initial value in `weights`. "
                f"Received: {v.path}, a trainable variable of the model"
            )
        if holds(recorder.assigned, v):
            raise ValueError(
                "`hyperparameters` must stay as they are while the model trains. "
                f"Received: {v.path}, which a step of the training assigns to"
            )
        if not holds(recorder.read, v):
            raise ValueError(
                "`hyperparameters` must be read by the training, each time it computes: a layer or loss "
                "that turned the variable into a number when it was made does not look again. "
                f"Received: {v.path}, which nothing reads"
            )
