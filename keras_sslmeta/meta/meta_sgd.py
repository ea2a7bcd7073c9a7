"""Meta-SGD (Li, Zhou, Chen and Li 2017)."""

import dataclasses

import keras

from keras_sslmeta.meta.adapting import AdaptingModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class MetaSGD(AdaptingModel):
    r"""Meta-SGD: MAML that learns a learning rate for every single weight.

    ```
    θ_{k+1} = θ_k − α ∘ ∇ L_support(θ_k)
    ```

    where α has the shape of θ, and is meta-learnt with it by the gradient of the queries' loss. A rate may
    become negative: direction is learnt as well as length.

    **When to choose it**: in place of MAML where one step should do and a good inner rate is not known. It
    has twice MAML's weights, and costs as much per step.

    Args:
        model: any `keras.Model`, trained in place.
        inner_steps: number of inner steps, from 0. Defaults to 1 (the paper).
        rate_initializer: a Keras initializer of the rates. Defaults to None:
            `keras.initializers.RandomUniform(0.005, 0.1)` (the paper's range; on a mean over N classes its
            equal is N times larger, see `MAML`). `keras.initializers.Constant(0.4)` starts all alike.
        second_order: whether the meta-gradient of θ goes through the inner gradients. That of the rates does
            not need to. Defaults to True.
        **kwargs: of `MAML`; not `inner_learning_rate`. With an `inner_optimizer` the learnt rates take the
            place of its own.

    Attributes:
        rates: the learnt rates, a variable for each adapted one; `rate.trainable = False`, before `compile`,
            keeps one as it is.

    Returns:
        As `MAML`.

    Raises:
        ValueError: as `MAML`.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(40, "relu"), keras.layers.Dense(1)])
    >>> meta_sgd = ksm.MetaSGD(network)
    >>> meta_sgd.compile(keras.optimizers.Adam(1e-3), loss="mse")
    >>> history = meta_sgd.fit(ksm.data.sinusoids(seed=0).batch(25), steps_per_epoch=2, verbose=0)
    >>> [tuple(rate.shape) for rate in meta_sgd.rates]
    [(1, 40), (40,), (40, 1), (1,)]

    Reference:
        Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017, Eq. 3 and
        Algorithm 1. https://arxiv.org/abs/1707.09835
    """

    owns_weights_for_each = True

    def __init__(self, model, inner_steps: int = 1, rate_initializer=None, **kwargs):
        if "inner_learning_rate" in kwargs:
            raise ValueError(
                "`inner_learning_rate` must be left out: MetaSGD learns it. Start from one by "
                "`rate_initializer=keras.initializers.Constant(…)`. Received: "
                f"inner_learning_rate={kwargs['inner_learning_rate']!r}"
            )
        self.rate_initializer = (
            None if rate_initializer is None else keras.initializers.get(rate_initializer)
        )
        super().__init__(model, inner_steps=inner_steps, **kwargs)

    def build_method(self):
        super().build_method()
        initializer = self.rate_initializer or keras.initializers.RandomUniform(0.005, 0.1)
        self.rates = [
            self.add_weight(
                shape=v.shape,
                initializer=initializer.clone(),
                dtype=v.dtype,
                name=f"rate_{v.name}_{i}",
            )
            for i, v in enumerate(self._network().adapted)
        ]

    def method_weights(self):
        return self.rates

    def start_of(self, start, weights, steps):
        return dataclasses.replace(start, rates=weights)

    def get_config(self):
        config = super().get_config()
        del config["inner_learning_rate"]
        initializer = keras.saving.serialize_keras_object(self.rate_initializer)
        return {**config, "rate_initializer": initializer}
