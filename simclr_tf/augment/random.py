"""Random numbers that every device agrees on: a function of (seed, row, column) alone.

A seed must return the same views eagerly, in a graph and under XLA. TensorFlow's own stateless
generators do not: with TensorFlow 2.15.1, `tf.random.stateless_uniform(alg="philox")` returns the
same numbers under XLA only where the seed is a constant, other numbers where the seed is a tensor
at run time, as the seed of a training step is; and `alg="threefry"` works under XLA alone.
`tests/test_augment.py` shows the former. This module implements Threefry-2x32 with 20 rounds
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on 32-bit words held in
int64, with operations that all devices have and that do not overflow.

Numbers are indexed by the row of the batch, so those of an image do not depend on the micro-batch
or the replica that it is in.
"""

from __future__ import annotations

import functools
import math

import tensorflow as tf

from simclr_tf.errors import ArgumentError

_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_SIGNATURE = [tf.TensorSpec([], tf.int64)] * 2 + [tf.TensorSpec(None, tf.int64)] * 2


def threefry(key, counter):
    """Returns two random words for a key of two words and a counter of two words.

    Args:
      key: pair of int64 scalar tensors in 0 .. 2^32 - 1.
      counter: pair of int64 tensors in that range, of shapes that broadcast.

    Returns:
      A pair of int64 tensors, uniform in 0 .. 2^32 - 1.
    """
    key, counter = ([tf.cast(word, tf.int64) for word in pair] for pair in (key, counter))
    shape = tf.broadcast_static_shape(counter[0].shape, counter[1].shape)
    return tuple(tf.ensure_shape(word, shape) for word in _traced_threefry(*key, *counter))


# Traced once for all shapes, so that a call is one operation. The five groups of rounds are a loop,
# as XLA of TensorFlow 2.21 would need hours to compile them in a row: it doubles the code with each
# round where a colour jitter uses the result. `tests/test_augment.py` shows it.
@functools.partial(tf.function, autograph=False, input_signature=_SIGNATURE)
def _traced_threefry(key_0, key_1, counter_0, counter_1):
    parity = tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(key_0, key_1), _PARITY)
    keys = tf.stack([key_0, key_1, parity])
    rotations = tf.constant(_ROTATIONS, tf.int64)

    def add_keys(a, b, group):
        b += keys[(group + 1) % 3] + tf.cast(group, tf.int64)
        return a + keys[group % 3], tf.bitwise.bitwise_and(b, _MASK)

    def body(group, a, b):
        a, b = rounds(a, b, tf.unstack(rotations[group % 2]))
        return group + 1, *add_keys(a, b, group + 1)

    shape = tf.broadcast_dynamic_shape(tf.shape(counter_0), tf.shape(counter_1))
    start = add_keys(tf.broadcast_to(counter_0, shape), tf.broadcast_to(counter_1, shape), 0)
    _, a, b = tf.while_loop(lambda group, a, b: group < 5, body, (0, *start))
    return tf.bitwise.bitwise_and(a, _MASK), b


def rounds(a, b, rotations):
    """Applies rounds of Threefry, one for each rotation, to two words held in int64.

    Bits above the lower 32 are cleared in b alone, which is shifted to the right; in sums, they do
    not affect lower ones.
    """
    for rotation in rotations:
        a += b
        turned = tf.bitwise.bitwise_or(
            tf.bitwise.left_shift(b, rotation), tf.bitwise.right_shift(b, 32 - rotation)
        )
        b = tf.bitwise.bitwise_and(tf.bitwise.bitwise_xor(turned, a), _MASK)
    return a, b


def as_seed(seed):
    """Converts a seed to [2] int64 with values in 0 .. 2^32 - 1.

    Args:
      seed: an int; a scalar or [2] integer tensor; or None, which draws a seed from TensorFlow's
        global generator.

    Example:

    >>> simclr_tf.augment.as_seed(7).numpy()
    array([7, 0])
    """
    if seed is None:
        seed = tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
    elif isinstance(seed, int):
        seed = tf.constant([seed & _MASK, (seed >> 32) & _MASK], tf.int64)
    seed = tf.cast(seed, tf.int64)
    seed = seed if seed.shape.rank else tf.stack([seed, tf.zeros_like(seed)])
    return tf.bitwise.bitwise_and(seed, _MASK)


def fold_in(seed, number):
    """Derives a new seed from a seed and a number, such as the index of an operator in a chain.

    Args:
      seed: [2] int64, as `as_seed` returns it.
      number: an integer, or a scalar integer tensor; its lower 32 bits count.

    Returns:
      [2] int64.
    """
    number = tf.bitwise.bitwise_and(tf.cast(number, tf.int64), _MASK)
    one = tf.ones_like(number)
    # Rows and columns stay below 2^32 - 1, so no draw with the same key has this counter.
    return tf.stack(threefry((seed[0], seed[1]), (number, one * _MASK)))


class Draw:
    """The random numbers of every image in one call of an operator.

    Args:
      seed: as for `as_seed`.
      shape: (batch, height, width) of the images; batch may be a tensor, and height and width may
        be [batch] tensors.
      first_row: index of the first image within a larger batch.
    """

    def __init__(self, seed, shape, first_row=0):
        self.seed = as_seed(seed)
        self.shape = shape
        self._first_row = first_row

    def fold_in(self, number):
        """Returns other random numbers for the same images, from the seed `fold_in` returns."""
        return Draw(fold_in(self.seed, number), self.shape, self._first_row)

    def _words(self, trailing):
        count = math.prod(trailing)
        rows = tf.range(self.shape[0], dtype=tf.int64) + tf.cast(self._first_row, tf.int64)
        columns = tf.range(count, dtype=tf.int64)
        words = threefry((self.seed[0], self.seed[1]), (rows[:, None], columns[None, :]))
        return [tf.reshape(word, [-1, *trailing]) for word in words]

    def uniform(self, *trailing):
        """Returns [batch, *trailing] float32 in [0, 1), multiples of 2^-24."""
        return _as_unit(self._words(trailing)[0])

    def normal(self, *trailing):
        """Returns [batch, *trailing] float32, standard normal (Box and Muller)."""
        first, second = (_as_unit(word) for word in self._words(trailing))
        radius = tf.sqrt(-2.0 * tf.math.log(1.0 - first))  # 1 - first lies in (0, 1]
        return radius * tf.cos(2.0 * math.pi * second)


class PredrawnUniforms:
    """Uniform numbers drawn at once, so that a chain of operators runs Threefry only once.

    Operators use it in place of a `Draw`; each call of `uniform` returns the next columns.

    Args:
      draw: the `Draw` that the numbers are drawn from.
      columns: how many numbers to draw per image.

    Attributes:
      shape: as of `Draw`; set it where an operator changes the size of the images.
    """

    def __init__(self, draw, columns):
        self.shape = draw.shape
        self._numbers = draw.uniform(columns)  # [batch, columns]
        self._used = 0

    def uniform(self, count=None):
        """Returns [batch, count] float32 in [0, 1), or [batch] without a count.

        Raises:
          ArgumentError: fewer columns are left than asked for.
        """
        first, self._used = self._used, self._used + (count or 1)
        columns = self._numbers.shape[1]
        if self._used > columns:
            raise ArgumentError(
                f"columns must cover all operators of the chain; got {columns}, and {self._used} "
                "are used. Draw more columns."
            )
        return self._numbers[:, first] if count is None else self._numbers[:, first : self._used]


def _as_unit(word):
    """Maps the upper 24 of 32 bits to float32 in [0, 1)."""
    return tf.cast(tf.bitwise.right_shift(word, 8), tf.float32) * 2.0**-24
