"""The tiles of a similarity matrix, walked in order: once for values, once more for the gradient.

A walk knows which tiles there are, which pairs are left out, and what each tile serves. What is added
up of a tile is its terms' business (`tile_terms`).
"""

import abc

import tensorflow as tf

from keras_sslmeta.mechanisms import row_blocks

# Memory for tiles that the gradient uses again: constant, so that memory does not grow with the batch.
KEPT_BYTES = 144 * 2**20


class Walk(abc.ABC):
    """The tiles of a similarity matrix in their order; subclasses say which, and what each serves."""

    def __init__(self, rows, keys, pairs):
        self.rows, self.keys, self.pairs = rows, keys, pairs
        self.left, self.right = rows.plain, keys.plain
        if not (rows.is_full() and keys.is_full()):
            self.left, self.right = rows.masked(left=True), keys.masked(left=False)
        tile_bytes = rows.size * keys.size * rows.matrix.dtype.size
        if isinstance(pairs, int) and isinstance(tile_bytes, int):
            self.kept = min(pairs, KEPT_BYTES // tile_bytes)
        else:
            self.kept = tf.minimum(pairs, KEPT_BYTES // tile_bytes)

    @abc.abstractmethod
    def following(self, i, j):
        """The pair of blocks after (i, j)."""

    @abc.abstractmethod
    def similarity(self, i, j):
        """The tile of blocks i and j, −inf where a pair is left out."""

    @abc.abstractmethod
    def start(self, terms):
        """Sums of nothing."""

    @abc.abstractmethod
    def add_sums(self, terms, sums, tile, i, j):
        """`sums` with what the tile adds to them."""

    @abc.abstractmethod
    def finish(self, terms, sums):
        """The values that the sums stand for, a tuple of `(n,)`."""

    @abc.abstractmethod
    def weigh(self, terms, values, upstreams):
        """Takes note of the values' gradients; returns the zeros to which products are added."""

    @abc.abstractmethod
    def add_products(self, terms, results, tile, i, j):
        """`results` with what the tile adds to them."""

    @abc.abstractmethod
    def join_results(self, *results):
        """The gradients, of the inputs' shapes."""

    def value(self, terms):
        """The values, and the kept tiles."""
        tile_shape = [self.rows.plain.shape[1], self.keys.plain.shape[1]]
        kept = row_blocks.new_array(self.rows.matrix.dtype, self.kept, tile_shape)

        def keeping(p, i, j, kept, *sums):
            tile = terms.tile(self.similarity(i, j))
            i_next, j_next = self.following(i, j)
            return i_next, j_next, kept.write(p, tile), *self.add_sums(terms, sums, tile, i, j)

        def passing(p, i, j, *sums):
            tile = terms.tile(self.similarity(i, j))
            return *self.following(i, j), *self.add_sums(terms, sums, tile, i, j)

        state = row_blocks.loop(0, self.kept, keeping, (0, 0, kept, *self.start(terms)))
        i, j, kept, *sums = state
        _, _, *sums = row_blocks.loop(self.kept, self.pairs, passing, (i, j, *sums))
        return self.finish(terms, sums), kept

    def gradient(self, terms, values, kept, upstreams):
        """The gradients with respect to the walk's inputs."""
        results = self.weigh(terms, values, upstreams)

        def again(p, i, j, *results):
            tile = terms.tile(self.similarity(i, j))
            return *self.following(i, j), *self.add_products(terms, results, tile, i, j)

        def from_kept(p, i, j, *results):
            tile = kept.read(p)
            return *self.following(i, j), *self.add_products(terms, results, tile, i, j)

        i, j, *results = row_blocks.loop(0, self.kept, from_kept, (0, 0, *results))
        _, _, *results = row_blocks.loop(self.kept, self.pairs, again, (i, j, *results))
        return self.join_results(*results)


class SelfWalk(Walk):
    """The tiles (i ≤ j) of ``rows · rowsᵀ`` less each row's own group, column by column.

    Each serves (j, i) too.
    """

    def __init__(self, rows, group):
        blocks = row_blocks.Blocks(rows, multiple=group)
        # Every tile on the diagonal leaves out the same pairs.
        is_own = row_blocks.same_group(0, blocks.size, blocks.size, group)
        self.less_own = tf.where(is_own, row_blocks.minus_infinity(rows), tf.zeros([], rows.dtype))
        super().__init__(blocks, blocks, blocks.count * (blocks.count + 1) // 2)

    def following(self, i, j):
        at_diagonal = tf.equal(i, j)
        return tf.where(at_diagonal, 0, i + 1), tf.where(at_diagonal, j + 1, j)

    def similarity(self, i, j):
        tile = tf.matmul(self.left[i], self.right[j], transpose_b=True)
        return row_blocks.cond(i, j, lambda: tile + self.less_own, lambda: tile)

    def start(self, terms):
        return terms.start(self.rows)

    def add_sums(self, terms, sums, tile, i, j):
        sums = terms.add_rows(sums, tile, i)
        return row_blocks.cond(i, j, lambda: sums, lambda: terms.add_columns(sums, tile, j))

    def finish(self, terms, sums):
        return (self.rows.join(terms.value(*sums)),)

    def weigh(self, terms, values, upstreams):
        self.side = terms.side(self.rows, values[0], upstreams[0])
        return self.rows.array(self.rows.dim), self.rows.transposed_array()

    def add_products(self, terms, results, tile, i, j):
        left, right = self.rows.plain[i], self.rows.plain[j]

        def on_diagonal():
            weights = terms.weights(tile, self.side, i, self.side, j)
            return row_blocks.add(results[0], i, tf.matmul(weights, right)), results[1]

        def above():
            of_rows, of_columns = terms.products(tile, left, right, self.side, i, self.side, j)
            return (
                row_blocks.add(results[0], i, of_rows),
                row_blocks.add(results[1], j, of_columns),
            )

        return row_blocks.cond(i, j, on_diagonal, above)

    def join_results(self, of_rows, of_columns):
        def sum_of_block(i, of_rows, of_columns):
            return row_blocks.add(of_rows, i, tf.transpose(of_columns.read(i))), of_columns

        # Block by block: both as whole tensors would be the most memory of the walk.
        state = of_rows, of_columns
        return self.rows.join(row_blocks.loop(0, self.rows.count, sum_of_block, state)[0])


class CrossWalk(Walk):
    """All tiles of ``rows · keysᵀ`` less each row's own group, row by row.

    `selection` (`pair_selection.Selection`) may leave out more pairs, or weigh them.
    """

    def __init__(self, rows, keys, own_key=None, group=1, selection=None):
        self.own_key, self.group, self.selection = own_key, group, selection
        rows = row_blocks.Blocks(rows, multiple=group)
        keys = row_blocks.Blocks(keys, multiple=group)
        super().__init__(rows, keys, rows.count * keys.count)
        if selection is not None:
            self.of_rows = [[rows.split(x) for x in rule.of_rows] for rule in selection.rules]
            self.of_keys = [[keys.split(x) for x in rule.of_keys] for rule in selection.rules]

    def following(self, i, j):
        at_end = tf.equal(j, self.keys.count - 1)
        return tf.where(at_end, i + 1, i), tf.where(at_end, 0, j + 1)

    def similarity(self, i, j):
        tile = self.unselected(i, j)
        if self.selection is None:
            return tile
        return self.selection.apply(tile, *self.information(i, j))

    def information(self, i, j):
        """What the rules of the selection know of the rows and keys of a tile."""
        of_rows = [[x[i] for x in parts] for parts in self.of_rows]
        return of_rows, [[x[j] for x in parts] for parts in self.of_keys]

    def unselected(self, i, j):
        """The tile before the selection."""
        tile = tf.matmul(self.left[i], self.right[j], transpose_b=True)
        if self.own_key is None:
            return tile
        # The own key of the tile's first row, counted from the tile's first key.
        own = self.own_key + i * self.rows.size - j * self.keys.size

        def masked():
            return row_blocks.leave_out_own(tile, own, self.group)

        if isinstance(own, int):
            return masked() if -self.rows.size < own < self.keys.size else tile
        return tf.cond((own > -self.rows.size) & (own < self.keys.size), masked, lambda: tile)

    def start(self, terms):
        return terms.start(self.rows)

    def add_sums(self, terms, sums, tile, i, j):
        return terms.add_rows(sums, tile, i)

    def finish(self, terms, sums):
        return (self.rows.join(terms.value(*sums)),)

    def weigh(self, terms, values, upstreams):
        self.side = terms.side(self.rows, values[0], upstreams[0])
        return self.rows.array(self.rows.dim), self.keys.transposed_array()

    def products(self, terms, tile, i, j):
        return terms.products(tile, self.rows.plain[i], self.keys.plain[j], self.side, i)

    def add_products(self, terms, results, tile, i, j):
        of_rows, of_keys = self.products(terms, tile, i, j)
        return row_blocks.add(results[0], i, of_rows), row_blocks.add(results[1], j, of_keys)

    def join_results(self, of_rows, of_keys):
        return self.rows.join(of_rows), self.keys.join_transposed(of_keys)


class TwoSidedWalk(CrossWalk):
    """The same tiles, each for the values of its rows and for those of its columns."""

    def start(self, terms):
        return *terms.start(self.rows), *terms.start(self.keys)

    def add_sums(self, terms, sums, tile, i, j):
        half = len(sums) // 2
        rows = terms.add_rows(sums[:half], tile, i)
        return *rows, *terms.add_columns(sums[half:], tile, j)

    def finish(self, terms, sums):
        half = len(sums) // 2
        of_rows, of_keys = terms.value(*sums[:half]), terms.value(*sums[half:])
        return self.rows.join(of_rows), self.keys.join(of_keys)

    def weigh(self, terms, values, upstreams):
        self.key_side = terms.side(self.keys, values[1], upstreams[1])
        return super().weigh(terms, values, upstreams)

    def products(self, terms, tile, i, j):
        left, right = self.rows.plain[i], self.keys.plain[j]
        return terms.products(tile, left, right, self.side, i, self.key_side, j)
