"""`ScheduledWeightDecay`: weight decay that changes from step to step, and that spares some variables."""

import keras

from keras_sslmeta.mechanisms import arguments

_Schedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable(package="keras_sslmeta.optimizers")
class ScheduledWeightDecay(keras.optimizers.Optimizer):
    """Makes an optimiser of Keras take a schedule as its `weight_decay`, and leave out some variables.

    ```
    w ← w − learning_rate(k) · weight_decay(k) · w        before the step, unless excluded
    ```

    `optimizers.AdamW`, `SGD` and `LARS` are made with it. For another one, derive from both, this first:
    `class Lion(ScheduledWeightDecay, keras.optimizers.Lion)`, registered with Keras if it is to be saved.
    All else is as Keras has it, and so are the values where the decay is a number and nothing is excluded.

    **The schedule** is evaluated within the compiled step, so each step has its own value under
    `steps_per_execution` too, and training that is resumed goes on where it was. Its k is that of Keras's
    learning-rate schedules: the batches so far, also those that are only accumulated. The attribute
    `weight_decay` is the value now. A number that replaces it later acts in steps that are compiled later.

    **Exclusion** is decided when the optimiser is built, at the first step: the model need not be built
    before. It is saved and loaded with the model. `exclude_from_weight_decay` of Keras works besides, but
    its choice is lost on saving (Keras 3.15), and its names match anywhere in a path: "bias" also
    excludes everything in a layer called "debiased".

    Args:
        *args: of the optimiser of Keras.
        weight_decay: one of Keras's arguments: a number from 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or None for none.
        exclude: a predicate on variables (`keras.Variable`, with `path`, `name` and `shape`) that says
            which do not decay, such as `optimizers.is_bias_or_norm` or `lambda v: "head" in v.path`. Defaults
            to None: all decay (Keras). A function registered with
            `keras.saving.register_keras_serializable` is loaded again; a lambda is not.
        **kwargs: of the optimiser of Keras.

    Raises:
        ValueError: if `weight_decay` or `exclude` is not as above.

    Example:

    >>> import keras
    >>> from keras_sslmeta.optimizers import CosineSchedule, ScheduledWeightDecay
    >>> class Lion(ScheduledWeightDecay, keras.optimizers.Lion):
    ...     pass
    >>> optimizer = Lion(1e-4, weight_decay=CosineSchedule(0.04, 0.4, steps=1000))
    >>> round(float(optimizer.weight_decay), 4)
    0.04

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
        https://arxiv.org/abs/1711.05101
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, Sec. 3.2 (a
        decay that rises). https://arxiv.org/abs/2104.14294
    """

    def __init__(self, *args, exclude=None, **kwargs):
        if exclude is not None and not callable(exclude):
            raise ValueError(
                "`exclude` must be None or a function of a variable, such as "
                f"`optimizers.is_bias_or_norm`. Received: exclude={exclude!r}"
            )
        super().__init__(*args, **kwargs)
        self.exclude = exclude

    @property
    def weight_decay(self):
        """The weight decay at the present step."""
        if isinstance(self._weight_decay, _Schedule):
            # Not `iterations`, which counts steps after accumulation: the learning rate's schedule does not.
            return self._weight_decay(self._iterations)
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value):
        if not (value is None or isinstance(value, _Schedule)):
            if not arguments.is_number(value) or value < 0:
                raise ValueError(
                    "`weight_decay` must be a number from 0, a LearningRateSchedule, or None. "
                    f"Received: weight_decay={value!r}"
                )
            value = float(value)
        self._weight_decay = value

    def build(self, variables):
        super().build(variables)
        # By index: the steps of TensorFlow see its own variables, which have no `path`.
        self._excluded = frozenset(
            i for i, variable in enumerate(variables) if self.exclude and self.exclude(variable)
        )

    def _is_excluded(self, variable):
        return self._get_variable_index(variable) in self._excluded

    def _use_weight_decay(self, variable):
        return not self._is_excluded(variable) and super()._use_weight_decay(variable)

    def get_config(self):
        return {
            **super().get_config(),
            "weight_decay": keras.saving.serialize_keras_object(self._weight_decay),
            "exclude": keras.saving.serialize_keras_object(self.exclude),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("weight_decay", "exclude"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(
                    config[name], custom_objects=custom_objects
                )
        return super().from_config(config, custom_objects=custom_objects)
