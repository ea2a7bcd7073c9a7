"""Which pairs of rows and keys count, and how much: rules that are evaluated tile by tile.

A rule gives each pair a log-weight: 0 leaves it as it is, −inf leaves it out, log w lets it count w
times. Log-weights of several rules add up. Rules know rows and keys by tensors of one entry a row and
one a key, so nothing of the size of the similarity matrix is ever stored.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf


@dataclasses.dataclass
class Rule:
    """Log-weights ``(rows, keys)`` of a tile by ``log_weights(similarity, of_rows, of_keys)``.

    `similarity` is the tile of similarities, −inf where a pair is left out already. `of_rows` and
    `of_keys` are lists of tensors with one entry a row and one a key.
    """

    log_weights: Callable[[tf.Tensor, list[tf.Tensor], list[tf.Tensor]], tf.Tensor]
    of_rows: list[tf.Tensor]
    of_keys: list[tf.Tensor]


class Selection:
    """Several rules, and a factor on the similarities.

    Args:
        rules: the `Rule`s.
        unit: what a similarity of the walk is multiplied by to be the similarity that rules see (the
            temperature).
        exponent: what similarities are multiplied by in the sums, e.g. 0 to add up the weights alone.
    """

    def __init__(self, rules, unit: float = 1.0, exponent: float = 1.0):
        self.rules, self.unit, self.exponent = list(rules), unit, exponent

    def with_exponent(self, exponent: float) -> "Selection":
        return Selection(self.rules, self.unit, exponent)

    def log_weights(self, tile, of_rows, of_keys):
        similarity = tile * self.unit
        total = tf.zeros_like(tile)
        for rule, a, b in zip(self.rules, of_rows, of_keys, strict=True):
            total += tf.stop_gradient(rule.log_weights(similarity, a, b))
        return total

    def apply(self, tile, of_rows, of_keys):
        """The tile with the factor on its similarities and the log-weights added."""
        weights = self.log_weights(tf.stop_gradient(tile), of_rows, of_keys)
        if self.exponent != 1:
            left_out = tf.math.is_inf(tile)
            scaled = tf.where(left_out, tf.zeros_like(tile), tile) * self.exponent
            tile = tf.where(left_out, tile, scaled)
        return tile + weights

    def apply_to_all(self, matrix):
        """The same for the whole matrix."""
        of_rows = [rule.of_rows for rule in self.rules]
        return self.apply(matrix, of_rows, [rule.of_keys for rule in self.rules])
