"""Log-sum-exps of a similarity matrix that is never stored: walked in tiles, with its own gradient.

A softmax loss over similarities needs, of the matrix ``s_ij = a_i · k_j``, each row's log-sum-exp and
the gradient of that; neither needs the matrix. Both are sums over tiles, so memory is a few tiles and
the accumulators, whatever the batch. Where the keys are the rows themselves the matrix is symmetric,
and each tile above the diagonal serves its rows and its columns: half the work.

How exponentials stay in range is `tile_terms`' business.

The first tiles are kept for the gradient, up to a constant amount of memory; a small batch is thus a
single tile, computed once. The others are computed again in the gradient.

The temperature is the caller's: scale the rows (and the keys) before, and its gradient follows.
"""

import abc

import tensorflow as tf

from keras_sslmeta.mechanisms import row_blocks, tile_terms

# Memory for tiles that the gradient uses again: constant, so that memory does not grow with the batch.
KEPT_BYTES = 64 * 2**20
# Up to so many pairs, where that is known, TensorFlow's own dense gradient is faster than a walk.
DENSE_PAIRS = 256 * 256


def log_sum_exp(
    rows: tf.Tensor,
    keys: tf.Tensor | None = None,
    own_key: "int | tf.Tensor | None" = None,
    bound: float | None = None,
    group: int = 1,
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

    Returns:
        `(n,)`; a row without any key gives −inf.
    """
    sizes = rows.shape[0], (rows if keys is None else keys).shape[0]
    if None not in sizes and sizes[0] * sizes[1] <= DENSE_PAIRS:
        return dense_log_sum_exp(rows, keys, own_key, group)
    if keys is None:
        return _self_log_sum_exp(rows, bound, group)
    return _cross_log_sum_exp(rows, keys, own_key, bound, group)


def dense_log_sum_exp(
    rows: tf.Tensor,
    keys: tf.Tensor | None = None,
    own_key: "int | tf.Tensor | None" = None,
    group: int = 1,
) -> tf.Tensor:
    """The same by the whole matrix: what second derivatives go through, and tests compare with."""
    if keys is None:
        keys, own_key = rows, 0
    similarity = tf.matmul(rows, keys, transpose_b=True)
    if own_key is not None:
        is_own = _same_group(own_key, tf.shape(rows)[0], tf.shape(keys)[0], group)
        similarity = tf.where(is_own, row_blocks.minus_infinity(rows), similarity)
    # `tf.reduce_logsumexp` has a NaN gradient for a row without keys.
    largest = tf.stop_gradient(row_blocks.finite(tf.reduce_max(similarity, axis=1)))
    total = tf.reduce_sum(tf.exp(similarity - largest[:, None]), axis=1)
    has_keys = tf.not_equal(total, 0)
    log = tf.math.log(tf.where(has_keys, total, tf.ones_like(total))) + largest
    return tf.where(has_keys, log, row_blocks.minus_infinity(rows))


def _same_group(own, rows, keys, group):
    """Which keys belong to which rows' groups, the first row's own beginning at key `own`."""
    of_rows = (own + tf.range(rows)[:, None]) // group
    return of_rows == tf.range(keys) // group


def _self_log_sum_exp(rows, bound, group):
    @tf.custom_gradient
    def compute(rows):
        walk = _SelfWalk(tf.stop_gradient(rows), group)
        terms = tile_terms.choose(walk, bound)
        value, kept = walk.value(terms)

        def gradient(upstream):
            return _twice_differentiable(
                lambda upstream: walk.gradient(terms, value, kept, upstream),
                (rows,),
                lambda rows: dense_log_sum_exp(rows, group=group),
                upstream,
            )

        return value, gradient

    return compute(rows)


def _cross_log_sum_exp(rows, keys, own_key, bound, group):
    @tf.custom_gradient
    def compute(rows, keys):
        walk = _CrossWalk(tf.stop_gradient(rows), tf.stop_gradient(keys), own_key, group)
        terms = tile_terms.choose(walk, bound)
        value, kept = walk.value(terms)

        def gradient(upstream):
            return _twice_differentiable(
                lambda upstream: walk.gradient(terms, value, kept, upstream),
                (rows, keys),
                lambda rows, keys: dense_log_sum_exp(rows, keys, own_key, group),
                upstream,
            )

        return value, gradient

    return compute(rows, keys)


def _twice_differentiable(fast, inputs, dense, upstream):
    """`fast(upstream)`, the gradient of `dense` at `inputs`, made differentiable in both."""

    @tf.custom_gradient
    def gradient(upstream, *inputs):
        def second(*cotangents):
            with tf.GradientTape() as outer:
                outer.watch((upstream, inputs))
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    value = dense(*inputs)
                first = inner.gradient(value, inputs, upstream)
            return outer.gradient(
                first, [upstream, *inputs], cotangents, unconnected_gradients="zero"
            )

        return fast(tf.stop_gradient(upstream)), second

    # TensorFlow loses track of the inputs of a `tf.function` here unless each is a tensor of its own.
    return gradient(upstream, *(tf.identity(x) for x in inputs))


class _Walk(abc.ABC):
    """The tiles of a similarity matrix in their order; subclasses say which, and what each serves."""

    @abc.abstractmethod
    def following(self, i, j):
        """The pair of blocks after (i, j)."""

    @abc.abstractmethod
    def similarity(self, i, j):
        """The tile of blocks i and j, −inf where a pair is left out."""

    @abc.abstractmethod
    def add_sums(self, terms, sums, tile, i, j):
        """`sums` with what the tile adds to them."""

    @abc.abstractmethod
    def results(self):
        """Zeros for the gradients with respect to the inputs."""

    @abc.abstractmethod
    def add_products(self, terms, results, tile, i, j):
        """`results` with what the tile adds to them."""

    @abc.abstractmethod
    def join_results(self, *results):
        """The gradients, of the inputs' shapes."""

    def begin(self, rows, keys, pairs):
        """Keeps the blocks, and decides how many of the `pairs` of blocks are kept as tiles."""
        self.rows, self.keys, self.pairs = rows, keys, pairs
        tile_bytes = rows.size * keys.size * rows.matrix.dtype.size
        if isinstance(pairs, int) and isinstance(tile_bytes, int):
            self.kept = min(pairs, KEPT_BYTES // tile_bytes)
        else:
            self.kept = tf.minimum(pairs, KEPT_BYTES // tile_bytes)

    def set_shift(self, shift):
        """Takes `shift` off every similarity of the tiles that follow."""
        self.left = self.rows.biased(shift, left=True)
        self.right = self.keys.biased(0.0, left=False)

    def value(self, terms):
        """The log-sum-exps, and the kept tiles."""
        tile_shape = [self.rows.plain.shape[1], self.keys.plain.shape[1]]
        kept = tf.TensorArray(
            self.rows.matrix.dtype, self.kept, clear_after_read=False, element_shape=tile_shape
        )

        def keeping(p, i, j, kept, *sums):
            tile = terms.tile(self.similarity(i, j))
            i_next, j_next = self.following(i, j)
            return i_next, j_next, kept.write(p, tile), *self.add_sums(terms, sums, tile, i, j)

        def passing(p, i, j, *sums):
            tile = terms.tile(self.similarity(i, j))
            return *self.following(i, j), *self.add_sums(terms, sums, tile, i, j)

        i, j, kept, *sums = row_blocks.loop(
            0, self.kept, keeping, (0, 0, kept, *terms.start(self.rows))
        )
        _, _, *sums = row_blocks.loop(self.kept, self.pairs, passing, (i, j, *sums))
        return self.rows.join(terms.log(*sums)), kept

    def gradient(self, terms, value, kept, upstream):
        """The gradient with respect to the walk's inputs."""
        terms.prepare(self.rows, value, upstream)

        def again(p, i, j, *results):
            tile = terms.tile(self.similarity(i, j))
            return *self.following(i, j), *self.add_products(terms, results, tile, i, j)

        def from_kept(p, i, j, *results):
            tile = kept.read(p)
            return *self.following(i, j), *self.add_products(terms, results, tile, i, j)

        i, j, *results = row_blocks.loop(0, self.kept, from_kept, (0, 0, *self.results()))
        _, _, *results = row_blocks.loop(self.kept, self.pairs, again, (i, j, *results))
        return self.join_results(*results)


class _SelfWalk(_Walk):
    """The tiles (i ≤ j) of ``rows · rowsᵀ`` less each row's own group, column by column.

    Each serves (j, i) too.
    """

    def __init__(self, rows, group):
        blocks = row_blocks.Blocks(rows, multiple=group)
        # Every tile on the diagonal leaves out the same pairs.
        is_own = _same_group(0, blocks.size, blocks.size, group)
        self.less_own = tf.where(is_own, row_blocks.minus_infinity(rows), tf.zeros([], rows.dtype))
        self.begin(blocks, blocks, blocks.count * (blocks.count + 1) // 2)

    def following(self, i, j):
        at_diagonal = tf.equal(i, j)
        return tf.where(at_diagonal, 0, i + 1), tf.where(at_diagonal, j + 1, j)

    def similarity(self, i, j):
        tile = tf.matmul(self.left[i], self.right[j], transpose_b=True)
        return tf.cond(tf.equal(i, j), lambda: tile + self.less_own, lambda: tile)

    def add_sums(self, terms, sums, tile, i, j):
        sums = terms.add_rows(sums, tile, i)
        return tf.cond(tf.equal(i, j), lambda: sums, lambda: terms.add_columns(sums, tile, j))

    def results(self):
        return (self.rows.array(self.rows.dim),)

    def add_products(self, terms, results, tile, i, j):
        weights = terms.weights_of_rows_and_columns(tile, i, j)
        result = row_blocks.add(results[0], i, tf.matmul(weights, self.rows.plain[j]))

        def transposed():
            return row_blocks.add(
                result, j, tf.matmul(weights, self.rows.plain[i], transpose_a=True)
            )

        return (tf.cond(tf.equal(i, j), lambda: result, transposed),)

    def join_results(self, result):
        return self.rows.join(result)


class _CrossWalk(_Walk):
    """All tiles of ``rows · keysᵀ`` less each row's own group, row by row."""

    def __init__(self, rows, keys, own_key, group):
        self.own_key, self.group = own_key, group
        rows = row_blocks.Blocks(rows, multiple=group)
        keys = row_blocks.Blocks(keys, multiple=group)
        self.begin(rows, keys, rows.count * keys.count)

    def following(self, i, j):
        at_end = tf.equal(j, self.keys.count - 1)
        return tf.where(at_end, i + 1, i), tf.where(at_end, 0, j + 1)

    def similarity(self, i, j):
        tile = tf.matmul(self.left[i], self.right[j], transpose_b=True)
        if self.own_key is None:
            return tile
        # The own key of the tile's first row, counted from the tile's first key.
        own = self.own_key + i * self.rows.size - j * self.keys.size

        def masked():
            is_own = _same_group(own, self.rows.size, self.keys.size, self.group)
            return tf.where(is_own, row_blocks.minus_infinity(tile), tile)

        return tf.cond((own > -self.rows.size) & (own < self.keys.size), masked, lambda: tile)

    def add_sums(self, terms, sums, tile, i, j):
        return terms.add_rows(sums, tile, i)

    def results(self):
        return self.rows.array(self.rows.dim), self.keys.array(self.keys.dim)

    def add_products(self, terms, results, tile, i, j):
        for_rows, for_keys = results
        weights = terms.weights_of_rows(tile, i)
        for_rows = row_blocks.add(for_rows, i, tf.matmul(weights, self.keys.plain[j]))
        products = tf.matmul(weights, self.rows.plain[i], transpose_a=True)
        return for_rows, row_blocks.add(for_keys, j, products)

    def join_results(self, for_rows, for_keys):
        return self.rows.join(for_rows), self.keys.join(for_keys)
