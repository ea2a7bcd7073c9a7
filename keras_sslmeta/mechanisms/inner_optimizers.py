"""Keras's optimisers as pure functions, for steps that must be differentiated through.

Keras's own keep their state in variables, and `stateless_apply` refuses to run on TensorFlow.
Each here takes the step that Keras's takes, to rounding.
"""

import keras
import tensorflow as tf


class SGD:
    """``θ ← θ − α g``; with momentum ``v ← μ v − α g, θ ← θ + v``, Nesterov's ``θ ← θ + μ v − α g``."""

    def __init__(self, momentum=0.0, nesterov=False):
        self.momentum, self.nesterov = momentum, nesterov

    def start(self, weights):
        """The state before the first step: tensors, zeros."""
        return [tf.zeros_like(w) for w in weights] if self.momentum else []

    def step(self, k, weights, gradients, state, rates):
        """Weights and state after step k; `rates` has a scalar or a tensor for each weight."""
        moves = [-rate * g for rate, g in zip(rates, gradients, strict=True)]
        if self.momentum:
            state = [self.momentum * v + move for v, move in zip(state, moves, strict=True)]
            ahead = [self.momentum * v + move for v, move in zip(state, moves, strict=True)]
            moves = ahead if self.nesterov else state
        return [w + move for w, move in zip(weights, moves, strict=True)], state


class Adam:
    """Kingma and Ba 2015, in the form of Keras: ε outside the bias correction."""

    def __init__(self, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def start(self, weights):
        return [tf.zeros_like(w) for w in [*weights, *weights]]

    def step(self, k, weights, gradients, state, rates):
        after, first, second = [], [], []
        means, squares = state[: len(weights)], state[len(weights) :]
        for w, g, m, v, rate in zip(weights, gradients, means, squares, rates, strict=True):
            t = tf.cast(k + 1, w.dtype)
            m = m + (g - m) * (1 - self.beta_1)
            v = v + (tf.square(g) - v) * (1 - self.beta_2)
            beta_1, beta_2 = tf.cast(self.beta_1, w.dtype), tf.cast(self.beta_2, w.dtype)
            corrected = rate * tf.sqrt(1 - beta_2**t) / (1 - beta_1**t)
            after.append(w - corrected * m / (_root(v) + self.epsilon))
            first.append(m)
            second.append(v)
        return after, first + second


class RMSprop:
    """Hinton's RMSprop, with Keras's ε inside the root; no momentum, not centred."""

    def __init__(self, rho=0.9, epsilon=1e-7):
        self.rho, self.epsilon = rho, epsilon

    def start(self, weights):
        return [tf.zeros_like(w) for w in weights]

    def step(self, k, weights, gradients, state, rates):
        after, squares = [], []
        for w, g, v, rate in zip(weights, gradients, state, rates, strict=True):
            v = self.rho * v + (1 - self.rho) * tf.square(g)
            after.append(w - rate * g / tf.sqrt(v + self.epsilon))
            squares.append(v)
        return after, squares


class Clipped:
    """Another optimiser on clipped gradients, as Keras clips them.

    Args:
        optimizer: the optimiser.
        clipvalue: bound of every entry.
        clipnorm: bound of each tensor's norm.
        global_clipnorm: bound of the norm of all tensors together. One of the three; the others are None.
    """

    def __init__(self, optimizer, clipvalue=None, clipnorm=None, global_clipnorm=None):
        self.optimizer = optimizer
        self.clipvalue, self.clipnorm, self.global_clipnorm = clipvalue, clipnorm, global_clipnorm

    def start(self, weights):
        return self.optimizer.start(weights)

    def step(self, k, weights, gradients, state, rates):
        return self.optimizer.step(k, weights, self._clipped(gradients), state, rates)

    def _clipped(self, gradients):
        if self.clipvalue is not None:
            return [tf.clip_by_value(g, -self.clipvalue, self.clipvalue) for g in gradients]
        squares = [tf.reduce_sum(tf.square(g)) for g in gradients]
        if self.clipnorm is not None:
            return [g * _factor(self.clipnorm, s) for g, s in zip(gradients, squares, strict=True)]
        factor = _factor(self.global_clipnorm, tf.add_n(squares))
        return [g * tf.cast(factor, g.dtype) for g in gradients]


def _factor(bound, square):
    """What brings a norm, given by its square, down to the bound."""
    norm = _root(square)
    bound = tf.cast(bound, norm.dtype)
    return bound / tf.maximum(norm, bound)


def _root(x):
    """The square root, with gradient 0 where x is 0: a weight without gradient stays so, without NaN."""
    positive = x > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, x, tf.ones_like(x))), tf.zeros_like(x))


# Options of Keras's optimisers that inner steps do not have, and the values that say so.
_NEUTRAL = {
    "weight_decay": (None, 0),
    "use_ema": (False,),
    "gradient_accumulation_steps": (None,),
    "loss_scale_factor": (None,),
    "amsgrad": (False,),
    "centered": (False,),
}


def from_keras(optimizer: "keras.optimizers.Optimizer"):
    """A Keras optimiser as `(pure optimiser, learning rate)`.

    Raises:
        ValueError: if it is none of SGD, Adam and RMSprop, or uses an option that the inner loop lacks.
    """
    kinds = (keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.RMSprop)
    if type(optimizer) not in kinds:
        raise ValueError(
            "`inner_optimizer` must be a keras.optimizers.SGD, Adam or RMSprop, or None for SGD at "
            f"`inner_learning_rate`. Received: {optimizer!r}"
        )
    config = optimizer.get_config()
    for option, neutral in _NEUTRAL.items():
        if config.get(option) not in (None, *neutral):
            raise ValueError(
                f"`inner_optimizer` must not use `{option}`, which inner steps do not have. "
                f"Received: {option}={config[option]!r}"
            )
    rate = config["learning_rate"]
    if not isinstance(rate, float):
        raise ValueError(
            "`inner_optimizer` must have a constant learning rate. "
            f"Received: learning_rate={rate!r}"
        )
    pure = _pure(optimizer, config)
    bounds = {name: config.get(name) for name in ("clipvalue", "clipnorm", "global_clipnorm")}
    is_clipped = any(bound is not None for bound in bounds.values())
    return Clipped(pure, **bounds) if is_clipped else pure, rate


def _pure(optimizer, config):
    if isinstance(optimizer, keras.optimizers.Adam):
        return Adam(config["beta_1"], config["beta_2"], config["epsilon"])
    if isinstance(optimizer, keras.optimizers.RMSprop):
        if config["momentum"]:
            raise ValueError(
                "`inner_optimizer` must not use `momentum` in RMSprop. "
                f"Received: momentum={config['momentum']}"
            )
        return RMSprop(config["rho"], config["epsilon"])
    return SGD(config["momentum"], config["nesterov"])
