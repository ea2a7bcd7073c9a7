"""What a model that holds other objects (models, losses, functions) needs to come back from its config."""

import keras


class NestedConfig(keras.Model):
    """A model whose `get_config` serialises the objects it holds."""

    @classmethod
    def from_config(cls, config):
        return cls(
            **{
                key: keras.saving.deserialize_keras_object(value)
                if isinstance(value, (dict, list))
                else value
                for key, value in config.items()
            }
        )
