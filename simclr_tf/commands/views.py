"""The values of --views and --view_sizes: how many views, of which sizes, from which crops.

Nothing here needs TensorFlow.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from simclr_tf.commands.flags import MAX_SIDE
from simclr_tf.errors import UsageError

_GROUP = re.compile(r"(\d+)x(\d+)(?:@([\d.]+)-([\d.]+))?")


class ViewGroup(NamedTuple):
    """Views of one size whose crops have one range of areas.

    Attributes:
      count: number of views, 1 or more.
      size: side of the views in pixels.
      area: (minimum, maximum) of the crops' areas, fractions of the image; None: as of all views.
    """

    count: int
    size: int
    area: tuple | None


def parse_views(text):
    """Reads groups of views such as "2x32,4x16@0.1-0.35", a list of `ViewGroup`s.

    Raises:
      UsageError: another form, sizes or areas out of range, or fewer than two views in all.
    """
    groups = [_group(part.strip(), text) for part in text.split(",")]
    count = sum(group.count for group in groups)
    if count < 2:
        raise UsageError(
            f"--views must be two views or more; got {text!r}, one. Write 2x32, or 1x32,4x16."
        )
    return groups


def parse_view_sizes(text):
    """Reads sizes of views such as "16:0.5,24:0.8,32:1", a list of (side, end).

    Raises:
      UsageError: another form.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return [(int(size), float(end)) for size, end in pairs]
    except ValueError:
        raise UsageError(
            f"--view_sizes must be side:end, ... as in 16:0.5,24:0.8,32:1; got {text!r}."
        ) from None


def _group(part, text):
    found = _GROUP.fullmatch(part)
    if not found:
        raise UsageError(
            "--views must be COUNTxSIZE, ... with the areas of the crops behind an @ if they "
            f"differ, as in 2x32,4x16@0.1-0.35; got {text!r}."
        )
    count, size, low, high = found.groups()
    if not (int(count) >= 1 and 1 <= int(size) <= MAX_SIDE):
        raise UsageError(
            f"--views must have counts of 1 or more and sides of 1 to {MAX_SIDE} pixels; got "
            f"{part!r} in {text!r}."
        )
    if low is None:
        return ViewGroup(int(count), int(size), None)
    try:
        area = float(low), float(high)
    except ValueError:
        area = 0.0, 0.0
    if not 0.0 < area[0] <= area[1] <= 1.0:
        raise UsageError(
            "the areas of --views must be fractions of the image above 0 and up to 1, the smaller "
            f"one first; got {part!r} in {text!r}. Write 4x16@0.1-0.35."
        )
    return ViewGroup(int(count), int(size), area)
