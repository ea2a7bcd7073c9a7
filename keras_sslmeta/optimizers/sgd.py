"""`SGD`: Keras's, with a weight decay that may follow a schedule."""

import keras

from keras_sslmeta.optimizers.scheduled_weight_decay import ScheduledWeightDecay


@keras.saving.register_keras_serializable(package="keras_sslmeta.optimizers")
class SGD(ScheduledWeightDecay, keras.optimizers.SGD):
    """`keras.optimizers.SGD` whose `weight_decay` may be a schedule, and which can exclude variables.

    ```
    w ← w − learning_rate(k) · weight_decay(k) · w        then the step, with or without momentum
    ```

    With a number and without `exclude` it is Keras's own, step for step. As there, the decay is
    **decoupled**: it does not pass through the momentum, as that of PyTorch's SGD, an L2 penalty, does.
    With momentum m, a decay of λ in PyTorch acts as strongly as one of about λ / (1 − m) here. What k
    counts, and when exclusion is decided: see `ScheduledWeightDecay`.

    Args:
        learning_rate: a number, a `LearningRateSchedule` or a callable. Defaults to 0.01 (Keras).
        momentum: in [0, 1]. Defaults to 0.0 (Keras).
        nesterov: whether momentum is Nesterov's. Defaults to False (Keras).
        weight_decay: a number from 0, a `keras.optimizers.schedules.LearningRateSchedule`, or None for
            none. Defaults to None (Keras).
        exclude: a predicate on variables that says which do not decay, such as
            `optimizers.is_bias_or_norm`. Defaults to None: all decay (Keras).
        **kwargs: of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if `weight_decay` or `exclude` is not as above, and as Keras's own does.

    Example:

    >>> import keras
    >>> from keras_sslmeta.optimizers import SGD, CosineSchedule
    >>> kernel = keras.Variable([[1.0]], name="kernel")
    >>> optimizer = SGD(0.5, weight_decay=CosineSchedule(0.0, 1.0, steps=2))
    >>> for _ in range(3):
    ...     optimizer.apply([[[0.0]]], [kernel])
    ...     print(float(kernel[0, 0]))
    1.0
    0.75
    0.375

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, Algorithm 1.
        https://arxiv.org/abs/1711.05101
    """

    def __init__(
        self,
        learning_rate=0.01,
        momentum=0.0,
        nesterov=False,
        weight_decay=None,
        exclude=None,
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            exclude=exclude,
            **kwargs,
        )
