"""What a model that overrides `compile` needs so that loading compiles it too."""

import keras


class CustomCompile(keras.Model):
    """A model whose `compile` has defaults of its own: Keras would skip it on loading."""

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)
