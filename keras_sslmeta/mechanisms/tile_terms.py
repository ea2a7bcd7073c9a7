"""What is added up of a tile of similarities, and how exponentials stay in range.

For log-sum-exps there are two ways:

* `Bounded`, where the caller knows ``|s_ij| ≤ c`` and exp(±2c) is in range, as for unit vectors at every
  usual temperature: ``exp(s_ij)`` neither over- nor underflows, nor does a sum of many, and one
  exponential a tile serves rows, columns and the gradient alike;
* `Unbounded`, for anything else: a running maximum for each row, exact for any size of similarity, at
  the cost of two maxima and a second exponential a tile.

`Softplus` adds up ``log(1 + e^s)``, which needs neither.

All are used by a walk in the same order: `start`, then `tile` and `add_rows` (or `add_columns`) tile
by tile, then `value`; for the gradient `side`, then `tile` again and `products`.
"""

import abc

import tensorflow as tf

from keras_sslmeta.mechanisms import row_blocks

# |s| up to which exp(±2s), and a sum of many of them, are normal numbers of the type.
_BOUNDED = {tf.float32: 40.0, tf.float64: 300.0}


def log_sum_exp(walk, bound):
    """The terms of log-sum-exps that suit the bound."""
    if bound is not None and bound * 1.001 <= _BOUNDED[walk.rows.matrix.dtype]:
        return Bounded()
    return Unbounded()


class Terms(abc.ABC):
    """What a walk adds up."""

    @abc.abstractmethod
    def tile(self, similarity):
        """What is kept of a tile of similarities."""

    @abc.abstractmethod
    def start(self, blocks):
        """Sums of nothing, a tuple of arrays."""

    @abc.abstractmethod
    def add_rows(self, sums, tile, i):
        """`sums` with what the tile adds to its rows."""

    @abc.abstractmethod
    def value(self, *sums):
        """An array of the values that the sums stand for."""

    @abc.abstractmethod
    def side(self, blocks, value, upstream):
        """What the gradient needs of rows or columns with these values and their gradients."""

    @abc.abstractmethod
    def weights(self, tile, rows, i, columns=None, j=None):
        """The gradient in the similarities of the tile, given the `side` of its rows, and of its columns
        where these have values too."""

    def products(self, tile, left, right, rows, i, columns=None, j=None):
        """The gradient in the tile's rows `(n, dim)`, and in its columns, transposed, `(dim, m)`."""
        weights = self.weights(tile, rows, i, columns, j)
        # The untransposed tile on the right: faster than its transpose on the left.
        return tf.matmul(weights, right), tf.matmul(left, weights, transpose_a=True)


class Bounded(Terms):
    """Tiles are ``exp(s)``."""

    def tile(self, similarity):
        return tf.exp(similarity)

    def start(self, blocks):
        return (blocks.array(),)

    def add_rows(self, sums, tile, i):
        # Sums as products: faster than reductions, the more so over the outer axis.
        ones = tf.ones([tf.shape(tile)[1], 1], tile.dtype)
        return (row_blocks.add(sums[0], i, tf.matmul(tile, ones)[:, 0]),)

    def add_columns(self, sums, tile, j):
        ones = tf.ones([1, tf.shape(tile)[0]], tile.dtype)
        return (row_blocks.add(sums[0], j, tf.matmul(ones, tile)[0]),)

    def value(self, sums):
        return sums.unstack(tf.math.log(sums.stack()))

    def side(self, blocks, value, upstream):
        return blocks.split(upstream * tf.exp(-row_blocks.finite(value)))

    def weights(self, tile, rows, i, columns=None, j=None):
        weight = rows[i][:, None]
        return tile * (weight if columns is None else weight + columns[j])

    def products(self, tile, left, right, rows, i, columns=None, j=None):
        if columns is not None:
            return super().products(tile, left, right, rows, i, columns, j)
        # Rows are weighed after the one product and before the other, and the tile not at all.
        weight = rows[i][:, None]
        return weight * tf.matmul(tile, right), tf.matmul(left * weight, tile, transpose_a=True)


class Unbounded(Terms):
    """Tiles are the similarities themselves; each row keeps the largest seen as its shift."""

    def tile(self, similarity):
        return similarity

    def start(self, blocks):
        return blocks.array(fill=float("-inf")), blocks.array()

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

    def value(self, maxima, sums):
        return sums.unstack(tf.math.log(sums.stack()) + row_blocks.finite(maxima.stack()))

    def side(self, blocks, value, upstream):
        return blocks.split(row_blocks.finite(value)), blocks.split(upstream)

    def weights(self, tile, rows, i, columns=None, j=None):
        value, upstream = rows
        weights = tf.exp(tile - value[i][:, None]) * upstream[i][:, None]
        if columns is None:
            return weights
        value, upstream = columns
        return weights + tf.exp(tile - value[j]) * upstream[j]


class Softplus(Terms):
    """Tiles are the similarities themselves, and ``log(1 + e^s)`` is added up."""

    def tile(self, similarity):
        return similarity

    def start(self, blocks):
        return (blocks.array(),)

    def add_rows(self, sums, tile, i):
        return (row_blocks.add(sums[0], i, tf.reduce_sum(tf.math.softplus(tile), axis=1)),)

    def value(self, sums):
        return sums

    def side(self, blocks, value, upstream):
        return blocks.split(upstream)

    def weights(self, tile, rows, i, columns=None, j=None):
        return tf.sigmoid(tile) * rows[i][:, None]
