"""ANIL (Raghu, Raghu, Bengio and Vinyals 2020)."""

import keras

from keras_sslmeta.mechanisms.model_head import in_head
from keras_sslmeta.meta.adapting import AdaptingModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class ANIL(AdaptingModel):
    r"""ANIL, almost no inner loop: MAML whose inner steps change the head alone.

    With the body's weights w and the head's weights θ,

    ```
    θ_{k+1} = θ_k − α ∇_θ L_support(w, θ_k)
    ```

    and the meta-gradient of the queries' loss goes to both w and θ, through all inner steps.

    **When to choose it**: where MAML's gain comes from good features rather than from changing them, which
    is what its authors found on Omniglot and mini-ImageNet: as accurate there, at a fraction of the inner
    steps' cost, since no inner gradient runs through the body. Not where tasks need other features
    (`BOIL`).

    Args:
        model: any `keras.Model`, trained in place.
        adapted: a function from a variable to whether it is of the head. Defaults to None: the weights of
            the last layer that has some. With all variables this is `MAML`.
        **kwargs: of `MAML`: `inner_steps`, `inner_learning_rate`, `second_order`, …

    Returns:
        As `MAML`.

    Raises:
        ValueError: as `MAML`.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> network = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(40, "relu"), keras.layers.Dense(1, name="head")]
    ... )
    >>> anil = ksm.ANIL(network, inner_steps=5)
    >>> anil.compile(keras.optimizers.Adam(1e-3), loss="mse")
    >>> history = anil.fit(ksm.data.sinusoids(seed=0).batch(25), steps_per_epoch=2, verbose=0)

    Reference:
        Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the
        Effectiveness of MAML", ICLR 2020, section 4. https://arxiv.org/abs/1909.09157
    """

    def __init__(self, model, adapted=None, **kwargs):
        super().__init__(model, adapted=adapted, **kwargs)

    def is_adapted(self):
        return in_head(self.model) if self.adapted is None else self.adapted
