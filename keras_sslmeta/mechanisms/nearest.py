"""The nearest of many vectors, block by block: the matrix of all products is never held."""

import tensorflow as tf

from keras_sslmeta.mechanisms import row_functions

# Products that are held at once.
PRODUCTS = 2**24


def among(rows: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
    """For each row the candidate of the largest inner product, `(n, dim)`; without gradient.

    Args:
        rows: `(n, dim)`; n may be unknown.
        candidates: `(m, dim)`, one at least, of the same dtype.
    """
    rows, candidates = tf.stop_gradient(rows), tf.stop_gradient(candidates)
    shape = (candidates.shape[1],)
    nearest = row_functions.of_rows(_nearest, rows, candidates, shape=shape, pairs=PRODUCTS)
    return tf.stop_gradient(nearest)


def _nearest(rows, candidates):
    products = tf.matmul(rows, candidates, transpose_b=True)
    return tf.gather(candidates, tf.argmax(products, axis=1, output_type=tf.int32))
