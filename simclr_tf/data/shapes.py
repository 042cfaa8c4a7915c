"""The embedded data set `shapes`: coloured shapes drawn in code from a seed, ten classes.

An image is six copies of one outline on a dark background. The outline is the class, and the only
property that two crops of an image always have in common; hue, lightness, size, tilt and position
differ between the copies. In another drawing, of `draw_with_attributes`, all copies of an image
have one hue and one orientation too, which are further labels. Names and splits of the data sets
are in `by_name`.
"""

from __future__ import annotations

import numpy as np

from simclr_tf.errors import ArgumentError

# Images are drawn in blocks of this size, each from its own stream (seed, block), so that an image
# does not depend on the number of images drawn. It is divisible by 10: every ten consecutive images
# have every class.
_BLOCK = 250

COPIES = 6
RADIUS = (0.18, 0.22)  # of the image's side
TILT_DEGREES = 20
SHAKE = 0.12  # of the side: width of the range of a copy's random offset from the pattern
GROUND = (0.15, 0.35)  # mean luminance
GROUND_SLOPE = 0.1  # maximum difference between a corner's luminance and the mean
GROUND_CHROMA = 0.04
CONTRAST = (0.4, 0.55)  # a copy's luminance above the ground under it
CHROMA = 0.25

# Of the drawing with attributes.
HUE_NAMES = tuple(f"hue_{degrees}" for degrees in range(0, 360, 45))
ORIENTATION_NAMES = ("up", "left", "down", "right")  # quarter turns counterclockwise
HUE_SPREAD = 0.03  # turns: width of the range of hues of a class, which are 1/8 apart
SHADE = 0.15  # luminance of a copy between its centre and its upper edge, which is lit

# Sine and cosine of whole degrees, rounded so that every C library gives the same pixels.
_COS = np.round(np.cos(np.radians(np.arange(360))), 12)
_SIN = np.round(np.sin(np.radians(np.arange(360))), 12)


def draw(num_examples: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Draws images of shapes and their classes.

    Example i depends on (seed, i) and the size alone; the size changes the resolution, not the
    scene. Examples 10 j to 10 j + 9 have all ten classes, in random order.

    Args:
      num_examples: number of images, 0 or more.
      seed: 0 or more; every seed draws other images.
      size: side of the images, pixels, 8 or more.

    Returns:
      images: uint8 [num_examples, size, size, 3], RGB.
      labels: int64 [num_examples], indices into `CLASS_NAMES`.

    Raises:
      ArgumentError: a value below its minimum.

    Example:

    >>> from simclr_tf.data import shapes
    >>> drawn, classes = shapes.draw(10, seed=0)
    >>> drawn.shape, sorted(classes.tolist())
    ((10, 32, 32, 3), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    images, labels = _draw_blocks(num_examples, seed, size, _draw_block)
    return images, labels[0]


def draw_with_attributes(
    num_examples: int, seed: int, size: int = 32
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws images of shapes whose copies have one hue and one orientation, with these as labels.

    The outlines, their positions and sizes are as in `draw`, and so is what an example depends on.
    The hue class, the orientation and the class are independent of one another. Every copy is
    turned by the orientation's quarter turns, give or take a tilt of up to 20 degrees, and is
    lighter towards its own upper edge, so that a disc has an orientation too.

    Args:
      num_examples, seed, size: as of `draw`.

    Returns:
      images: uint8 [num_examples, size, size, 3], RGB.
      labels: "class", "color" and "orientation", int64 [num_examples] each: indices into
        `CLASS_NAMES`, `HUE_NAMES` and `ORIENTATION_NAMES`.

    Raises:
      ArgumentError: a value below its minimum.

    Example:

    >>> from simclr_tf.data import shapes
    >>> drawn, labels = shapes.draw_with_attributes(10, seed=0)
    >>> drawn.shape, sorted(labels)
    ((10, 32, 32, 3), ['class', 'color', 'orientation'])
    """
    images, labels = _draw_blocks(num_examples, seed, size, _draw_block_with_attributes)
    return images, dict(zip(("class", "color", "orientation"), labels))


def _draw_blocks(num_examples, seed, size, draw_block):
    """The examples of as many blocks as are needed: images and a list of labels."""
    for name, value, minimum in (
        ("num_examples", num_examples, 0),
        ("seed", seed, 0),
        ("size", size, 8),
    ):
        if value < minimum:
            raise ArgumentError(f"{name} must be at least {minimum}; got {value}.")
    images = np.empty([num_examples, size, size, 3], np.uint8)
    labels = np.empty([3, num_examples], np.int64)
    for block, start in enumerate(range(0, num_examples, _BLOCK)):
        rng = np.random.Generator(np.random.PCG64([seed, block]))
        count = min(_BLOCK, num_examples - start)
        drawn, *of_block = draw_block(rng, size)
        images[start : start + count] = drawn[:count]
        for of_all, some in zip(labels, of_block):
            of_all[start : start + count] = some[:count]
    return images, labels


def _draw_block(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One block: uint8 `[_BLOCK, size, size, 3]` and int64 `[_BLOCK]`."""
    labels, luminance, x, y, images = _draw_ground(rng, size)
    first_hue = rng.random(_BLOCK)
    for copy, centre in enumerate(_centres(rng)):
        radius, tilt = _radius_and_tilt(rng)
        inside = _coverage(labels, *_local(x, y, centre, radius, tilt), radius)[..., None]
        under = _between(luminance, *centre)
        # Steps of the golden ratio: even a few copies have hues from all around the circle, so that
        # the mean colour of a crop reveals little about its image.
        hue = first_hue + 0.381966 * copy + 0.1 * rng.random(_BLOCK)
        lightness = np.minimum(under + _uniform(rng, CONTRAST), 0.95)
        colour = _rgb(lightness, hue, CHROMA * _uniform(rng, (0.4, 1)))[:, None, None]
        images += (colour - images) * inside
    return np.round(images * 255).astype(np.uint8), labels


def _draw_block_with_attributes(rng: np.random.Generator, size: int) -> tuple[np.ndarray, ...]:
    """One block: uint8 `[_BLOCK, size, size, 3]`, then class, hue and orientation `[_BLOCK]`."""
    labels, luminance, x, y, images = _draw_ground(rng, size)
    hues, turns = rng.integers(len(HUE_NAMES), size=_BLOCK), rng.integers(4, size=_BLOCK)
    for centre in _centres(rng):
        radius, tilt = _radius_and_tilt(rng)
        u, v = _local(x, y, centre, radius, (tilt + 90 * turns) % 360)
        inside = _coverage(labels, u, v, radius)[..., None]
        hue = hues / len(HUE_NAMES) + HUE_SPREAD * (rng.random(_BLOCK) - 0.5)
        lightness = _between(luminance, *centre) + _uniform(rng, CONTRAST)
        lightness = lightness[:, None, None] + SHADE * np.clip(v, -1, 1)
        hue, chroma = hue[:, None, None], CHROMA * _uniform(rng, (0.7, 1))[:, None, None]
        colour = _rgb(np.clip(lightness, 0, 0.95), hue, chroma)
        images += (colour - images) * inside
    return np.round(images * 255).astype(np.uint8), labels, hues, turns


def _draw_ground(rng, size):
    """Classes, luminance of the four corners, coordinates of the pixels, images without copies."""
    labels = np.argsort(rng.random([_BLOCK // 10, 10]), axis=1).reshape(-1)
    luminance = _uniform(rng, GROUND, [_BLOCK, 1]) + _uniform(
        rng, (-GROUND_SLOPE, GROUND_SLOPE), [_BLOCK, 4]
    )  # of the four corners
    chroma = GROUND_CHROMA * rng.random([_BLOCK, 4])
    corners = _rgb(luminance, rng.random([_BLOCK, 4]), chroma)  # [_BLOCK, 4, 3]
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    images = _between(corners[:, :, None, None], x[None, ..., None], y[None, ..., None])
    return labels, luminance, x, y, images


def _radius_and_tilt(rng):
    radius = _uniform(rng, RADIUS)
    return radius, np.floor(_uniform(rng, (-TILT_DEGREES, TILT_DEGREES + 1))).astype(int)


def _uniform(rng, bounds, shape=(_BLOCK,)):
    low, high = bounds
    return low + (high - low) * rng.random(shape)


def _between(corners, x, y):
    """Bilinear: `corners` [N, 4, ...] at (0, 0), (1, 0), (0, 1), (1, 1); x and y in [0, 1]."""
    top = corners[:, 0] * (1 - x) + corners[:, 1] * x
    bottom = corners[:, 2] * (1 - x) + corners[:, 3] * x
    return top * (1 - y) + bottom * y


def _rgb(luminance, hue, chroma):
    """YIQ in polar form to RGB in [0, 1]: `hue` in turns; adds an axis of 3 at the end."""
    degrees = np.floor(hue * 360).astype(int) % 360
    i, q = chroma * _COS[degrees], chroma * _SIN[degrees]
    red = luminance + 0.956 * i + 0.621 * q
    green = luminance - 0.272 * i - 0.647 * q
    blue = luminance - 1.106 * i + 1.703 * q
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 1)


def _centres(rng):
    """Where the copies lie: COPIES pairs (x, y) of [_BLOCK] in the unit square.

    Points of Roberts' R2 sequence from a random start keep their distance from one another.
    """
    start, swap, mirror = rng.random([_BLOCK, 2]), rng.random(_BLOCK), rng.random(_BLOCK)
    for copy in range(COPIES):
        a = (start[:, 0] + 0.754877666 * (copy + 1)) % 1
        b = (start[:, 1] + 0.569840291 * (copy + 1)) % 1
        x, y = np.where(swap < 0.5, [a, b], [b, a])
        x = np.where(mirror < 0.5, x, 1 - x)
        shake = SHAKE * (rng.random([2, _BLOCK]) - 0.5)
        yield 0.08 + 0.84 * x + shake[0], 0.08 + 0.84 * y + shake[1]


def _local(x, y, centre, radius, tilt):
    """Coordinates (u, v) of each pixel from the centre of a copy, turned by `tilt` degrees."""
    dx, dy = x - centre[0][:, None, None], centre[1][:, None, None] - y  # y up from here on
    cos, sin = ((t[tilt] / radius)[:, None, None] for t in (_COS, _SIN))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _coverage(labels, u, v, radius):
    """Fraction of each pixel, [_BLOCK, size, size] in [0, 1], that lies inside the outline."""
    size = u.shape[1]
    distance = np.empty_like(u)
    for label, outline in enumerate(_OUTLINES.values()):
        of_class = labels == label
        distance[of_class] = outline(u[of_class], v[of_class])
    return np.clip(0.5 - distance * (radius * size)[:, None, None], 0, 1)


# Outlines: (u, v) to the approximate distance from the edge, negative inside; radius up to 1.3.


def _length(u, v):
    return np.sqrt(u * u + v * v)


def _disc(u, v):
    return _length(u, v) - 0.78


def _ring(u, v):
    return np.abs(_length(u, v) - 0.72) - 0.22


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.72


def _triangle(u, v):
    return np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.52


def _star(u, v):
    # Inside four of the five half-planes of a pentagram, that is, not outside two.
    most = second = np.full_like(u, -np.inf)
    for degrees in (18, 90, 162, 234, 306):
        side = _COS[degrees] * u + _SIN[degrees] * v
        second = np.maximum(second, np.minimum(most, side))
        most = np.maximum(most, side)
    return second - 0.4


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.27, v - 0.9), np.maximum(v - 0.27, u - 0.9))


def _heart(u, v):
    u, v = np.abs(u), v + 0.1
    lobes = _length(u - 0.4, v - 0.3) - 0.46
    tip = np.maximum((u - v) * 0.7071 - 0.53, v + 0.5 * u - 0.52)
    return np.minimum(lobes, tip)


def _moon(u, v):
    return np.maximum(_length(u, v) - 0.9, 0.68 - _length(u - 0.42, v))


def _hourglass(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.maximum(0.8 * u - 0.6 * v - 0.08, v - 0.85)


def _bars(u, v):
    u = np.abs(u)
    return np.maximum(np.minimum(u, np.abs(u - 0.68)) - 0.2, np.abs(v) - 0.82)


_OUTLINES = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    "hourglass": _hourglass,
    "bars": _bars,
}
CLASS_NAMES = tuple(_OUTLINES)
