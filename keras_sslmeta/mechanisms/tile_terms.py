"""How the exponentials of a tile of similarities stay in range, in one of two ways.

* `Bounded`, where the caller knows ``|s_ij| ≤ c`` and exp(±2c) is in range, as for unit vectors at every
  usual temperature: ``exp(s_ij − c)`` neither over- nor underflows, and one exponential a tile serves
  rows, columns and the gradient alike;
* `Unbounded`, for anything else: a running maximum for each row, exact for any size of similarity, at
  the cost of two maxima and a second exponential a tile.

Both are used by a walk in the same order: `start`, then `tile` and `add_rows` (and `add_columns`) tile
by tile, then `log`; for the gradient `prepare`, then `tile` again and the weights.
"""

import tensorflow as tf

from keras_sslmeta.mechanisms import row_blocks

# |s| up to which exp(±2s), and a sum of many of them, are normal numbers of the type.
_BOUNDED = {tf.float32: 40.0, tf.float64: 300.0}


def choose(walk, bound):
    """The terms that suit the bound; the tiles' shift is theirs to set."""
    limit = _BOUNDED[walk.rows.matrix.dtype]
    if bound is not None and bound * 1.001 <= limit:
        # A whole number is exact in every matrix format that accelerators use.
        return Bounded(walk, float(-(-bound * 1.001 // 1)))
    return Unbounded(walk)


class Bounded:
    """Tiles are ``exp(s − c)``, with one c for all."""

    def __init__(self, walk, shift):
        self.shift = shift
        walk.set_shift(shift)

    def tile(self, similarity):
        return tf.exp(similarity)

    def start(self, rows):
        return (rows.array(),)

    def add_rows(self, sums, tile, i):
        # Sums as products: faster than reductions, the more so over the outer axis.
        ones = tf.ones([tf.shape(tile)[1], 1], tile.dtype)
        return (row_blocks.add(sums[0], i, tf.matmul(tile, ones)[:, 0]),)

    def add_columns(self, sums, tile, j):
        ones = tf.ones([1, tf.shape(tile)[0]], tile.dtype)
        return (row_blocks.add(sums[0], j, tf.matmul(ones, tile)[0]),)

    def log(self, sums):
        return sums.unstack(tf.math.log(sums.stack()) + self.shift)

    def prepare(self, rows, value, upstream):
        self.weight = rows.split(upstream * tf.exp(self.shift - row_blocks.finite(value)))

    def weights_of_rows(self, tile, i):
        return tile * self.weight[i][:, None]

    def weights_of_rows_and_columns(self, tile, i, j):
        return tile * (self.weight[i][:, None] + self.weight[j])


class Unbounded:
    """Tiles are the similarities themselves; each row keeps the largest seen as its shift."""

    def __init__(self, walk):
        walk.set_shift(0.0)

    def tile(self, similarity):
        return similarity

    def start(self, rows):
        return rows.array(fill=float("-inf")), rows.array()

    def add_rows(self, state, tile, i):
        return self._accumulate(state, tile, i, axis=1)

    def add_columns(self, state, tile, j):
        return self._accumulate(state, tile, j, axis=0)

    def _accumulate(self, state, tile, index, axis):
        maxima, sums = state
        before = maxima.read(index)
        maximum = tf.maximum(before, tf.reduce_max(tile, axis=axis))
        shift = row_blocks.finite(maximum)
        added = tf.reduce_sum(tf.exp(tile - tf.expand_dims(shift, axis)), axis=axis)
        total = sums.read(index) * tf.exp(before - shift) + added
        return maxima.write(index, maximum), sums.write(index, total)

    def log(self, maxima, sums):
        return sums.unstack(tf.math.log(sums.stack()) + row_blocks.finite(maxima.stack()))

    def prepare(self, rows, value, upstream):
        self.value = rows.split(row_blocks.finite(value))
        self.upstream = rows.split(upstream)

    def weights_of_rows(self, tile, i):
        return tf.exp(tile - self.value[i][:, None]) * self.upstream[i][:, None]

    def weights_of_rows_and_columns(self, tile, i, j):
        for_columns = tf.exp(tile - self.value[j]) * self.upstream[j]
        return self.weights_of_rows(tile, i) + for_columns
