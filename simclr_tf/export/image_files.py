"""Decodes image files in a TensorFlow graph to the same picture as `data.decode`.

TensorFlow's kernels ignore EXIF orientation, colour palettes of BMP and transparency. Files that
would come out as another picture are refused by their headers.
"""

from __future__ import annotations

import tensorflow as tf

MAX_PIXELS = 50_000_000  # in an image file; a decoded pixel takes three bytes

# The Exif header of a JPEG or PNG and, after it, an orientation other than 1 (tag 0x0112, SHORT,
# one value) in either byte order. `\C` is any byte.
_TURNED = (
    r"\C*(Exif\x00\x00|eXIf)\C*"
    r"(\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]\x00"
    r"|\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08])\C*"
)
_HEAD_BYTES = 2**17  # start of the file that is searched; Exif data takes at most 64 KiB
_GIF_HEADER_BYTES = 2048  # the palette takes 768 bytes, and the first frame follows


def decode_image(file):
    """Decodes a JPEG, PNG, BMP or GIF file; transparency of a PNG is laid on white.

    Args:
      file: a scalar string tensor, the bytes of the file.

    Returns:
      uint8 [height, width, 3].

    Raises:
      tf.errors.InvalidArgumentError: the file is not an image, has over `MAX_PIXELS` pixels or an
        EXIF orientation other than 1, or is a JPEG in CMYK, a BMP other than 24-bit uncompressed,
        or a GIF with transparency.
    """
    with tf.control_dependencies(_assertions(file)):
        image = tf.case(
            [
                (_starts_with(file, b"\x89PNG"), lambda: _decode_png(file)),
                (_starts_with(file, b"\xff\xd8\xff"), lambda: _decode_jpeg(file)),
            ],
            default=lambda: _decode_other(file),
        )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_png(file):
    def on_white():
        image = tf.cast(tf.io.decode_png(file, channels=4), tf.int32)
        color, alpha = image[..., :3], image[..., 3:]
        return tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    return tf.cond(_has_alpha(file), on_white, lambda: tf.io.decode_png(file, channels=3))


def _has_alpha(png):
    """Returns whether a PNG has an alpha channel (bit 2 of its colour type) or a tRNS chunk."""
    color_type = _numbers(png, 25, tf.uint8, 1)[0]
    transparent = tf.strings.regex_full_match(_head(png), r"\C*tRNS\C*")
    return (color_type >= 4) | transparent


def _decode_jpeg(file):
    # The default method is faster and less accurate than that of Pillow.
    return tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_other(file):
    return tf.io.decode_image(file, channels=3, expand_animations=False)


def _starts_with(file, start):
    return tf.strings.substr(file, 0, len(start)) == start


def _head(file):
    return tf.strings.substr(file, 0, _HEAD_BYTES)


def _numbers(file, start, dtype, count, little_endian=True):
    """Returns numbers in the header as int64 [count]."""
    header = tf.strings.substr(file, start, count * dtype.size)
    return tf.cast(tf.io.decode_raw(header, dtype, little_endian=little_endian), tf.int64)


def _assertions(file):
    """Returns the assertions on the header of an image file."""

    def jpeg():
        height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(file, tf.int64), 3)
        return height * width, (channels != 4) & ~_is_turned(file)

    def png():
        pixels = tf.reduce_prod(_numbers(file, 16, tf.int32, 2, little_endian=False))
        depth = _numbers(file, 24, tf.uint8, 1)[0]
        color_type = _numbers(file, 25, tf.uint8, 1)[0]
        # TensorFlow decodes greys of under eight bits with transparency to other values.
        dark = (color_type == 0) & (depth < 8) & _has_alpha(file)
        return pixels, ~_is_turned(file) & ~dark

    def gif():
        return tf.reduce_prod(_numbers(file, 6, tf.uint16, 2)), ~_is_transparent_gif(file)

    def bmp():
        bits, compression = _numbers(file, 28, tf.uint16, 2)[0], _numbers(file, 30, tf.int32, 1)[0]
        pixels = tf.abs(tf.reduce_prod(_numbers(file, 18, tf.int32, 2)))
        return pixels, (bits == 24) & (compression == 0)

    pixels, supported = tf.case(
        [
            (_starts_with(file, b"\xff\xd8\xff"), jpeg),
            (_starts_with(file, b"\x89PNG"), png),
            (_starts_with(file, b"GIF8"), gif),
            (_starts_with(file, b"BM"), bmp),
        ],
        default=lambda: (
            tf.constant(0, tf.int64),
            tf.constant(True),
        ),  # not an image: decoding fails
    )
    return [
        tf.debugging.assert_less_equal(
            pixels,
            tf.constant(MAX_PIXELS, tf.int64),
            f"an image file may have at most {MAX_PIXELS} pixels",
        ),
        tf.debugging.Assert(
            supported,
            [
                "an image file must be upright (EXIF orientation 1), a JPEG not CMYK, a BMP 24-bit "
                "and uncompressed, a GIF without transparency. Send the upright image as RGB PNG."
            ],
        ),
    ]


def _is_turned(file):
    return tf.strings.regex_full_match(_head(file), _TURNED)


def _is_transparent_gif(file):
    """Returns whether the first frame of a GIF has the transparency flag.

    It is in the first graphic control extension, unless the image starts right after the palette.
    """
    size = tf.minimum(tf.strings.length(file), _GIF_HEADER_BYTES)
    x = tf.io.decode_raw(tf.strings.substr(file, 0, size), tf.uint8)
    extension = (x[:-3] == 0x21) & (x[1:-2] == 0xF9) & (x[2:-1] == 4)
    first = tf.argmax(tf.cast(extension, tf.int32))  # further ones are those of later frames
    flags = tf.cast(x[10], tf.int32)
    palette_bytes = tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)
    has_extension = (x[13 + palette_bytes] == 0x21) & tf.reduce_any(extension)
    return has_extension & (x[3:][first] % 2 == 1)
