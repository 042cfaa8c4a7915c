"""Sheets of views: pictures of images next to random views of them."""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

from simclr_tf.images import as_float

_GAP = 2  # white pixels around each view


def draw_views(images, views, path, zoom=None, extents=None):
    """Draws a sheet: each row shows an image, then views of it.

    The images are shown whole, resized to the largest view and filled up with white where they are
    not square.

    Args:
      images: [n, H, W, 3], uint8, or float in [0, 1].
      views: list of [n, S, S, 3] float32 in [0, 1], a column each; S may differ between columns.
      path: PNG file to write; directories above it are made.
      zoom: int, sheet pixels per view pixel; None is 2 for views of up to 96 pixels, 1 above.
      extents: int [n, 2], the height and width of each image where it fills only the upper left of
        [H, W], as in `images.Batch`; None where all images fill it.

    Raises:
      ArgumentError: `images` of another shape or dtype.
      OSError: `path` cannot be written.

    Example:

    >>> flipped = images[:, :, ::-1] / 255.0
    >>> simclr_tf.report.draw_views(images, [flipped], "views.png")
    >>> import os; os.path.getsize("views.png") > 0
    True
    """
    _save_image(view_sheet(images, views, zoom, extents), path)


def view_sheet(images, views, zoom=None, extents=None):
    """The picture that `draw_views` writes, with the same arguments: float [height, width, 3].

    Example:

    >>> flipped = images[:, :, ::-1] / 255.0
    >>> simclr_tf.report.view_sheet.view_sheet(images, [flipped], zoom=1).shape
    (288, 78, 3)
    """
    views = [np.asarray(column) for column in views]
    size = max(column.shape[1] for column in views)
    columns = [_centred(column, size) for column in (_thumbnails(images, extents, size), *views)]
    columns[0] = np.pad(columns[0], [(0, 0), (0, 0), (0, 3 * _GAP), (0, 0)], constant_values=1.0)
    sheet = np.concatenate([np.concatenate(list(c), axis=0) for c in columns], axis=1)
    zoom = zoom or (2 if size <= 96 else 1)
    return np.clip(sheet, 0.0, 1.0).repeat(zoom, axis=0).repeat(zoom, axis=1)


def _thumbnails(images, extents, size):
    """Whole images, resized to fit [size, size] and filled up with white: [n, size, size, 3]."""
    images = 1.0 - as_float(images)  # resize_with_pad adds zeros, which become white below
    if extents is None:
        extents = [images.shape[1:3]] * len(images)
    thumbnails = [
        tf.image.resize_with_pad(image[:height, :width], size, size, antialias=True)
        for image, (height, width) in zip(images, np.asarray(extents))
    ]
    return 1.0 - np.stack(thumbnails)


def _centred(images, size):
    """Images [n, S, S, 3] in the middle of white [size, size], with a gap around."""
    before = (size - images.shape[1]) // 2
    after = size - images.shape[1] - before
    sides = (_GAP + before, _GAP + after)
    return np.pad(images, [(0, 0), sides, sides, (0, 0)], constant_values=1.0)


def _save_image(pixels, path):
    from matplotlib import image

    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.imsave(path, pixels)
