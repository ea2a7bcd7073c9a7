"""The nearest of many vectors, block by block: the matrix of all products is never held."""

import tensorflow as tf

# Products that are held at once.
_PRODUCTS = 2**24


def among(rows: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
    """For each row the candidate of the largest inner product, `(n, dim)`; without gradient.

    Args:
        rows: `(n, dim)`.
        candidates: `(m, dim)`.
    """
    rows, candidates = tf.stop_gradient(rows), tf.stop_gradient(candidates)
    block = max(1, _PRODUCTS // int(candidates.shape[0]))
    count = rows.shape[0] or tf.shape(rows)[0]
    if isinstance(count, int) and count <= block:
        return tf.gather(candidates, _indices(rows, candidates))
    blocks = (count + block - 1) // block
    padded = tf.pad(rows, [[0, blocks * block - count], [0, 0]])
    indices = tf.map_fn(
        lambda part: _indices(part, candidates),
        tf.reshape(padded, [blocks, block, rows.shape[1]]),
        fn_output_signature=tf.int32,
        parallel_iterations=1,
    )
    return tf.gather(candidates, tf.reshape(indices, [-1])[:count])


def _indices(rows, candidates):
    products = tf.matmul(rows, candidates, transpose_b=True)
    return tf.argmax(products, axis=1, output_type=tf.int32)
