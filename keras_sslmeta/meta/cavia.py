"""CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson 2019)."""

import dataclasses

import keras
import tensorflow as tf

from keras_sslmeta.layers.task_context import TaskContext
from keras_sslmeta.meta.adapting import AdaptingModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class CAVIA(AdaptingModel):
    r"""CAVIA: MAML whose inner steps change a few context parameters, and no weight.

    With the weights θ, shared by all tasks, and the context parameters φ of `layers.TaskContext`,

    ```
    φ_0 = 0          φ_{k+1} = φ_k − α ∇_φ L_support(θ, φ_k)
    ```

    and θ is meta-learnt by the gradient of the queries' loss, through all inner steps. φ starts from zero in
    every task, and is not learnt.

    **When to choose it**: where a task is a few numbers (an amplitude and a phase, a style, a patient): what
    was adapted is small enough to look at, to store for each user, and less prone to overfitting; rates
    matter less than MAML's, since the network learns the context's scale. The model says where the
    context enters: concatenated to an input, or through `layers.FiLM`.

    Args:
        model: a `keras.Model` with a `layers.TaskContext` in it, trained in place.
        inner_steps: number of inner steps, from 0. Defaults to 2 (the paper, mini-ImageNet; sinusoids 1).
        inner_learning_rate: α. Defaults to 1.0 (the paper).
        **kwargs: of `MAML`; not `adapted`.

    Returns:
        As `MAML`.

    Raises:
        ValueError: as `MAML`; if the model has no `TaskContext`.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> x = keras.Input((1,))
    >>> y = keras.layers.Concatenate()([x, ksm.layers.TaskContext(5)(x)])
    >>> y = keras.layers.Dense(1)(keras.layers.Dense(40, "relu")(y))
    >>> cavia = ksm.CAVIA(keras.Model(x, y), inner_steps=1)
    >>> cavia.compile(keras.optimizers.Adam(1e-3), loss="mse")
    >>> history = cavia.fit(ksm.data.sinusoids(seed=0).batch(25), steps_per_epoch=2, verbose=0)

    Reference:
        Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning", ICML 2019,
        Eq. 2 and 3. https://arxiv.org/abs/1810.03642
    """

    def __init__(self, model, inner_steps: int = 2, inner_learning_rate: float = 1.0, **kwargs):
        if "adapted" in kwargs:
            raise ValueError(
                "`adapted` must be left out: CAVIA adapts the weights of `layers.TaskContext`. "
                f"Received: adapted={kwargs['adapted']!r}"
            )
        super().__init__(
            model, inner_steps=inner_steps, inner_learning_rate=inner_learning_rate, **kwargs
        )

    def is_adapted(self):
        ids = {
            id(layer.context)
            for layer in self.model._flatten_layers()
            if isinstance(layer, TaskContext)
        }
        if not ids:
            raise ValueError(
                "`model` must have context parameters, which is what CAVIA adapts: put a "
                "`keras_sslmeta.layers.TaskContext` in it. Received: a model without"
            )
        return lambda v: id(v) in ids

    def start_of(self, start, weights, steps):
        return dataclasses.replace(start, adapted=[tf.zeros_like(w) for w in start.adapted])

    def get_config(self):
        config = super().get_config()
        del config["adapted"]
        return config
