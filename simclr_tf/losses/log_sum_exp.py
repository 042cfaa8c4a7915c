"""Log-sum-exp over all pairs of a batch, computed in tiles: memory is linear in the batch size.

There are two forms of the same sum. `symmetric_log_sum_exp` is for one replica, where the matrix of
logits is symmetric: a tile above the diagonal serves its rows and its columns, so only half of the
products are computed. `log_sum_exp` takes any rows and any columns, which replicas need. For the
backward pass both keep one number per row and compute the tiles again. The meaning of the logits is
defined in `nt_xent.py`.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from simclr_tf.devices import on_cpu

# `symmetric_log_sum_exp` takes exp of the logits without subtracting their maximum: larger logits
# could overflow in the sum, or leave a row with a sum of 0.
MAX_PRODUCT = 70.0
# Rows against columns: up to this many logits are computed as one dense matrix, not in tiles.
MAX_DENSE_LOGITS = 2**22
_MASKED = -1e4  # added to a product that is out of the race: exp of it is 0


def default_size():
    """Rows and columns of a block: what a processor's caches hold, or what fills a GPU or TPU."""
    return 1024 if on_cpu() else 4096


def _even_size(count):
    """The size of the fewest equal blocks of no more than the default, for so many rows."""
    blocks = -(-count // default_size())
    return -(-count // blocks)


# ---- one replica: all rows against all others


def symmetric_log_sum_exp(x, block_size):
    """For each row of x: log sum exp and maximum of its products with the others.

    Args:
      x: [2, N, d] float32, the two views of N images; squared norms at most `MAX_PRODUCT`.
      block_size: rows and columns of a block; None chooses.

    Returns:
      log_sum: [2, N], over the 2N - 1 other rows.
      hardest_negative: [2, N], the largest logit among the 2N - 2 views of other images; it has
        no gradient.
    """

    @tf.custom_gradient
    def sums(x):
        cut = _SymmetricTiles(x, block_size)
        total, best = cut.join(*_sums_of_pairs(cut))

        def gradient(upstream, _):
            return cut.join(_gradient_of_pairs(cut, cut.split(upstream / total)))[0]

        return (tf.math.log(total), best), gradient

    return sums(x)


class _SymmetricTiles:
    """x [2, N, d] cut into 2H blocks of b rows, each half filled up with rows out of the race.

    So block (i, i) of the products has those of rows with themselves on its diagonal, block
    (i, i + H) those with the other view of the image, and no other block has either.
    """

    def __init__(self, x, block_size):
        self.images = _length(x, axis=1)
        self.block_size = _even_size(self.images) if block_size is None else block_size
        self.half = -(-self.images // self.block_size)  # H
        self.fill = self.half * self.block_size - self.images
        self.x = self.rows = self.columns = self.split(x)  # [2H, b, d]
        if not isinstance(self.fill, int) or self.fill > 0:
            # [x, a, 1] [x, 1, a]^T = x x^T + a_i + a_j, with a = -10,000 for what fills up.
            a = _MASKED * (1.0 - self.split(tf.ones([2, self.images, 1])))
            self.rows = tf.concat([self.x, a, tf.ones_like(a)], axis=2)
            self.columns = tf.concat([self.x, tf.ones_like(a), a], axis=2)

    def split(self, x):
        """[2, N, ...] to [2H, b, ...]."""
        x = tf.pad(x, [[0, 0], [0, self.fill]] + [[0, 0]] * (x.shape.rank - 2))
        return tf.reshape(x, [2 * self.half, self.block_size, *x.shape[2:]])

    def join(self, *parts):
        """[2H, b, ...] to [2, N, ...], each."""
        shape = [2, self.half * self.block_size]
        return [tf.reshape(x, [*shape, *x.shape[2:]])[:, : self.images] for x in parts]

    def products(self, i, j):
        """Block (i, j), [b, b]."""
        return tf.matmul(self.rows[i], self.columns[j], transpose_b=True)

    def pairs(self):
        """The blocks above the diagonal without those of pairs: int32 [count, 2]."""
        blocks = 2 * self.half
        if isinstance(self.half, int):
            return np.array(
                [(i, j) for i in range(blocks) for j in range(i + 1, blocks) if j != i + self.half],
                np.int32,
            ).reshape(-1, 2)
        difference = tf.range(blocks)[None, :] - tf.range(blocks)[:, None]
        return tf.cast(tf.where((difference > 0) & (difference != self.half)), tf.int32)


def _sums_of_pairs(cut):
    """Sums of exp and largest products with another image, [2H, b] each."""
    diagonal = tf.fill([cut.block_size], -np.inf)

    def own(k, total, best):
        others = tf.linalg.set_diag(cut.products(k, k), diagonal)
        total = _add(total, k, tf.reduce_sum(tf.exp(others), axis=1))
        return total, _maximum(best, k, tf.reduce_max(others, axis=1))

    def both_sides(i, j, e, others, total, best):
        total = _add(total, i, tf.reduce_sum(e, axis=1))
        total = _add(total, j, tf.reduce_sum(e, axis=0))
        best = _maximum(best, i, tf.reduce_max(others, axis=1))
        return total, _maximum(best, j, tf.reduce_max(others, axis=0))

    def same_images(k, total, best):
        s = cut.products(k, k + cut.half)
        others = tf.linalg.set_diag(s, diagonal)
        return both_sides(k, k + cut.half, tf.exp(s), others, total, best)

    pairs = cut.pairs()

    def other_images(k, total, best):
        i, j = _pair(pairs, k)
        s = cut.products(i, j)
        return both_sides(i, j, tf.exp(s), s, total, best)

    total = tf.zeros([2 * cut.half, cut.block_size])
    state = total, tf.fill(tf.shape(total), -np.inf)
    state = _loop(2 * cut.half, own, state)
    state = _loop(cut.half, same_images, state)
    return _loop(_length(pairs), other_images, state)


def _gradient_of_pairs(cut, weights):
    """dL/dx [2H, b, d], where weights [2H, b] are dL/dlog_sum / sum.

    Product s_ij counts in row i and in row j: dL/ds_ij = exp(s_ij) (weight_i + weight_j).
    """

    def own(k, rows):
        w = weights[k]
        e = tf.exp(tf.linalg.set_diag(cut.products(k, k), tf.fill([cut.block_size], _MASKED)))
        return rows.write(k, tf.matmul(e * (w[:, None] + w[None, :]), cut.x[k]))

    def one_block(i, j, rows):
        g = tf.exp(cut.products(i, j)) * (weights[i][:, None] + weights[j][None, :])
        rows = rows.write(i, rows.read(i) + tf.matmul(g, cut.x[j]))
        return rows.write(j, rows.read(j) + tf.matmul(g, cut.x[i], transpose_a=True))

    pairs = cut.pairs()
    # Blocks of dL/dx in a list: adding to one does not copy the others.
    rows = _blocks(2 * cut.half, cut.x.shape[1:])
    (rows,) = _loop(2 * cut.half, lambda k, rows: (own(k, rows),), (rows,))
    (rows,) = _loop(cut.half, lambda k, rows: (one_block(k, k + cut.half, rows),), (rows,))
    (rows,) = _loop(_length(pairs), lambda k, rows: (one_block(*_pair(pairs, k), rows),), (rows,))
    return rows.stack()


# ---- replicas: these rows against those columns


def log_sum_exp(rows, columns, own, positive, block_size):
    """For each row: log sum exp and maximum of its products with the columns but some.

    Args:
      rows: [n, d] float32.
      columns: [m, d] float32.
      own: [n] int32, the column that is the row itself and out of the race.
      positive: [n] int32, the column of the other view; out of the race for the maximum alone.
      block_size: rows and columns of a block; None chooses.

    Returns:
      log_sum: [n], over the m - 1 other columns.
      hardest_negative: [n], the largest logit except those of `own` and `positive`; it has no
        gradient.
    """

    @tf.custom_gradient
    def sums(rows, columns):
        grid = _Tiles(rows, columns, own, positive, block_size)
        log_sum, best = grid.sums()

        def gradient(upstream, _):
            return grid.gradient(log_sum, upstream)

        return (log_sum, best), gradient

    return sums(rows, columns)


class _Tiles:
    """Rows and columns in blocks of b, each filled up to a whole number of them."""

    def __init__(self, rows, columns, own, positive, block_size):
        self.block_size = default_size() if block_size is None else block_size
        self.counts = _length(rows), _length(columns)
        self.rows, self.columns = self.split(rows), self.split(columns)
        self.own, self.positive = self.split(own), self.split(positive)

    def split(self, x):
        """[n, ...] to [ceil(n / b), b, ...]."""
        count = _length(x)
        blocks = -(-count // self.block_size)
        fill = blocks * self.block_size - count
        x = tf.pad(x, [[0, fill]] + [[0, 0]] * (x.shape.rank - 1))
        return tf.reshape(x, [blocks, self.block_size, *x.shape[1:]])

    def join(self, x, axis):
        """[blocks, b, ...] to [n, ...] of the rows (axis 0) or the columns (axis 1)."""
        return tf.reshape(x, [-1, *x.shape[2:]])[: self.counts[axis]]

    def products(self, i, j):
        """Block (i, j) without what is out of the race, [b, b], and its columns' places [1, b]."""
        places = (j * self.block_size + tf.range(self.block_size))[None, :]
        s = tf.matmul(self.rows[i], self.columns[j], transpose_b=True)
        out = (places == self.own[i][:, None]) | (places >= self.counts[1])
        return tf.where(out, s.dtype.min, s), places

    def sums(self):
        """Log sums and largest products with other images, [n] each."""

        def of_block(i, logs, bests):
            def take_in(j, top, total, best):
                s, places = self.products(i, j)
                others = tf.where(places == self.positive[i][:, None], s.dtype.min, s)
                best = tf.maximum(best, tf.reduce_max(others, axis=1))
                higher = tf.maximum(top, tf.reduce_max(s, axis=1))
                total *= tf.exp(top - higher)
                return higher, total + tf.reduce_sum(tf.exp(s - higher[:, None]), axis=1), best

            # A block whose columns are all out counts them; the next one's factor is then 0.
            lowest = tf.fill([self.block_size], tf.float32.min)
            start = lowest, tf.zeros([self.block_size]), lowest
            top, total, best = _loop(_length(self.columns), take_in, start)
            return logs.write(i, top + tf.math.log(total)), bests.write(i, best)

        blocks = _length(self.rows)
        lists = [_blocks(blocks, [self.block_size]) for _ in range(2)]
        return [self.join(x.stack(), 0) for x in _loop(blocks, of_block, lists)]

    def gradient(self, log_sum, upstream):
        """dL/drows [n, d], dL/dcolumns [m, d]: dL/ds_ij = exp(s_ij - log_sum_i) upstream_i."""
        log_sum, upstream = self.split(log_sum), self.split(upstream)

        def of_block(i, of_rows, of_columns):
            def take_in(j, of_row, of_columns):
                s, _ = self.products(i, j)
                g = tf.exp(s - log_sum[i][:, None]) * upstream[i][:, None]
                more = of_columns.read(j) + tf.matmul(g, self.rows[i], transpose_a=True)
                return of_row + tf.matmul(g, self.columns[j]), of_columns.write(j, more)

            start = tf.zeros_like(self.rows[0]), of_columns
            of_row, of_columns = _loop(_length(self.columns), take_in, start)
            return of_rows.write(i, of_row), of_columns

        shape = self.rows.shape[1:]
        zeros = _blocks(_length(self.columns), shape).unstack(tf.zeros_like(self.columns))
        start = _blocks(_length(self.rows), shape), zeros
        of_rows, of_columns = _loop(_length(self.rows), of_block, start)
        return self.join(of_rows.stack(), 0), self.join(of_columns.stack(), 1)


# ---- tools


def _length(x, axis=0):
    """Rows of x: an int where known, else a tensor."""
    return tf.shape(x)[axis] if x.shape[axis] is None else int(x.shape[axis])


def _loop(count, body, state):
    """body(k, *state) -> state for k below count; one at a time, so that memory is one block's."""
    if isinstance(count, int) and count <= 2:  # a loop would cost more than it holds
        for k in range(count):
            state = body(k, *state)
        return state
    return tf.while_loop(
        lambda k, *_: k < count,
        lambda k, *state: (k + 1, *body(k, *state)),
        (tf.constant(0), *state),
        parallel_iterations=1,
    )[1:]


def _pair(pairs, k):
    row = tf.gather(pairs, k)
    return row[0], row[1]


def _add(state, k, values):
    return tf.tensor_scatter_nd_add(state, [[k]], values[None])


def _maximum(state, k, values):
    return tf.tensor_scatter_nd_max(state, [[k]], values[None])


def _blocks(count, shape):
    return tf.TensorArray(
        tf.float32, size=count, clear_after_read=False, element_shape=tf.TensorShape(shape)
    )
