"""The drawn data set: repeatable, balanced, the outlines it names, and not readable from pixels."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from simclr_tf.data import shapes


def test_arrays_have_the_promised_types_and_sizes():
    """Images are uint8 [n, size, size, 3], labels int64 [n], for any n and size."""
    for num_examples, size in ((0, 32), (1, 8), (251, 32), (3, 48)):
        images, labels = shapes.draw(num_examples, seed=0, size=size)
        assert images.dtype == np.uint8 and images.shape == (num_examples, size, size, 3)
        assert labels.dtype == np.int64 and labels.shape == (num_examples,)
    assert len(set(shapes.CLASS_NAMES)) == 10


def test_the_same_seed_gives_the_same_pixels():
    """Two calls agree bit by bit, and with the figures that the first release drew."""
    images, labels = shapes.draw(300, seed=1)
    again, labels_again = shapes.draw(300, seed=1)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)
    # Printed by `images[[0, 7, 299], 16, 16]` and `labels[:10]` of this very call, NumPy 1.26.
    np.testing.assert_array_equal(
        images[[0, 7, 299], 16, 16], [[97, 176, 125], [84, 110, 44], [68, 84, 65]]
    )
    np.testing.assert_array_equal(labels[:10], [9, 2, 4, 7, 5, 0, 8, 6, 3, 1])


def test_a_shorter_draw_is_the_start_of_a_longer_one():
    """Example i does not depend on how many are drawn, within a block and across blocks."""
    images, labels = shapes.draw(520, seed=3)
    for num_examples in (1, 249, 250, 251, 500):
        fewer, fewer_labels = shapes.draw(num_examples, seed=3)
        np.testing.assert_array_equal(fewer, images[:num_examples])
        np.testing.assert_array_equal(fewer_labels, labels[:num_examples])


def test_every_ten_in_a_row_have_every_class_in_no_fixed_order():
    """Classes are balanced in every prefix of whole tens, and the order differs between tens."""
    _, labels = shapes.draw(500, seed=4)
    tens = labels.reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(tens, axis=1), np.tile(np.arange(10), [50, 1]))
    assert len({tuple(ten) for ten in tens}) > 45


def test_no_image_is_drawn_twice():
    """All images differ, within a seed, across its blocks and between two seeds."""
    both = np.concatenate([shapes.draw(600, seed)[0] for seed in (1, 2)])
    assert len({image.tobytes() for image in both}) == 1200


def test_images_of_a_class_vary_as_much_as_images_of_all():
    """Within each class, a pixel's spread is at least 0.8 of its spread over all classes."""
    images, labels = shapes.draw(1000, seed=5)
    overall = images.std(axis=0).mean()
    for label in range(10):
        assert images[labels == label].std(axis=0).mean() > 0.8 * overall


def test_the_size_changes_the_resolution_and_not_the_scene():
    """An image of 128 pixels, averaged down to 32, is the image of 32 but for the edges."""
    small, labels = shapes.draw(50, seed=6)
    large, labels_large = shapes.draw(50, seed=6, size=128)
    np.testing.assert_array_equal(labels, labels_large)
    down = large.reshape(50, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(down - small).mean() < 2.5


def test_pixels_do_not_tell_the_class():
    """The nearest neighbour by raw pixels is of the same class less than 35 times in 100."""
    train, train_labels = shapes.draw(2000, seed=1)
    test, test_labels = shapes.draw(500, seed=2)
    train, test = (_unit(x.reshape(len(x), -1).astype(np.float32)) for x in (train, test))
    nearest = np.argmax(test @ train.T, axis=1)
    assert (train_labels[nearest] == test_labels).mean() < 0.35


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _transposed(radius, degrees):
    """A corner at this distance from the centre, counted from the u axis."""
    return radius * np.cos(np.radians(degrees)), radius * np.sin(np.radians(degrees))


# Corners worked out by hand from the outlines' definitions.
POLYGONS = {
    "square": [(-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)],
    "triangle": [_transposed(1.04, degrees) for degrees in (90, 210, 330)],
    "star": [
        _transposed(radius, degrees)
        for k in range(5)
        for radius, degrees in ((0.4 / 0.80902, 54 + 72 * k), (0.4 / 0.30902, 90 + 72 * k))
    ],
    "cross": [
        *((0.27, -0.9), (0.27, -0.27), (0.9, -0.27), (0.9, 0.27), (0.27, 0.27), (0.27, 0.9)),
        *((-0.27, 0.9), (-0.27, 0.27), (-0.9, 0.27), (-0.9, -0.27), (-0.27, -0.27), (-0.27, -0.9)),
    ],
    "hourglass": [
        *((-0.7375, -0.85), (0.7375, -0.85), (0.1, 0), (0.7375, 0.85)),
        *((-0.7375, 0.85), (-0.1, 0)),
    ],
}
AREAS = {"disc": np.pi * 0.78**2, "ring": np.pi * (0.94**2 - 0.5**2), "bars": 3 * 0.4 * 1.64}
GRID = (np.arange(600) + 0.5) / 200 - 1.5


@pytest.mark.parametrize("name", sorted(POLYGONS))
def test_an_outline_of_straight_edges_is_the_polygon_of_its_corners(name):
    """Pillow's polygon of the same corners covers the same pixels, but for 1 in 50."""
    inside = shapes._OUTLINES[name](*np.meshgrid(GRID, GRID)) < 0
    canvas = Image.new("1", [600, 600])
    ImageDraw.Draw(canvas).polygon(
        [((u + 1.5) * 200, (v + 1.5) * 200) for u, v in POLYGONS[name]], fill=1
    )
    polygon = np.asarray(canvas)
    assert (inside & polygon).sum() / (inside | polygon).sum() > 0.98


@pytest.mark.parametrize("name", sorted(AREAS))
def test_an_outline_encloses_its_closed_form_area(name):
    """The fraction of a fine grid inside agrees with the formula to 1 in 100."""
    inside = shapes._OUTLINES[name](*np.meshgrid(GRID, GRID)) < 0
    assert inside.mean() * 9 == pytest.approx(AREAS[name], rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": -1, "seed": 0}, "num_examples must be at least 0; got -1"),
        ({"num_examples": 1, "seed": -2}, "seed must be at least 0; got -2"),
        ({"num_examples": 1, "seed": 0, "size": 7}, "size must be at least 8; got 7"),
    ],
)
def test_a_value_below_its_minimum_is_named(arguments, message):
    """The error says which value, its minimum and what was passed."""
    with pytest.raises(ValueError, match=message):
        shapes.draw(**arguments)
