"""`MomentumCopy`: a network at a moving average of its weights, the target of MoCo, BYOL, DINO and PsCo."""

from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import random_state
from keras_sslmeta.mechanisms.state_recorder import holds


class MomentumCopy(keras.layers.Layer):
    """The function of another network, at weights that follow those of the network slowly.

    ```
    w̄ ← m · w̄ + (1 − m) · w        by `update(m)`, once a training step
    ```

    It holds the averages w̄ alone, and calls the network with them in place of its weights w. So it works
    for any built layer or model, needs no clone, and is in the same mode (frozen layers, say) as the
    network is. The averages begin equal to the weights, get no gradient, are the same on every replica,
    and are saved with the model that holds this layer. Of weights in half precision they are float32.

    **What is averaged**: all weights that layers made to be trained, also those that are frozen now: the
    averages of weights that were never trained stay equal to them, to the bit. Weights that are loaded into
    the network afterwards leave the averages where they were: load first. **What is not**: the rest is the
    network's own, as it is at the time of the call. The moving statistics of batch normalisation are thus
    those of the network, as if they were copied after every step (the authors' code of PsCo does that). In
    training, batch normalisation uses the statistics of the batch that the copy sees, as in MoCo and BYOL,
    and these move nothing. Dropout draws on from the network's random state.

    Losses that layers add (activity regularisers) are those of the network's own call: none is added here.

    Args:
        network: a built `keras.layers.Layer`, such as a `keras.Model`. It belongs to its owner: this layer
            neither tracks nor saves it.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: of the network.
        training: whether the network is in training mode.

    Returns:
        The network's outputs at the averages, without gradient.

    Raises:
        ValueError: if `network` is not a layer, or not built.

    Example:

    >>> import keras, numpy as np
    >>> network = keras.layers.Dense(1, kernel_initializer="zeros")
    >>> network.build((None, 1))
    >>> copy = MomentumCopy(network)
    >>> network.set_weights([np.ones((1, 1)), np.zeros(1)])
    >>> x = np.ones((1, 1), "float32")
    >>> outputs = []
    >>> for _ in range(3):
    ...     outputs.append(float(copy(x)[0, 0]))
    ...     copy.update(0.5)
    >>> outputs
    [0.0, 0.5, 0.75]

    Reference:
        He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
        CVPR 2020, Eq. 2. https://arxiv.org/abs/1911.05722
    """

    def __init__(self, network: keras.layers.Layer, **kwargs):
        _check(network)
        super().__init__(dtype=network.dtype_policy, autocast=False, **kwargs)
        weights = _weights(network)
        # In a function: Keras would track the network as a part of this layer, and save it twice.
        self._followed = lambda: (network, weights)
        self.averages = [
            self.add_weight(
                name=f"average_{i}",
                shape=weight.shape,
                # The value when Keras asks: within a symbolic build, the weight has none yet.
                initializer=_ValueOf(weight),
                dtype="float32" if weight.dtype in ("float16", "bfloat16") else weight.dtype,
                trainable=False,
                autocast=False,
                # Every replica assigns the same values.
                aggregation="only_first_replica",
            )
            for i, weight in enumerate(weights)
        ]
        self.built = True

    def call(self, inputs, training=None):
        network, weights = self._followed()
        averages = [tf.convert_to_tensor(average) for average in self.averages]
        # The rest as it is here: this scope hides one that is around it.
        rest = [v for v in network.variables if not holds(weights, v)]
        values = [tf.convert_to_tensor(v) for v in rest]
        seeds = [v for v in rest if random_state.is_seed(v)]
        mapping = [*zip(weights, averages, strict=True), *zip(rest, values, strict=True)]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            outputs = network(inputs, training=training)
            drawn = [scope.get_current_value(seed) for seed in seeds]
        for seed, state in zip(seeds, drawn, strict=True):
            if state is not None:
                seed.assign(state)
        return keras.tree.map_structure(tf.stop_gradient, outputs)

    def update(self, momentum: Any, when: "tf.Tensor | bool" = True) -> None:
        """Moves the averages towards the network's weights: within the training step, after the optimizer.

        Args:
            momentum: m, a number from 0 to 1, or a scalar tensor where it follows a schedule.
            when: whether they move at all, a scalar.
        """
        for average, weight in zip(self.averages, self._followed()[1], strict=True):
            before = tf.convert_to_tensor(average)
            now = tf.cast(tf.convert_to_tensor(weight), before.dtype)
            # As an increment, which is exactly zero where the two are equal.
            change = tf.cast(1 - momentum, before.dtype) * (now - before)
            average.assign(before + (change if when is True else tf.where(when, change, 0)))


class _ValueOf(keras.initializers.Initializer):
    """The value of a variable."""

    def __init__(self, variable):
        self.variable = variable

    def __call__(self, shape, dtype=None):
        return tf.cast(tf.convert_to_tensor(self.variable.value), dtype)


def _weights(network):
    """Each weight that was made to be trained, frozen or not, once."""
    weights = {
        id(weight): weight
        for layer in network._flatten_layers()
        for weight in layer._trainable_variables
    }
    return list(weights.values())


def _check(network):
    if not isinstance(network, keras.layers.Layer):
        raise ValueError(f"`network` must be a Keras layer or model. Received: {network!r}")
    if not network.built:
        raise ValueError(
            "`network` must be built before it is copied: call it once, or `network.build(shape)`. "
            f"Received: {network!r}"
        )
