"""Pictures as data URLs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io

import numpy as np

_EXACT_SIDE = 48  # up to this side a picture is stored without loss: its pixels are to be seen
_QUALITY = 85


def data_url(pixels, max_width=None):
    """A picture as a URL that holds it: PNG where it is small, else JPEG.

    Args:
      pixels: [H, W, 3], uint8, or float in [0, 1].
      max_width: pixels, above which it is reduced; None: it is not.

    Example:

    >>> simclr_tf.report.pictures.data_url(images[0])[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return image_url(Image.fromarray(pixels), max_width)


def image_url(image, max_width=None):
    """The same for a `PIL.Image`."""
    from PIL import Image

    image = image.convert("RGB")
    if max_width and image.width > max_width:
        height = max(1, round(image.height * max_width / image.width))
        image = image.resize((max_width, height), Image.Resampling.LANCZOS)
    file, kind = io.BytesIO(), "png" if max(image.size) <= _EXACT_SIDE else "jpeg"
    image.save(file, kind, **({"quality": _QUALITY} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def file_url(path, max_width):
    """The picture in a file as a URL that holds it."""
    from PIL import Image

    with Image.open(path) as image:
        return image_url(image, max_width)


def resized(images, side):
    """Square images [n, S, S, 3] uint8, reduced to at most `side` pixels: uint8.

    Example:

    >>> simclr_tf.report.pictures.resized(images, 8).shape
    (8, 8, 8, 3)
    """
    from PIL import Image

    images = np.asarray(images)
    if images.shape[1] <= side:
        return images
    size, box = (side, side), Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(each).resize(size, box)) for each in images])


def sprite(thumbnails, columns):
    """Thumbnails [n, s, s, 3] in one picture of that many columns, row by row.

    Example:

    >>> simclr_tf.report.pictures.sprite(images, columns=3).shape
    (96, 96, 3)
    """
    count, side = len(thumbnails), thumbnails.shape[1]
    rows = -(-count // columns)
    cells = np.zeros([rows * columns, side, side, 3], np.uint8)
    cells[:count] = thumbnails
    grid = cells.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return grid.reshape(rows * side, columns * side, 3)
