"""`AdamW`: Keras's, with a weight decay that may follow a schedule."""

import keras

from keras_sslmeta.optimizers.scheduled_weight_decay import ScheduledWeightDecay


@keras.saving.register_keras_serializable(package="keras_sslmeta.optimizers")
class AdamW(ScheduledWeightDecay, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` whose `weight_decay` may be a schedule, and which can exclude variables.

    ```
    w ← w − learning_rate(k) · weight_decay(k) · w        then Adam's step
    ```

    With a number and without `exclude` it is Keras's own, step for step. What k counts, and when
    exclusion is decided: see `ScheduledWeightDecay`. DINO trains its vision transformers with
    `AdamW(…, weight_decay=CosineSchedule(0.04, 0.4, steps), exclude=is_bias_or_norm)`.

    Args:
        learning_rate: a number, a `LearningRateSchedule` or a callable. Defaults to 0.001 (Keras).
        weight_decay: a number from 0, or a `keras.optimizers.schedules.LearningRateSchedule`. Defaults
            to 0.004 (Keras).
        beta_1: decay of the mean of gradients. Defaults to 0.9 (Keras).
        beta_2: decay of the mean of their squares. Defaults to 0.999 (Keras).
        epsilon: added to the root. Defaults to 1e-7 (Keras).
        amsgrad: whether the variant AMSGrad is used. Defaults to False (Keras).
        exclude: a predicate on variables that says which do not decay, such as
            `optimizers.is_bias_or_norm`. Defaults to None: all decay (Keras).
        **kwargs: of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if `weight_decay` or `exclude` is not as above, and as Keras's own does.

    Example:

    >>> import keras, numpy as np
    >>> from keras_sslmeta.optimizers import AdamW, CosineSchedule, is_bias_or_norm
    >>> model = keras.Sequential([keras.layers.Dense(1)])
    >>> decay = CosineSchedule(0.04, 0.4, steps=4)
    >>> model.compile(AdamW(1e-3, weight_decay=decay, exclude=is_bias_or_norm), loss="mse")
    >>> history = model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
    >>> round(float(model.optimizer.weight_decay), 2)                       # after two of four steps
    0.22

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, Algorithm 2.
        https://arxiv.org/abs/1711.05101
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, Sec. 3.2.
        https://arxiv.org/abs/2104.14294
    """

    def __init__(
        self,
        learning_rate=0.001,
        weight_decay=0.004,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        amsgrad=False,
        exclude=None,
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            amsgrad=amsgrad,
            exclude=exclude,
            **kwargs,
        )
