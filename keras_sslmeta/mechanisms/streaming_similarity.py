"""Sums over the rows of a similarity matrix that is never stored: walked in tiles, with its own gradient.

A softmax loss over similarities needs, of the matrix ``s_ij = a_i · k_j``, each row's log-sum-exp and
the gradient of that; a sigmoid loss the sum of ``log(1 + e^s)``. Neither needs the matrix. All are sums
over tiles, so memory is a few tiles and the accumulators, whatever the batch. Where the keys are the
rows themselves the matrix is symmetric, and each tile above the diagonal serves its rows and its
columns: half the work.

How tiles are walked is `tile_walks`' business, what is added up of them `tile_terms`', and which pairs
count `pair_selection`'s.

The first tiles are kept for the gradient, up to a constant amount of memory; a small batch is thus a
single tile, computed once. The others are computed again in the gradient.

The temperature is the caller's: scale the rows (and the keys) before, and its gradient follows.
"""

import tensorflow as tf

from keras_sslmeta.mechanisms import row_blocks, tile_terms, tile_walks
from keras_sslmeta.mechanisms.pair_selection import Selection

# Up to so many pairs, where that is known, TensorFlow's own dense gradient is faster than a walk.
DENSE_PAIRS = 256 * 256


def log_sum_exp(
    rows: tf.Tensor,
    keys: tf.Tensor | None = None,
    own_key: "int | tf.Tensor | None" = None,
    bound: float | None = None,
    group: int = 1,
    selection: Selection | None = None,
) -> tf.Tensor:
    """Log-sum-exp of each row's similarities to the keys: ``log Σ_j exp(rows_i · keys_j)``.

    Exact in value, gradient and second derivative (the last goes through the dense matrix).

    Args:
        rows: `(n, dim)` float32 or float64.
        keys: `(m, dim)` of the same dtype, or None where the keys are the rows themselves; each
            row's own group is then left out.
        own_key: with `keys`, where the first row's own group begins among them, a multiple of `group`:
            the groups from there on are left out for the rows' groups. None leaves out nothing.
        bound: a number that no |similarity| exceeds, where one is known: faster if it is below 40.
        group: number of consecutive rows, and keys, that belong together (the views of a sample), none
            of which counts for another of them. 1 leaves out the row itself.
        selection: which other pairs count, and how much; no gradient goes through it.

    Returns:
        `(n,)`; a row without any key gives −inf.
    """
    if keys is None and selection is not None:
        keys, own_key = rows, 0

    def dense(rows, keys=None):
        return (dense_log_sum_exp(rows, keys, own_key, group, selection),)

    if _few(rows, keys):
        return dense(rows, keys)[0]
    if keys is None:
        return _walked(
            lambda rows: tile_walks.SelfWalk(rows, group),
            lambda walk: tile_terms.log_sum_exp(walk, bound),
            dense,
            (rows,),
        )[0]
    bound = bound if selection is None else None
    exponent = 1.0 if selection is None else selection.exponent
    return _walked(
        lambda rows, keys: tile_walks.CrossWalk(rows, keys, own_key, group, selection),
        lambda walk: tile_terms.log_sum_exp(walk, bound),
        dense,
        (rows, keys),
        exponent,
    )[0]


def two_sided_log_sum_exp(
    rows: tf.Tensor, keys: tf.Tensor, own_key: "int | None" = None, bound: float | None = None
) -> "tuple[tf.Tensor, tf.Tensor]":
    """Log-sum-exps over the keys of each row, and over the rows of each key, from one walk.

    Arguments are those of `log_sum_exp`; returns `(n,)` and `(m,)`.
    """

    def dense(rows, keys):
        matrix = dense_similarity(rows, keys, own_key)
        return tuple(row_blocks.log_sum_exp(matrix, axis) for axis in (1, 0))

    if _few(rows, keys):
        return dense(rows, keys)
    return _walked(
        lambda rows, keys: tile_walks.TwoSidedWalk(rows, keys, own_key),
        lambda walk: tile_terms.log_sum_exp(walk, bound),
        dense,
        (rows, keys),
    )


def softplus_sum(
    rows: tf.Tensor,
    keys: tf.Tensor,
    own_key: "int | tf.Tensor | None" = None,
    bias: float = 0.0,
) -> tf.Tensor:
    """``Σ_j log(1 + exp(rows_i · keys_j + bias))`` for each row; arguments as of `log_sum_exp`."""

    def dense(rows, keys):
        matrix = dense_similarity(rows, keys) + bias
        matrix = row_blocks.leave_out_own(matrix, own_key, 1) if own_key is not None else matrix
        return (tf.reduce_sum(tf.math.softplus(matrix), axis=1),)

    if _few(rows, keys):
        return dense(rows, keys)[0]
    if bias:  # One more column, since products are all that is walked.
        column = tf.fill([tf.shape(rows)[0], 1], tf.constant(bias, rows.dtype))
        rows = tf.concat([rows, column], axis=1)
        keys = tf.concat([keys, tf.ones_like(keys[:, :1])], axis=1)
        return softplus_sum(rows, keys, own_key)
    return _walked(
        lambda rows, keys: tile_walks.CrossWalk(rows, keys, own_key),
        lambda walk: tile_terms.Softplus(),
        dense,
        (rows, keys),
    )[0]


def kth_largest(
    rows: tf.Tensor,
    keys: tf.Tensor,
    own_key: "int | tf.Tensor | None",
    group: int,
    selection: Selection,
    k: int,
) -> tf.Tensor:
    """The k-th largest similarity of each row to the keys that count; −inf where fewer do.

    Without a gradient. Arguments as of `log_sum_exp`; memory grows with n · k.
    """
    rows, keys = tf.stop_gradient(rows), tf.stop_gradient(keys)
    if _few(rows, keys):
        matrix = dense_similarity(rows, keys, own_key, group)
        of_rows = [rule.of_rows for rule in selection.rules]
        weights = selection.log_weights(matrix, of_rows, [rule.of_keys for rule in selection.rules])
        matrix = tf.where(tf.math.is_inf(weights), weights, matrix)
        fill = tf.fill([tf.shape(rows)[0], k], row_blocks.minus_infinity(rows))
        return tf.math.top_k(tf.concat([fill, matrix], axis=1), k).values[:, -1]
    walk = tile_walks.CrossWalk(rows, keys, own_key, group, selection)

    def body(p, i, j, largest):
        tile = walk.unselected(i, j)
        weights = selection.log_weights(tile, *walk.information(i, j))
        tile = tf.where(tf.math.is_inf(weights), weights, tile)
        both = tf.concat([largest.read(i), tile], axis=1)
        return *walk.following(i, j), largest.write(i, tf.math.top_k(both, k).values)

    start = walk.rows.array(k, fill=float("-inf"))
    _, _, largest = row_blocks.loop(0, walk.pairs, body, (0, 0, start))
    return walk.rows.join(largest)[:, -1]


# ------------------------------------------------------------------ the whole matrix


def dense_log_sum_exp(
    rows: tf.Tensor,
    keys: tf.Tensor | None = None,
    own_key: "int | tf.Tensor | None" = None,
    group: int = 1,
    selection: Selection | None = None,
) -> tf.Tensor:
    """The same by the whole matrix: what second derivatives go through, and tests compare with."""
    return row_blocks.log_sum_exp(dense_similarity(rows, keys, own_key, group, selection))


def dense_similarity(rows, keys=None, own_key=None, group=1, selection=None):
    """The similarity matrix, −inf where a pair is left out."""
    if keys is None:
        keys, own_key = rows, 0
    similarity = tf.matmul(rows, keys, transpose_b=True)
    if own_key is not None:
        similarity = row_blocks.leave_out_own(similarity, own_key, group)
    return similarity if selection is None else selection.apply_to_all(similarity)


# ------------------------------------------------------------------ walks and their gradients


def _few(rows, keys):
    sizes = rows.shape[0], (rows if keys is None else keys).shape[0]
    return None not in sizes and sizes[0] * sizes[1] <= DENSE_PAIRS


def _walked(make_walk, make_terms, dense, inputs, exponent=1.0):
    """The walk's values, a tuple, with its own gradient; `dense` is the same by the whole matrix."""

    @tf.custom_gradient
    def compute(*inputs):
        walk = make_walk(*(tf.stop_gradient(x) for x in inputs))
        terms = make_terms(walk)
        values, kept = walk.value(terms)

        def gradient(*upstreams, variables=()):
            def fast(upstreams):
                return walk.gradient(terms, values, kept, [exponent * x for x in upstreams])

            return _with_none_for(variables, _twice_differentiable(fast, inputs, dense, upstreams))

        return values, gradient

    return compute(*inputs)


def _twice_differentiable(fast, inputs, dense, upstreams):
    """`fast(upstreams)`, the gradient of `dense` at `inputs`, made differentiable in both."""
    outputs = len(upstreams)

    @tf.custom_gradient
    def gradient(*both):
        upstreams, inputs = list(both[:outputs]), list(both[outputs:])

        def second(*cotangents, variables=()):
            with tf.GradientTape() as outer:
                outer.watch((upstreams, inputs))
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    values = list(dense(*inputs))
                first = inner.gradient(values, inputs, upstreams)
            gradients = outer.gradient(
                first, [*upstreams, *inputs], cotangents, unconnected_gradients="zero"
            )
            return _with_none_for(variables, gradients)

        return fast([tf.stop_gradient(x) for x in upstreams]), second

    # TensorFlow loses track of the inputs of a `tf.function` here unless each is a tensor of its own.
    return gradient(*upstreams, *(tf.identity(x) for x in inputs))


def _with_none_for(variables, gradients):
    """What a custom gradient returns where rules read variables, through which none goes."""
    return (gradients, [None] * len(variables)) if variables else gradients
