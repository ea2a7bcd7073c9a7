"""Random states saved with a layer or model, so that a resumed run draws what an uninterrupted one would.

Keras saves weights, and not the states of seed generators: after loading, dropout and augmentation
would start again from the seed.
"""

import keras


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


def _named_states(layer):
    states = [v for v in layer.variables if v.name == "seed_generator_state"]
    return [(f"seed_state_{i}", state) for i, state in enumerate(states)]
