"""Log-sum-exp over the negatives of every view, in tiles: memory is linear in the batch size.

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
# Rows and columns: up to this many logits are computed as one dense matrix, not in tiles.
MAX_DENSE_LOGITS = 2**22
_MASKED = -1e4  # added to a masked logit: its exp is 0


def default_tile_size():
    """Returns the rows and columns of a tile: what fits a CPU's caches, or fills a GPU or TPU."""
    return 1024 if on_cpu() else 4096


def _even_tile_size(count):
    """Returns the size of the fewest equal tiles of at most the default size for `count` rows.

    At least 2: TensorFlow's graph optimizer takes a sum of a product and a [1, d] tensor for a
    matrix product with a bias, which its kernel then refuses.
    """
    tiles = -(-count // default_tile_size())
    size = -(-count // tiles)
    return max(2, size) if isinstance(size, int) else tf.maximum(2, size)


# ---- one replica: all views against all views


def symmetric_log_sum_exp(x, tile_size, with_positive=False):
    """Returns log-sum-exp and maximum over the negatives of each view.

    Args:
      x: [V, N, d] float32, V views of N images; squared norms of at most `MAX_PRODUCT`. The logits
        are the products of its rows.
      tile_size: rows and columns of a tile; None chooses.
      with_positive: whether the sum, but not the maximum, includes the other view of the image; for
        V = 2 alone. It saves the masks of the backward pass.

    Returns:
      log_sum: [V, N], over the V (N - 1) views of other images, -inf for N = 1; or over these and
        the other view of the image.
      hardest_negative: [V, N], the largest of these logits; it has no gradient.
    """

    @tf.custom_gradient
    def sums(x):
        tiles = _SymmetricTiles(x, tile_size)
        total, hardest = tiles.join(*_symmetric_sums(tiles, with_positive))

        def gradient(upstream, _):
            weights = tiles.split(tf.math.divide_no_nan(upstream, total))
            return tiles.join(_symmetric_gradient(tiles, weights, with_positive))[0]

        return (tf.math.log(total), hardest), gradient

    return sums(x)


class _SymmetricTiles:
    """x [V, N, d] in V H tiles of b rows; the last tile of each view is padded with masked rows.

    Two views of one image meet on the diagonal of a tile (i, j) with i = j modulo H, and nowhere
    else.
    """

    def __init__(self, x, tile_size):
        self.views = x.shape[0]
        self.images = _length(x, axis=1)
        self.tile_size = _even_tile_size(self.images) if tile_size is None else max(2, tile_size)
        self.per_view = -(-self.images // self.tile_size)  # H
        self.padding = self.per_view * self.tile_size - self.images
        self.x = self.rows = self.columns = self.split(x)  # [V H, b, d]
        if not isinstance(self.padding, int) or self.padding > 0:
            # [x, a, 1] [x, 1, a]^T = x x^T + a_i + a_j, with a = -10,000 for the padding.
            a = _MASKED * (1.0 - self.split(tf.ones([self.views, self.images, 1])))
            self.rows = tf.concat([self.x, a, tf.ones_like(a)], axis=2)
            self.columns = tf.concat([self.x, tf.ones_like(a), a], axis=2)

    @property
    def count(self):
        """Tiles along an axis of the logits, V H."""
        return self.views * self.per_view

    def split(self, x):
        """[V, N, ...] to [V H, b, ...]."""
        x = tf.pad(x, [[0, 0], [0, self.padding]] + [[0, 0]] * (x.shape.rank - 2))
        return tf.reshape(x, [self.count, self.tile_size, *x.shape[2:]])

    def join(self, *tensors):
        """[V H, b, ...] to [V, N, ...], each."""
        shape = [self.views, self.per_view * self.tile_size]
        return [tf.reshape(x, [*shape, *x.shape[2:]])[:, : self.images] for x in tensors]

    def logits(self, i, j):
        """Tile (i, j), [b, b]."""
        return tf.matmul(self.rows[i], self.columns[j], transpose_b=True)

    def above_diagonal(self):
        """The tiles (i, j) with i < j, int32 [count, 2]: those with views of one image; the others.

        The tiles of the diagonal itself are in neither.
        """
        if isinstance(self.per_view, int):
            i, j = np.triu_indices(self.count, k=1)
            same = (j - i) % self.per_view == 0
            pairs = np.stack([i, j], axis=1).astype(np.int32)
            return pairs[same], pairs[~same]
        difference = tf.range(self.count)[None, :] - tf.range(self.count)[:, None]
        same = difference % self.per_view == 0
        above = difference > 0
        return (tf.cast(tf.where(above & choice), tf.int32) for choice in (same, ~same))


def _symmetric_sums(tiles, with_positive):
    """Sums of exp and largest logits over the negatives, [V H, b] each."""
    diagonal = tf.fill([tiles.tile_size], -np.inf)

    def take_rows(k, total, hardest):
        s = tf.linalg.set_diag(tiles.logits(k, k), diagonal)
        total = _add(total, k, tf.reduce_sum(tf.exp(s), axis=1))
        return total, _maximum(hardest, k, tf.reduce_max(s, axis=1))

    def take_both_sides(i, j, s, negatives, total, hardest):
        e = tf.exp(s)
        total = _add(total, i, tf.reduce_sum(e, axis=1))
        total = _add(total, j, tf.reduce_sum(e, axis=0))
        hardest = _maximum(hardest, i, tf.reduce_max(negatives, axis=1))
        return total, _maximum(hardest, j, tf.reduce_max(negatives, axis=0))

    same_images, other_images = tiles.above_diagonal()

    def take_same_images(k, total, hardest):
        i, j = _pair(same_images, k)
        s = tiles.logits(i, j)
        negatives = tf.linalg.set_diag(s, diagonal)
        return take_both_sides(i, j, s if with_positive else negatives, negatives, total, hardest)

    def take_other_images(k, total, hardest):
        i, j = _pair(other_images, k)
        s = tiles.logits(i, j)
        return take_both_sides(i, j, s, s, total, hardest)

    total = tf.zeros([tiles.count, tiles.tile_size])
    state = total, tf.fill(tf.shape(total), -np.inf)
    state = _loop(tiles.count, take_rows, state)
    state = _loop(_length(same_images), take_same_images, state)
    return _loop(_length(other_images), take_other_images, state)


def _symmetric_gradient(tiles, weights, with_positive):
    """dL/dx [V H, b, d], where weights [V H, b] are dL/dlog_sum / sum.

    Logit s_ij counts in row i and in row j: dL/ds_ij = exp(s_ij) (weight_i + weight_j).
    """
    masked = tf.fill([tiles.tile_size], _MASKED)
    same_images, other_images = tiles.above_diagonal()

    def write_rows(k, rows):
        w = weights[k]
        e = tf.exp(tf.linalg.set_diag(tiles.logits(k, k), masked))
        return (rows.write(k, tf.matmul(e * (w[:, None] + w[None, :]), tiles.x[k])),)

    def add_both_sides(i, j, s, rows):
        g = tf.exp(s) * (weights[i][:, None] + weights[j][None, :])
        rows = rows.write(i, rows.read(i) + tf.matmul(g, tiles.x[j]))
        return (rows.write(j, rows.read(j) + tf.matmul(g, tiles.x[i], transpose_a=True)),)

    def add_same_images(k, rows):
        i, j = _pair(same_images, k)
        s = tiles.logits(i, j)
        s = s if with_positive else tf.linalg.set_diag(s, masked)
        return add_both_sides(i, j, s, rows)

    def add_other_images(k, rows):
        i, j = _pair(other_images, k)
        return add_both_sides(i, j, tiles.logits(i, j), rows)

    # Tiles of dL/dx in a TensorArray: adding to one does not copy the others.
    state = (_tile_array(tiles.count, tiles.x.shape[1:]),)
    state = _loop(tiles.count, write_rows, state)
    state = _loop(_length(same_images), add_same_images, state)
    (rows,) = _loop(_length(other_images), add_other_images, state)
    return rows.stack()


# ---- replicas: these rows against those columns


def log_sum_exp(rows, columns, row_images, column_images, tile_size):
    """Returns log-sum-exp and maximum over the negatives of each row.

    Args:
      rows: [n, d] float32. The logits are the products of rows and columns.
      columns: [m, d] float32.
      row_images: [n] int32, 0 or more, the image that a row is a view of.
      column_images: [m] int32, likewise. A column of the same image is not a negative.
      tile_size: rows and columns of a tile; None chooses.

    Returns:
      log_sum: [n], over the columns of other images.
      hardest_negative: [n], the largest of these logits; it has no gradient.
    """

    @tf.custom_gradient
    def sums(rows, columns):
        tiles = _Tiles(rows, columns, row_images, column_images, tile_size)
        log_sum, hardest = tiles.sums()

        def gradient(upstream, _):
            return tiles.gradient(log_sum, upstream)

        return (log_sum, hardest), gradient

    return sums(rows, columns)


def dense_log_sum_exp(rows, columns, row_images, column_images):
    """Returns what `log_sum_exp` does, from the whole matrix of logits [n, m]."""
    logits = tf.matmul(rows, columns, transpose_b=True)  # [n, m]
    same_image = row_images[:, None] == column_images[None, :]
    logits = tf.where(same_image, logits.dtype.min, logits)
    hardest = tf.reduce_max(tf.stop_gradient(logits), axis=1)
    return tf.reduce_logsumexp(logits, axis=1), hardest


class _Tiles:
    """Rows and columns in tiles of b, each padded to a whole number of tiles."""

    def __init__(self, rows, columns, row_images, column_images, tile_size):
        self.tile_size = default_tile_size() if tile_size is None else max(2, tile_size)
        self.counts = _length(rows), _length(columns)
        self.rows, self.columns = self.split(rows), self.split(columns)
        self.row_images, self.column_images = self.split(row_images), self.split(column_images)

    def split(self, x):
        """[n, ...] to [ceil(n / b), b, ...]."""
        count = _length(x)
        tiles = -(-count // self.tile_size)
        padding = tiles * self.tile_size - count
        x = tf.pad(x, [[0, padding]] + [[0, 0]] * (x.shape.rank - 1))
        return tf.reshape(x, [tiles, self.tile_size, *x.shape[1:]])

    def join(self, x, axis):
        """[tiles, b, ...] to [n, ...] of the rows (axis 0) or the columns (axis 1)."""
        return tf.reshape(x, [-1, *x.shape[2:]])[: self.counts[axis]]

    def logits(self, i, j):
        """Tile (i, j) with everything masked that is not a negative, [b, b]."""
        positions = (j * self.tile_size + tf.range(self.tile_size))[None, :]
        s = tf.matmul(self.rows[i], self.columns[j], transpose_b=True)
        same_image = self.row_images[i][:, None] == self.column_images[j][None, :]
        return tf.where(same_image | (positions >= self.counts[1]), s.dtype.min, s)

    def sums(self):
        """Log-sum-exp and largest logits over the negatives, [n] each."""

        def rows_of_tile(i, log_sums, maxima):
            def take_columns(j, top, total):
                s = self.logits(i, j)
                higher = tf.maximum(top, tf.reduce_max(s, axis=1))
                total *= tf.exp(top - higher)
                return higher, total + tf.reduce_sum(tf.exp(s - higher[:, None]), axis=1)

            # A tile whose columns are all masked counts them; the next tile's factor is then 0.
            start = tf.fill([self.tile_size], tf.float32.min), tf.zeros([self.tile_size])
            top, total = _loop(_length(self.columns), take_columns, start)
            return log_sums.write(i, top + tf.math.log(total)), maxima.write(i, top)

        tiles = _length(self.rows)
        arrays = [_tile_array(tiles, [self.tile_size]) for _ in range(2)]
        return [self.join(x.stack(), 0) for x in _loop(tiles, rows_of_tile, arrays)]

    def gradient(self, log_sum, upstream):
        """dL/drows [n, d], dL/dcolumns [m, d]: dL/ds_ij = exp(s_ij - log_sum_i) upstream_i."""
        log_sum, upstream = self.split(log_sum), self.split(upstream)

        def rows_of_tile(i, row_gradients, column_gradients):
            def take_columns(j, row_gradient, column_gradients):
                s = self.logits(i, j)
                g = tf.exp(s - log_sum[i][:, None]) * upstream[i][:, None]
                more = column_gradients.read(j) + tf.matmul(g, self.rows[i], transpose_a=True)
                row_gradient += tf.matmul(g, self.columns[j])
                return row_gradient, column_gradients.write(j, more)

            start = tf.zeros_like(self.rows[0]), column_gradients
            row_gradient, column_gradients = _loop(_length(self.columns), take_columns, start)
            return row_gradients.write(i, row_gradient), column_gradients

        shape = self.rows.shape[1:]
        zeros = _tile_array(_length(self.columns), shape).unstack(tf.zeros_like(self.columns))
        start = _tile_array(_length(self.rows), shape), zeros
        row_gradients, column_gradients = _loop(_length(self.rows), rows_of_tile, start)
        return self.join(row_gradients.stack(), 0), self.join(column_gradients.stack(), 1)


# ---- loops over tiles


def _length(x, axis=0):
    """The length of an axis of x: an int where it is static, else a tensor."""
    return tf.shape(x)[axis] if x.shape[axis] is None else int(x.shape[axis])


def _loop(count, body, state):
    """body(k, *state) -> state for k < count, one at a time, so that one tile is in memory."""
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
    if isinstance(pairs, np.ndarray) and isinstance(k, int):
        return int(pairs[k, 0]), int(pairs[k, 1])
    row = tf.gather(pairs, k)
    return row[0], row[1]


def _add(state, k, values):
    return tf.tensor_scatter_nd_add(state, [[k]], values[None])


def _maximum(state, k, values):
    return tf.tensor_scatter_nd_max(state, [[k]], values[None])


def _tile_array(count, shape):
    return tf.TensorArray(
        tf.float32, size=count, clear_after_read=False, element_shape=tf.TensorShape(shape)
    )
