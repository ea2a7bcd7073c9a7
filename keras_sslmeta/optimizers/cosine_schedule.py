"""`CosineSchedule`: from one value to another along half a cosine (BYOL's momentum, DINO's weight decay)."""

import math

import keras

from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.optimizers")
class CosineSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Goes from `start` to `end` in a number of steps, along half a cosine, and stays there.

    ```
    value(k) = end − (end − start) · (cos(π · min(k, steps) / steps) + 1) / 2
    ```

    It rises as well as it falls: `CosineSchedule(0.996, 1.0, steps)` is the momentum of BYOL's target, and
    `CosineSchedule(0.04, 0.4, steps)` DINO's weight decay, for `optimizers.AdamW(weight_decay=…)`. For a
    learning rate, which falls and begins with a warm-up, Keras has `keras.optimizers.schedules.CosineDecay`.

    Args:
        start: the value at step 0, a number.
        end: the value from step `steps` on, a number.
        steps: how many steps it takes, a positive integer: epochs times batches an epoch, however many of
            them `steps_per_execution` runs at once.

    Call arguments:
        step: k, an integer or a scalar tensor of integers.

    Returns:
        The value, a scalar tensor in Keras's `floatx`.

    Raises:
        ValueError: if `start` or `end` is not a finite number, or `steps` not a positive integer.

    Example:

    >>> from keras_sslmeta.optimizers import CosineSchedule
    >>> momentum = CosineSchedule(0.5, 1.0, steps=4)
    >>> [round(float(momentum(k)), 3) for k in range(6)]
    [0.5, 0.573, 0.75, 0.927, 1.0, 1.0]

    Reference:
        Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
        Sec. 3.3 (momentum). https://arxiv.org/abs/2006.07733
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
        Sec. 3.1 (momentum) and 3.2 (weight decay). https://arxiv.org/abs/2104.14294
    """

    def __init__(self, start: float, end: float, steps: int):
        self.start = _number("start", start)
        self.end = _number("end", end)
        self.steps = arguments.count("steps", steps)

    def __call__(self, step):
        k = keras.ops.minimum(keras.ops.cast(step, keras.config.floatx()), self.steps)
        remaining = (keras.ops.cos(math.pi * k / self.steps) + 1) / 2
        return self.end - (self.end - self.start) * remaining

    def get_config(self):
        return {"start": self.start, "end": self.end, "steps": self.steps}


def _number(name, value):
    if not arguments.is_number(value):
        raise ValueError(f"`{name}` must be a finite number. Received: {name}={value!r}")
    return float(value)
