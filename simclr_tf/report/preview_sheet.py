"""The picture of a preview: images, their views, and each operator alone, with headings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simclr_tf.report.view_sheet import view_sheet

_DPI = 100
_MIN_CELL = 90  # pixels, wide enough for a heading
_HEADING = 0.8  # inches above each sheet


class Sheet(NamedTuple):
    """A sheet of one data set.

    Attributes:
      title: one line.
      images: [n, H, W, 3], uint8, or float in [0, 1].
      columns: dict of a heading to [n, S, S, 3], float32 in [0, 1].

    Example:

    >>> sheet = simclr_tf.report.Sheet("shapes", images, {"view": images / 255})
    >>> sheet.title
    'shapes'
    """

    title: str
    images: np.ndarray
    columns: dict


def draw_preview(sheets, path):
    """Draws sheets below each other, each with a title and a heading over every column.

    Args:
      sheets: list of `Sheet`.
      path: PNG file to write, in a directory that exists.

    Raises:
      OSError: `path` cannot be written.

    Example:

    >>> sheet = simclr_tf.report.Sheet("shapes", images[:2], {"flip": images[:2, :, ::-1] / 255})
    >>> simclr_tf.report.draw_preview([sheet], "preview.png")
    >>> import os; os.path.getsize("preview.png") > 0
    True
    """
    from matplotlib.figure import Figure

    pictures = [_picture(sheet) for sheet in sheets]
    heights = [picture.shape[0] / _DPI + _HEADING for picture in pictures]
    width = max(picture.shape[1] for picture in pictures) / _DPI
    figure = Figure(figsize=(width, sum(heights)), dpi=_DPI)
    top = sum(heights)
    for sheet, picture, height in zip(sheets, pictures, heights):
        _draw(figure, sheet, picture, top)
        top -= height
    figure.savefig(path, format="png", dpi=_DPI)


def _picture(sheet):
    views = list(sheet.columns.values())
    side = max(view.shape[1] for view in views)
    return view_sheet(sheet.images, views, zoom=max(1, -(-_MIN_CELL // side)))


def _draw(figure, sheet, picture, top):
    """Draws a sheet whose upper edge is `top` inches above the lower edge of the figure."""
    width, height = figure.get_size_inches()
    rows, columns = (size / _DPI for size in picture.shape[:2])
    figure.text(0.05 / width, (top - 0.28) / height, sheet.title, fontsize=11, weight="bold")
    box = [0, (top - _HEADING - rows) / height, columns / width, rows / height]
    axes = figure.add_axes(box)
    axes.imshow(np.clip(picture, 0, 1), interpolation="nearest", aspect="auto")
    axes.axis("off")
    count = len(sheet.columns) + 1
    gap = picture.shape[1] % count if count > 1 else 0
    cell = (picture.shape[1] - gap) / count
    for number, heading in enumerate(("image", *sheet.columns)):
        x = (number + 0.5) * cell + (gap if number else 0)
        axes.text(x, -4, heading, ha="center", va="bottom", fontsize=8)
