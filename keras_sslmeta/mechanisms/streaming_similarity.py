"""Log-sum-exps of a similarity matrix that is never stored: walked in tiles, with its own gradient.

A softmax loss over similarities needs, of the matrix ``s_ij = a_i · k_j``, each row's log-sum-exp and
the gradient of that; neither needs the matrix. Both are sums over tiles, so memory is a few tiles and
the accumulators, whatever the batch. Where the keys are the rows themselves the matrix is symmetric,
and each tile above the diagonal serves its rows and its columns: half the work.

Exponentials stay in range in one of two ways:

* `_Bounded`, where the caller knows ``|s_ij| ≤ c`` and exp(±2c) is in range, as for unit vectors at
  every usual temperature: ``exp(s_ij − c)`` neither over- nor underflows, and one exponential a tile
  serves rows, columns and the gradient alike;
* `_Unbounded`, for anything else: a running maximum for each row, exact for any size of similarity,
  at the cost of two maxima and a second exponential a tile.

The first tiles are kept for the gradient, up to a constant amount of memory; a small batch is thus a
single tile, computed once. The others are computed again in the gradient.

The temperature is the caller's: scale the rows (and the keys) before, and its gradient follows.
"""

import abc

import tensorflow as tf

# Rows of a tile: large enough to multiply at full rate, small enough for a processor's cache.
TILE = 1024
# Memory for tiles that the gradient uses again: constant, so that memory does not grow with the batch.
KEPT_BYTES = 64 * 2**20
# |s| up to which exp(±2s), and a sum of many of them, are normal numbers of the type.
_BOUNDED = {tf.float32: 40.0, tf.float64: 300.0}


def log_sum_exp(
    rows: tf.Tensor,
    keys: tf.Tensor | None = None,
    own_key: "int | tf.Tensor | None" = None,
    bound: float | None = None,
) -> tf.Tensor:
    """Log-sum-exp of each row's similarities to the keys: ``log Σ_j exp(rows_i · keys_j)``.

    Exact in value, gradient and second derivative (the last goes through the dense matrix).

    Args:
        rows: `(n, dim)` float32 or float64.
        keys: `(m, dim)` of the same dtype, or None where the keys are the rows themselves; each
            row's own entry is then left out.
        own_key: with `keys`, the index of the first row's own key: key `own_key + i` is left out for
            row i. None leaves out nothing.
        bound: a number that no |similarity| exceeds, where one is known: faster if it is below 40.

    Returns:
        `(n,)`; a row without any key gives −inf.
    """
    if keys is None:
        return _self_log_sum_exp(rows, bound)
    return _cross_log_sum_exp(rows, keys, own_key, bound)


def dense_log_sum_exp(
    rows: tf.Tensor, keys: tf.Tensor | None = None, own_key: "int | tf.Tensor | None" = None
) -> tf.Tensor:
    """The same by the whole matrix: what second derivatives go through, and tests compare with."""
    if keys is None:
        keys, own_key = rows, 0
    similarity = tf.matmul(rows, keys, transpose_b=True)
    if own_key is not None:
        own = own_key + tf.range(tf.shape(rows)[0])
        is_own = own[:, None] == tf.range(tf.shape(keys)[0])
        similarity = tf.where(is_own, _minus_infinity(rows), similarity)
    return tf.reduce_logsumexp(similarity, axis=1)


def _self_log_sum_exp(rows, bound):
    @tf.custom_gradient
    def compute(rows):
        walk = _SelfWalk(tf.stop_gradient(rows))
        terms = _terms(walk, bound)
        value, kept = walk.value(terms)

        def gradient(upstream):
            return _twice_differentiable(
                lambda upstream: walk.gradient(terms, value, kept, upstream),
                (rows,),
                dense_log_sum_exp,
                upstream,
            )

        return value, gradient

    return compute(rows)


def _cross_log_sum_exp(rows, keys, own_key, bound):
    @tf.custom_gradient
    def compute(rows, keys):
        walk = _CrossWalk(tf.stop_gradient(rows), tf.stop_gradient(keys), own_key)
        terms = _terms(walk, bound)
        value, kept = walk.value(terms)

        def gradient(upstream):
            return _twice_differentiable(
                lambda upstream: walk.gradient(terms, value, kept, upstream),
                (rows, keys),
                lambda rows, keys: dense_log_sum_exp(rows, keys, own_key),
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


def _minus_infinity(like):
    return tf.constant(float("-inf"), like.dtype)


def _finite(x):
    """`x` with 0 in place of −inf, which is what a row without keys gives."""
    return tf.where(tf.equal(x, _minus_infinity(x)), tf.zeros_like(x), x)


def _loop(start, stop, body, state):
    """`state` after ``state = body(p, *state)`` for p from start to stop − 1."""
    if isinstance(start, int) and isinstance(stop, int) and start >= stop:
        return state
    return tf.while_loop(
        lambda p, *_: p < stop,
        lambda p, *state: (p + 1, *body(p, *state)),
        [start, *state],
    )[1:]


def _add(array, index, value):
    return array.write(index, array.read(index) + value)


class _Blocks:
    """A matrix cut into `count` blocks of `size` rows, the last one padded.

    Numbers are Python's where the shape is static and tensors where it is not.
    """

    def __init__(self, matrix):
        self.matrix = matrix
        self.dim = matrix.shape[1]
        self.rows = matrix.shape[0]
        at_least_one = max
        if self.rows is None:
            self.rows, at_least_one = tf.shape(matrix)[0], tf.maximum
        self.count = at_least_one(1, -(-self.rows // TILE))
        self.size = at_least_one(1, -(-self.rows // self.count))
        self.plain = self.split(matrix)

    def split(self, x, fill=0.0):
        """`(rows, …)` → `(count, size, …)`, padded with `fill`."""
        padding = self.count * self.size - self.rows
        x = tf.pad(x, [[0, padding]] + [[0, 0]] * (len(x.shape) - 1), constant_values=fill)
        return tf.reshape(x, [self.count, self.size, *x.shape[1:]])

    def join(self, array):
        """Array of `(size, …)` blocks → `(rows, …)`, the padding cut off."""
        blocks = array.stack()
        joined = tf.reshape(blocks, [self.count * self.size, *blocks.shape[2:]])[: self.rows]
        return tf.ensure_shape(joined, [self.matrix.shape[0], *blocks.shape[2:]])

    def array(self, *shape, fill=0.0):
        """One accumulator a block, of `(size, *shape)`."""
        filled = tf.fill([self.count, self.size, *shape], tf.cast(fill, self.matrix.dtype))
        filled = tf.ensure_shape(filled, [None, None, *shape])
        return tf.TensorArray(
            self.matrix.dtype, self.count, clear_after_read=False, element_shape=filled.shape[1:]
        ).unstack(filled)

    def biased(self, shift, left):
        """The blocks with two more columns: a product of a left and a right block is then
        ``s_ij − shift``, and −inf in the padding, without another walk over the tile for either."""
        ones = tf.ones([self.rows, 1], self.matrix.dtype)
        bias = self.split(ones * (-shift if left else 0.0), fill=float("-inf"))
        ones = self.split(ones, fill=1.0)
        return tf.concat([self.plain, bias, ones] if left else [self.plain, ones, bias], axis=2)


# ------------------------------------------------------------------ the walks over the tiles


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

        i, j, kept, *sums = _loop(0, self.kept, keeping, (0, 0, kept, *terms.start(self.rows)))
        _, _, *sums = _loop(self.kept, self.pairs, passing, (i, j, *sums))
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

        i, j, *results = _loop(0, self.kept, from_kept, (0, 0, *self.results()))
        _, _, *results = _loop(self.kept, self.pairs, again, (i, j, *results))
        return self.join_results(*results)


class _SelfWalk(_Walk):
    """The tiles (i ≤ j) of ``rows · rowsᵀ`` less its diagonal, column by column; each serves (j, i) too."""

    def __init__(self, rows):
        blocks = _Blocks(rows)
        self.begin(blocks, blocks, blocks.count * (blocks.count + 1) // 2)

    def following(self, i, j):
        at_diagonal = tf.equal(i, j)
        return tf.where(at_diagonal, 0, i + 1), tf.where(at_diagonal, j + 1, j)

    def similarity(self, i, j):
        tile = tf.matmul(self.left[i], self.right[j], transpose_b=True)
        fill = tf.fill([tf.shape(tile)[0]], _minus_infinity(tile))
        return tf.cond(tf.equal(i, j), lambda: tf.linalg.set_diag(tile, fill), lambda: tile)

    def add_sums(self, terms, sums, tile, i, j):
        sums = terms.add_rows(sums, tile, i)
        return tf.cond(tf.equal(i, j), lambda: sums, lambda: terms.add_columns(sums, tile, j))

    def results(self):
        return (self.rows.array(self.rows.dim),)

    def add_products(self, terms, results, tile, i, j):
        weights = terms.weights_of_rows_and_columns(tile, i, j)
        result = _add(results[0], i, tf.matmul(weights, self.rows.plain[j]))

        def transposed():
            return _add(result, j, tf.matmul(weights, self.rows.plain[i], transpose_a=True))

        return (tf.cond(tf.equal(i, j), lambda: result, transposed),)

    def join_results(self, result):
        return self.rows.join(result)


class _CrossWalk(_Walk):
    """All tiles of ``rows · keysᵀ`` less each row's own key, row by row."""

    def __init__(self, rows, keys, own_key):
        self.own_key = own_key
        rows, keys = _Blocks(rows), _Blocks(keys)
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
            is_own = own + tf.range(self.rows.size)[:, None] == tf.range(self.keys.size)
            return tf.where(is_own, _minus_infinity(tile), tile)

        return tf.cond((own > -self.rows.size) & (own < self.keys.size), masked, lambda: tile)

    def add_sums(self, terms, sums, tile, i, j):
        return terms.add_rows(sums, tile, i)

    def results(self):
        return self.rows.array(self.rows.dim), self.keys.array(self.keys.dim)

    def add_products(self, terms, results, tile, i, j):
        for_rows, for_keys = results
        weights = terms.weights_of_rows(tile, i)
        for_rows = _add(for_rows, i, tf.matmul(weights, self.keys.plain[j]))
        products = tf.matmul(weights, self.rows.plain[i], transpose_a=True)
        return for_rows, _add(for_keys, j, products)

    def join_results(self, for_rows, for_keys):
        return self.rows.join(for_rows), self.keys.join(for_keys)


# ------------------------------------------------------------- how exponentials stay in range


def _terms(walk, bound):
    """The terms that suit the bound; the tiles' shift is theirs to set."""
    limit = _BOUNDED[walk.rows.matrix.dtype]
    if bound is not None and bound * 1.001 <= limit:
        # A whole number is exact in every matrix format that accelerators use.
        return _Bounded(walk, float(-(-bound * 1.001 // 1)))
    return _Unbounded(walk)


class _Bounded:
    """Tiles are ``exp(s − c)``, with one c for all."""

    def __init__(self, walk, shift):
        self.shift = shift
        walk.set_shift(shift)

    def tile(self, similarity):
        return tf.exp(similarity)

    def start(self, rows):
        return (rows.array(),)

    def add_rows(self, sums, tile, i):
        return (_add(sums[0], i, tf.reduce_sum(tile, axis=1)),)

    def add_columns(self, sums, tile, j):
        # As a product: a reduction over the outer axis walks the tile against its order in memory.
        ones = tf.ones([1, tf.shape(tile)[0]], tile.dtype)
        return (_add(sums[0], j, tf.matmul(ones, tile)[0]),)

    def log(self, sums):
        return sums.unstack(tf.math.log(sums.stack()) + self.shift)

    def prepare(self, rows, value, upstream):
        self.weight = rows.split(upstream * tf.exp(self.shift - _finite(value)))

    def weights_of_rows(self, tile, i):
        return tile * self.weight[i][:, None]

    def weights_of_rows_and_columns(self, tile, i, j):
        return tile * (self.weight[i][:, None] + self.weight[j])


class _Unbounded:
    """Tiles are the similarities themselves; each row keeps the largest seen as its shift."""

    def __init__(self, walk):
        walk.set_shift(0.0)

    def tile(self, similarity):
        return similarity

    def start(self, rows):
        return rows.array(fill=float("-inf")), rows.array()

    def add_rows(self, state, tile, i):
        return self._add(state, tile, i, axis=1)

    def add_columns(self, state, tile, j):
        return self._add(state, tile, j, axis=0)

    def _add(self, state, tile, index, axis):
        maxima, sums = state
        before = maxima.read(index)
        maximum = tf.maximum(before, tf.reduce_max(tile, axis=axis))
        shift = _finite(maximum)
        added = tf.reduce_sum(tf.exp(tile - tf.expand_dims(shift, axis)), axis=axis)
        total = sums.read(index) * tf.exp(before - shift) + added
        return maxima.write(index, maximum), sums.write(index, total)

    def log(self, maxima, sums):
        return sums.unstack(tf.math.log(sums.stack()) + _finite(maxima.stack()))

    def prepare(self, rows, value, upstream):
        self.value = rows.split(_finite(value))
        self.upstream = rows.split(upstream)

    def weights_of_rows(self, tile, i):
        return tf.exp(tile - self.value[i][:, None]) * self.upstream[i][:, None]

    def weights_of_rows_and_columns(self, tile, i, j):
        for_columns = tf.exp(tile - self.value[j]) * self.upstream[j]
        return self.weights_of_rows(tile, i) + for_columns
