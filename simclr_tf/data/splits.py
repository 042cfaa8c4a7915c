"""Split names with slices, in TFDS syntax: `train`, `train[:90%]`, `train[10:20]+train[-5%:]`.

For all data sets but those of TFDS, which parses the same syntax itself.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from simclr_tf.errors import ArgumentError

# A slice is cut from one fixed random order, so that a slice of class folders has all classes.
_ORDER_SEED = 20200213

_TERM = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Term(NamedTuple):
    """One term of a split.

    Attributes:
      name: of the split.
      start, stop: bounds of the slice as written ('90%', '-100'), None where left out.
    """

    name: str
    start: str | None
    stop: str | None


def parse(split: str) -> list[Term]:
    """Returns the terms of a split.

    Args:
      split: in TFDS's slice syntax; several terms are joined by `+`.

    Raises:
      ArgumentError: another syntax, or terms that name different splits.

    Example:

    >>> from simclr_tf.data import splits
    >>> splits.parse("train[:5%]+train[50%:]")
    [Term(name='train', start=None, stop='5%'), Term(name='train', start='50%', stop=None)]
    """
    matches = [_TERM.fullmatch(term.strip()) for term in split.split("+")]
    if not all(matches):
        raise ArgumentError(
            f"split must be a name, with a slice if wanted, or several joined by '+'; got "
            f"{split!r}. "
            "Try train, train[:90%], train[1000:2000] or train[:5%]+train[50%:]."
        )
    terms = [Term(match["name"], match["start"], match["stop"]) for match in matches]
    if len({term.name for term in terms}) > 1:
        raise ArgumentError(
            f"split must consist of slices of one split; got {split!r}. "
            "Only TFDS data sets can join different splits."
        )
    return terms


def take(terms: list[Term], num_examples: int) -> np.ndarray | None:
    """Returns the indices of the examples in the slices, in ascending order within each term.

    Args:
      terms: from `parse`.
      num_examples: number of examples in the whole split.

    Returns:
      int64 [n], or None where the split is whole.

    Example:

    >>> from simclr_tf.data import splits
    >>> splits.take(splits.parse("train[:3]"), 10)
    array([0, 1, 5])
    >>> splits.take(splits.parse("train"), 10) is None
    True
    """
    if all(term.start is None and term.stop is None for term in terms) and len(terms) == 1:
        return None
    # RandomState's streams never change (NEP 19): a slice always means the same images.
    order = np.random.RandomState(_ORDER_SEED).permutation(num_examples)
    return np.concatenate([np.sort(order[_bounds(term, num_examples)]) for term in terms])


def _bounds(term: Term, num_examples: int) -> slice:
    start = _position(term.start, num_examples, default=0)
    stop = _position(term.stop, num_examples, default=num_examples)
    return slice(start, max(start, stop))


def _position(text: str | None, num_examples: int, default: int) -> int:
    """A bound in examples, clipped to the split; percentages are rounded, as in TFDS."""
    if text is None:
        return default
    if text.endswith("%"):
        position = int(np.floor(int(text[:-1]) * num_examples / 100 + 0.5))
    else:
        position = int(text)
    if position < 0:
        position += num_examples
    return min(max(position, 0), num_examples)
