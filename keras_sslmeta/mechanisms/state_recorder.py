"""Which variables a pass through layers and losses reads, and which it assigns to."""

from typing import Any

import keras
import tensorflow as tf


class StateRecorder(keras.StatelessScope):
    """A scope that gives zeros for every variable, and notes what is read and what is assigned to.

    For a pass that is traced and never run.

    Attributes:
        read: the variables that were read.
        assigned: those that were assigned to.
    """

    def __init__(self):
        super().__init__(collect_losses=True)
        self.read: list[Any] = []
        self.assigned: list[Any] = []

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None:
            self.read.append(variable)
            value = tf.zeros(variable.shape, variable.dtype)
            self.state_mapping[id(variable)] = value
        return value

    def add_update(self, update):
        if not holds(self.assigned, update[0]):
            self.assigned.append(update[0])
        super().add_update(update)


def holds(variables, variable) -> bool:
    """Whether this very variable is among them; `in` would compare values."""
    return any(v is variable for v in variables)
