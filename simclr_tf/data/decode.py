"""An encoded image, of any format, mode, size and orientation, to uint8 RGB of one size.

Made for threads: Pillow releases the interpreter lock while it decodes and resizes.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

from simclr_tf.errors import CorruptImageError

# Decode at no more than this many times the size wanted before the exact bicubic resize.
_REDUCING_GAP = 2.0


def decode(image: bytes | np.ndarray, size: int) -> np.ndarray:
    """One square RGB image.

    EXIF orientation is applied; transparency is laid on white; 16-bit greys keep their upper eight
    bits; of an animation the first frame is taken. The shorter side is resized to `size` (bicubic,
    antialiased) and the centre square cut out.

    Args:
      image: an encoded file, or uint8 `[height, width, 3]`.
      size: side of the result, pixels.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      CorruptImageError: truncated, unknown to Pillow, or larger than Pillow's limit against
        decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if isinstance(image, np.ndarray) and image.shape == (size, size, 3):
        return image
    return np.asarray(_centre_square(_picture(image, lambda width, height: size), size))


def decode_whole(image: bytes | np.ndarray, side: int) -> tuple[np.ndarray, int, int]:
    """The whole image, its proportions kept, in the upper left corner of a square of zeros.

    An image with a longer side than the square's is reduced (bicubic, antialiased); a smaller one
    keeps its pixels. The rest is as in `decode`, errors too.

    Args:
      image: an encoded file, or uint8 `[height, width, 3]`.
      side: of the square, pixels.

    Returns:
      uint8 `[side, side, 3]`, and the height and the width of the image in it.
    """

    def shorter_side(width, height):
        return max(1, round(min(width, height) * min(1.0, side / max(width, height))))

    picture = _picture(image, shorter_side)
    scale = min(1.0, side / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize(
            (width, height), Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP
        )
    square = np.zeros([side, side, 3], np.uint8)
    square[:height, :width] = np.asarray(picture)
    return square, height, width


def _picture(image: bytes | np.ndarray, shorter_side) -> Image.Image:
    """Upright RGB, of at least the shorter side (of width and height) that will be wanted."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    picture = _open(image)
    try:
        gap = int(shorter_side(*picture.size) * _REDUCING_GAP)
        picture.draft(None, (gap, gap))  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is enough
        picture.load()
        return _rgb(_upright(picture))
    except Exception as error:
        # Damaged files make Pillow's readers raise nearly anything (OSError, SyntaxError,
        # struct.error, IndexError, ...). None of it is lost: the reason is recorded and counted.
        raise CorruptImageError(_reason(error)) from error


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Width and height in pixels, from the header alone. Raises `CorruptImageError`."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return _open(image).size


def _open(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
    except Exception as error:  # see `decode`
        raise CorruptImageError(_reason(error)) from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit and picture.width * picture.height > limit:
        raise CorruptImageError(
            f"{picture.width} x {picture.height} is over the limit of {limit} pixels"
        )
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can identify"
    return f"{type(error).__name__}: {error}"


def _upright(picture: Image.Image) -> Image.Image:
    if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit greys scaled to eight bits, transparency composited on white."""
    if picture.mode.startswith("I"):  # I, I;16, I;16B: grey PNGs of 16 bits
        grey = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _centre_square(picture: Image.Image, size: int) -> Image.Image:
    """The centre square, resized to `size`.

    The same as the shorter side resized to `size` and then a centre crop, but an image of extreme
    proportions never grows into a huge one on the way.
    """
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return picture if width == height else picture.crop(box)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box, _REDUCING_GAP)
