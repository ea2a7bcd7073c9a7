"""BOIL (Oh, Yoo, Kim and Yun 2021)."""

import keras

from keras_sslmeta.mechanisms.model_head import in_head
from keras_sslmeta.meta.adapting import AdaptingModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class BOIL(AdaptingModel):
    r"""BOIL, body only update in the inner loop: MAML whose inner steps leave the head as it is.

    With the head's weights w and the body's weights θ,

    ```
    θ_{k+1} = θ_k − α ∇_θ L_support(θ_k, w)
    ```

    The head's inner rate is 0, and it is meta-learnt with the body.

    **When to choose it**: where tasks need other features than those that were meta-trained, such as classes
    of another domain: a fixed head makes the body move samples to it. An inner step costs as much as
    MAML's.

    Args:
        model: any `keras.Model`, trained in place.
        adapted: a function from a variable to whether it is of the body. Defaults to None: all but the
            weights of the last layer that has some.
        **kwargs: of `MAML`: `inner_steps`, `inner_learning_rate`, `second_order`, …

    Returns:
        As `MAML`.

    Raises:
        ValueError: as `MAML`; if the model has but one layer with weights.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> network = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(40, "relu"), keras.layers.Dense(1, name="head")]
    ... )
    >>> boil = ksm.BOIL(network, inner_steps=1)
    >>> boil.compile(keras.optimizers.Adam(1e-3), loss="mse")
    >>> history = boil.fit(ksm.data.sinusoids(seed=0).batch(25), steps_per_epoch=2, verbose=0)

    Reference:
        Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021, section 3.
        https://arxiv.org/abs/2008.08882
    """

    def __init__(self, model, adapted=None, **kwargs):
        super().__init__(model, adapted=adapted, **kwargs)

    def is_adapted(self):
        if self.adapted is not None:
            return self.adapted
        head = in_head(self.model)
        return lambda v: not head(v)
