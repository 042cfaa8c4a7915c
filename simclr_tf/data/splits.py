"""Split names with slices, in TFDS syntax: `train`, `train[:90%]`, `train[10:20]+train[-5%:]`.

Used by our own sources; TFDS data sets take the same text to TFDS itself.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from simclr_tf.errors import ArgumentError

# A slice is cut from one fixed random order, so that a slice of class folders has all classes.
_ORDER_SEED = 20200213

_PART = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Part(NamedTuple):
    """One term of a split; `start` and `stop` as written ('90%', '-100'), None where left out."""

    name: str
    start: str | None
    stop: str | None


def parse(split: str) -> list[Part]:
    """The terms of a split.

    Raises:
      ValueError: `split` is not in TFDS's slice syntax, or its terms name different splits.
    """
    matches = [_PART.fullmatch(term.strip()) for term in split.split("+")]
    if not all(matches):
        raise ArgumentError(
            f"a split is a name, with a slice if wanted, joined by '+'; got {split!r}. "
            "Try train, train[:90%], train[1000:2000] or train[:5%]+train[50%:]."
        )
    parts = [Part(match["name"], match["start"], match["stop"]) for match in matches]
    if len({part.name for part in parts}) > 1:
        raise ArgumentError(
            f"the terms of a split must be slices of one split; got {split!r}. "
            "Only TFDS data sets can join different splits."
        )
    return parts


def take(parts: list[Part], num_examples: int) -> np.ndarray | None:
    """Indices that the slices pick, in ascending order term by term; None where all are picked.

    Args:
      parts: from `parse`.
      num_examples: size of the split they cut.

    Returns:
      int64 `[n]`.
    """
    if all(part.start is None and part.stop is None for part in parts) and len(parts) == 1:
        return None
    # RandomState's streams are frozen for good (NEP 19): a slice means the same images for ever.
    order = np.random.RandomState(_ORDER_SEED).permutation(num_examples)
    return np.concatenate([np.sort(order[_bounds(part, num_examples)]) for part in parts])


def _bounds(part: Part, num_examples: int) -> slice:
    start = _position(part.start, num_examples, default=0)
    stop = _position(part.stop, num_examples, default=num_examples)
    return slice(start, max(start, stop))


def _position(text: str | None, num_examples: int, default: int) -> int:
    """A bound in examples, clipped to the split; a percentage goes to the closest, as in TFDS."""
    if text is None:
        return default
    if text.endswith("%"):
        position = int(np.floor(int(text[:-1]) * num_examples / 100 + 0.5))
    else:
        position = int(text)
    if position < 0:
        position += num_examples
    return min(max(position, 0), num_examples)
