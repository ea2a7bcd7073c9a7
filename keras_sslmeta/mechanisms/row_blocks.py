"""A matrix cut into blocks of rows, and accumulators of one value a block, for walks over tiles."""

import tensorflow as tf

# Rows of a tile: large enough to multiply at full rate, small enough for a processor's cache.
TILE = 1024


def length(x):
    """Rows of `x`: a number where it is known, else a tensor."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def minus_infinity(like):
    return tf.constant(float("-inf"), like.dtype)


def finite(x):
    """`x` with 0 in place of −inf, which is what a row without keys gives."""
    return tf.where(tf.equal(x, minus_infinity(x)), tf.zeros_like(x), x)


def log_sum_exp(matrix, axis=1):
    """Of each row `(n,)`, or of each column; `tf.reduce_logsumexp` has a NaN gradient for one of −inf."""
    largest = tf.stop_gradient(finite(tf.reduce_max(matrix, axis=axis)))
    total = tf.reduce_sum(tf.exp(matrix - tf.expand_dims(largest, axis)), axis=axis)
    has_keys = tf.not_equal(total, 0)
    log = tf.math.log(tf.where(has_keys, total, tf.ones_like(total))) + largest
    return tf.where(has_keys, log, minus_infinity(matrix))


def leave_out_own(tile, own, group):
    """The tile, −inf where a key belongs to the row's group; the first row's own one begins at key `own`."""
    rows, keys = tile.shape
    if group == 1 and all(isinstance(x, int) for x in (rows, keys, own)):
        # A diagonal, which a mask of the tile's size would take twice as long for.
        length = min(rows + min(own, 0), keys - max(own, 0))
        if length <= 0:
            return tile
        return tf.linalg.set_diag(tile, tf.fill([length], minus_infinity(tile)), k=own)
    rows, keys = tf.shape(tile)[0], tf.shape(tile)[1]
    return tf.where(same_group(own, rows, keys, group), minus_infinity(tile), tile)


def same_group(own, rows, keys, group):
    """Which keys belong to which rows' groups, the first row's own beginning at key `own`."""
    of_rows = (own + tf.range(rows)[:, None]) // group
    return of_rows == tf.range(keys) // group


def loop(start, stop, body, state):
    """`state` after ``state = body(p, *state)`` for p from start to stop − 1."""
    if isinstance(start, int) and isinstance(stop, int):
        if start >= stop:
            return state
        if stop - start == 1:
            return body(start, *state)
    # A loop takes tensors and TensorArrays.
    are_one = [isinstance(x, _OneBlock) for x in state]

    def packed(state):
        return [x.block if one else x for x, one in zip(state, are_one, strict=True)]

    def unpacked(state):
        return [_OneBlock(x) if one else x for x, one in zip(state, are_one, strict=True)]

    after = tf.while_loop(
        lambda p, *_: p < stop,
        lambda p, *state: (p + 1, *packed(body(p, *unpacked(state)))),
        [start, *packed(state)],
        # Two tiles at once hide each other's latency; more only take memory.
        parallel_iterations=2,
    )[1:]
    return unpacked(after)


def cond(i, j, if_equal, otherwise):
    """`if_equal()` where i = j, else `otherwise()`."""
    if isinstance(i, int) and isinstance(j, int):
        return if_equal() if i == j else otherwise()
    return tf.cond(tf.equal(i, j), if_equal, otherwise)


def new_array(dtype, count, shape):
    """An array of `count` blocks of the shape, to be written."""
    if isinstance(count, int) and count == 1:
        return _OneBlock()
    return tf.TensorArray(dtype, count, clear_after_read=False, element_shape=shape)


class _OneBlock:
    """The interface of a `tf.TensorArray` of one block, without its cost."""

    def __init__(self, block=None):
        self.block = block

    def read(self, index):
        return self.block

    def write(self, index, block):
        return _OneBlock(block)

    def stack(self):
        return self.block[None]

    def unstack(self, blocks):
        return _OneBlock(blocks[0])


def add(array, index, value):
    return array.write(index, array.read(index) + value)


class Blocks:
    """A matrix cut into `count` blocks of `size` rows, the last one padded.

    `size` is a multiple of `multiple`.
    Numbers are Python's where the shape is static and tensors where it is not.
    """

    def __init__(self, matrix, multiple=1):
        self.matrix = matrix
        self.dim = matrix.shape[1]
        self.rows = length(matrix)
        at_least_one = max if isinstance(self.rows, int) else tf.maximum
        self.count = at_least_one(1, -(-self.rows // TILE))
        # A whole multiple, so that no group of rows is cut in two.
        self.size = at_least_one(1, -(-self.rows // (self.count * multiple))) * multiple
        self.plain = self.split(matrix)

    def split(self, x, fill=0.0):
        """`(rows, …)` → `(count, size, …)`, padded with `fill`."""
        padding = self.count * self.size - self.rows
        if not isinstance(padding, int) or padding:
            paddings = [[0, padding]] + [[0, 0]] * (len(x.shape) - 1)
            fill = tf.constant("") if x.dtype == tf.string else tf.cast(fill, x.dtype)
            x = tf.pad(x, paddings, constant_values=fill)
        return tf.reshape(x, [self.count, self.size, *x.shape[1:]])

    def join(self, array):
        """Array of `(size, …)` blocks → `(rows, …)`, the padding cut off."""
        blocks = array.stack()
        joined = tf.reshape(blocks, [self.count * self.size, *blocks.shape[2:]])[: self.rows]
        return tf.ensure_shape(joined, [self.matrix.shape[0], *blocks.shape[2:]])

    def array(self, *shape, fill=0.0):
        """One accumulator a block, of `(size, *shape)`."""
        return self._filled([self.count, self.size, *shape], [None, None, *shape], fill)

    def transposed_array(self):
        """One accumulator a block, of `(dim, size)`."""
        return self._filled([self.count, self.dim, self.size], [None, self.dim, None], 0.0)

    def join_transposed(self, array):
        """Array of `(dim, size)` blocks → `(rows, dim)`."""
        blocks = tf.transpose(array.stack(), [0, 2, 1])
        return tf.reshape(blocks, [self.count * self.size, self.dim])[: self.rows]

    def _filled(self, shape, known, fill):
        filled = tf.ensure_shape(tf.fill(shape, tf.cast(fill, self.matrix.dtype)), known)
        return new_array(self.matrix.dtype, self.count, filled.shape[1:]).unstack(filled)

    def is_full(self):
        """Whether there is no padding, as far as is known."""
        padding = self.count * self.size - self.rows
        return isinstance(padding, int) and not padding

    def masked(self, left):
        """The blocks with two more columns: a product of a left and a right block is then −inf in the
        padding, without another walk over the tile for it."""
        ones = tf.ones([self.rows, 1], self.matrix.dtype)
        bias = self.split(tf.zeros_like(ones), fill=float("-inf"))
        ones = self.split(ones, fill=1.0)
        return tf.concat([self.plain, bias, ones] if left else [self.plain, ones, bias], axis=2)
