"""Random states saved with a layer or model, so that a resumed run draws what an uninterrupted one would.

Keras saves weights, and not the states of seed generators: after loading, dropout and augmentation
would start again from the seed.
"""

import keras
import tensorflow as tf


class SavedRandomState(keras.layers.Layer):
    """A layer or model whose seed generators' states are saved and loaded with its weights."""

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for name, state in _named_states(self):
            store[name] = state.numpy()

    def load_own_variables(self, store):
        saved = {key: store[key] for key in list(store.keys())}
        for name, state in _named_states(self):
            if name in saved:
                state.assign(saved[name])
        super().load_own_variables(
            {key: value for key, value in saved.items() if not key.startswith("seed_state_")}
        )


def is_seed(variable) -> bool:
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return variable.name == "seed_generator_state"


def _named_states(layer):
    states = [v for v in layer.variables if is_seed(v)]
    return [(f"seed_state_{i}", state) for i, state in enumerate(states)]


def fold_in(state: tf.Tensor, index: "int | tf.Tensor") -> tf.Tensor:
    """A seed generator's state for the index-th of many tasks: each draws from a stream of its own."""
    state_dtype = state.dtype
    # Without the sign: XLA and TensorFlow's own kernels draw different bits from negative seeds.
    state = tf.bitwise.bitwise_and(tf.cast(state, tf.int32), 2**31 - 1)
    folded = tf.random.experimental.stateless_fold_in(state, index)
    folded = tf.bitwise.bitwise_and(folded, 2**31 - 1)
    # A pair of new numbers: folding alone leaves the index in the second word, which a generator counts
    # up, so that one task would draw what the next one drew before.
    words = tf.random.stateless_uniform(
        [2], folded, minval=0, maxval=2**31 - 1, dtype=tf.int32, alg="philox"
    )
    return tf.cast(words, state_dtype)
