"""A function of each row's comparison with all keys, in memory of a block of rows, with its own gradient.

Mining and ranking need a row of the distance matrix as a whole, so they cannot walk it in tiles of keys
as `streaming_similarity` does. Here the matrix is walked in blocks of whole rows. The gradient computes
each block again and adds up what the blocks give to the keys, so it takes no more memory either.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_sslmeta.mechanisms import row_blocks

# Pairs of a row and a key that are compared at once; up to so many are a single block.
PAIRS = 2**21


def of_rows(
    function: Callable[..., tf.Tensor],
    rows: tf.Tensor,
    keys: tf.Tensor,
    *per_row: tf.Tensor,
    shape: tuple[int, ...] = (),
    pairs: int | None = None,
) -> tf.Tensor:
    """``function(rows, keys, *per_row)``, computed a block of rows at a time.

    Where sizes are known and few pairs in all, the function is called on everything, and TensorFlow
    differentiates it as usual.

    Args:
        function: TensorFlow code that maps `(block, dim)` rows, all the keys and the block's part of
            each of `per_row` to `(block, *shape)`, of the rows' dtype; a row's result depends on no
            other row. It is differentiated in rows and keys alone, and must be finite, with a finite
            gradient, for a row of zeros with zeros in `per_row`, which pad the last block.
        rows: `(n, dim)`; n may be 0 or unknown.
        keys: `(m, dim)` of the same dtype.
        *per_row: tensors `(n, …)` of any type, of which no gradient is asked.
        shape: of the function's result for one row.
        pairs: of a row and a key, that are compared at once. Defaults to `PAIRS`.

    Returns:
        `(n, *shape)`.
    """
    pairs = PAIRS if pairs is None else pairs
    sizes = row_blocks.length(rows), row_blocks.length(keys)
    if all(isinstance(size, int) for size in sizes) and sizes[0] * sizes[1] <= pairs:
        return function(rows, keys, *per_row)

    @tf.custom_gradient
    def compute(rows, keys):
        blocks = _Blocks(rows, keys, pairs)

        def gradient(upstream):
            return _gradient(blocks, function, rows, keys, per_row, tf.convert_to_tensor(upstream))

        # The graph's own gradient of the walk would go through its padding.
        fixed_rows, fixed_keys = tf.stop_gradient(rows), tf.stop_gradient(keys)
        return _value(blocks, function, fixed_rows, fixed_keys, per_row, shape), gradient

    # TensorFlow loses track of the inputs of a `tf.function` here unless each is a tensor of its own.
    return compute(tf.identity(rows), tf.identity(keys))


def _value(blocks, function, rows, keys, per_row, shape):
    parts = [blocks.split(x) for x in (rows, *per_row)]

    def body(i, values):
        block, *others = (x[i] for x in parts)
        return i + 1, values.write(i, function(block, keys, *others))

    return blocks.join(_loop(blocks, body, blocks.array(rows.dtype, shape))[0], shape)


def _gradient(blocks, function, rows, keys, per_row, upstream):
    parts = [blocks.split(x) for x in (rows, upstream, *per_row)]
    dim = rows.shape[1]

    def body(i, for_rows, for_keys):
        block, weights, *others = (x[i] for x in parts)
        inputs = tf.identity(block), tf.identity(keys)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(*inputs, *others)
        of_block, of_keys = tape.gradient(value, inputs, weights, unconnected_gradients="zero")
        # Gradients may come as IndexedSlices, which a loop refuses.
        return i + 1, for_rows.write(i, tf.convert_to_tensor(of_block)), for_keys + of_keys

    arrays = blocks.array(rows.dtype, (dim,)), tf.zeros_like(keys)
    for_rows, for_keys = _loop(blocks, body, *arrays)
    return blocks.join(for_rows, (dim,)), for_keys


def _loop(blocks, body, *state):
    return tf.while_loop(
        lambda i, *_: i < blocks.count,
        body,
        [0, *state],
        # More at once would only take memory.
        parallel_iterations=1,
    )[1:]


class _Blocks:
    """How `n` rows are cut into `count` blocks of `size`, the last one padded with zeros."""

    def __init__(self, rows, keys, pairs):
        self.rows, m = row_blocks.length(rows), row_blocks.length(keys)
        static = isinstance(self.rows, int) and isinstance(m, int)
        least = max if static else tf.maximum
        # At least one block, since an array without elements has no shape.
        self.count = least(1, -(-self.rows // least(1, pairs // least(1, m))))
        self.size = least(1, -(-self.rows // self.count))
        self.known = [self.size if static else None]
        self.total = rows.shape[0]

    def split(self, x):
        """`(n, …)` → `(count, size, …)`."""
        padding = [[0, self.count * self.size - self.rows]] + [[0, 0]] * (len(x.shape) - 1)
        return tf.reshape(tf.pad(x, padding), [self.count, self.size, *x.shape[1:]])

    def array(self, dtype, shape):
        return tf.TensorArray(dtype, self.count, element_shape=[*self.known, *shape])

    def join(self, array, shape):
        """Array of `(size, *shape)` → `(n, *shape)`."""
        joined = tf.reshape(array.stack(), [self.count * self.size, *shape])[: self.rows]
        return tf.ensure_shape(joined, [self.total, *shape])
