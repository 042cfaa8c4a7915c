"""Tests of views: operators against tf.image, Pillow or a loop; draws against the paper."""

import logging
import time

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from PIL import Image
from tensorflow import keras

import reference
from simclr_tf import SimCLR, _keras, augment, errors
from simclr_tf.augment.color import ORDERS
from simclr_tf.augment.random import Draw, fold_in, rounds, threefry
from simclr_tf.augment.transforms import draw_boxes

RNG = np.random.default_rng(7)
IMAGES = RNG.random([6, 20, 20, 3]).astype(np.float32)
PHOTO = scipy.ndimage.gaussian_filter(RNG.random([6, 40, 40, 3]), [0, 2, 2, 0]).astype(np.float32)


def test_crop_resize_is_tf_image_on_each_crop():
    """Bicubic without antialiasing, half-pixel centres, up and down, and mirrored."""
    boxes = np.array([[0, 0, 40, 40], [3, 5, 17, 22], [30, 10, 9, 30], [1, 2, 3, 4]], np.float32)
    flipped = np.array([False, True, False, True])
    ours = augment.crop_resize(PHOTO[:4], boxes, 24, flipped=flipped)
    for image, (y, x, h, w), mirrored, got in zip(PHOTO, boxes.astype(int), flipped, ours):
        crop = image[y : y + h, x : x + w]
        expected = np.clip(tf.image.resize(crop, [24, 24], method="bicubic"), 0, 1)
        expected = expected[:, ::-1] if mirrored else expected
        np.testing.assert_allclose(got, expected, atol=2e-3)  # tf.image tabulates its kernel


def test_crop_resize_bilinear_is_tf_image():
    """The same for bilinear."""
    boxes = np.tile([[3.0, 5.0, 17.0, 22.0]], [6, 1])
    ours = augment.crop_resize(PHOTO, boxes, 24, method="bilinear")
    expected = tf.image.resize(PHOTO[:, 3:20, 5:27], [24, 24], method="bilinear")
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment.contrast, tf.image.adjust_contrast),
        (augment.saturation, tf.image.adjust_saturation),
        (augment.brightness, lambda image, factor: image * factor),
        (augment.hue, tf.image.adjust_hue),
    ],
)
def test_each_colour_operation_is_tf_image(ours, theirs):
    """With one factor per image, clipped to [0, 1]."""
    factors = np.array([0.0, 0.3, 0.9, 1.0, 1.4, 1.8], np.float32)
    if ours is augment.hue:
        factors = np.array([-0.5, -0.2, 0.0, 0.1, 0.2, 0.45], np.float32)
    got = ours(IMAGES, factors)
    for image, factor, result in zip(IMAGES, factors, got):
        expected = np.clip(theirs(tf.constant(image), float(factor)), 0, 1)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_grey_pixels_have_no_hue_to_rotate():
    """Grey, black and white do not change, and there is no NaN."""
    greys = np.tile(np.array([0.0, 0.25, 1.0], np.float32)[:, None, None, None], [1, 4, 4, 3])
    turned = augment.saturation(
        augment.hue(greys, np.full(3, 0.3, np.float32)), np.full(3, 2.0, "f")
    )
    np.testing.assert_array_equal(turned, greys)


def test_colour_jitter_applies_the_four_operations_in_each_of_the_24_orders():
    """The pass of shared slots equals the four operations one after the other."""
    images = np.tile(RNG.random([1, 5, 5, 3]), [24, 1, 1, 1]).astype(np.float32)
    factors = RNG.uniform([0.2, 0.2, 0.2, -0.2], [1.8, 1.8, 1.8, 0.2], [24, 4]).astype(np.float32)
    got = augment.color_jitter(images, factors, np.arange(24))
    for image, factor, order, result in zip(images, factors, ORDERS, got):
        np.testing.assert_allclose(result, reference.color_jitter(image, factor, order), atol=1e-5)


def test_colour_drop_is_rgb_to_grayscale():
    """Where dropped; the other images do not change."""
    got = augment.color_drop(IMAGES, np.array([True, False] * 3))
    expected = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(IMAGES))
    np.testing.assert_allclose(got[::2], expected[::2], atol=1e-6)
    np.testing.assert_array_equal(got[1::2], IMAGES[1::2])


def test_blur_is_scipys_with_one_sigma_per_image():
    """Borders are reflected; an image with sigma 0 does not change."""
    sigmas = np.array([0.0, 0.1, 0.5, 1.0, 1.5, 2.0], np.float32)
    got = augment.gaussian_blur(IMAGES, sigmas, 4)
    np.testing.assert_array_equal(got[0], IMAGES[0])
    for image, sigma, result in zip(IMAGES[1:], sigmas[1:], got[1:]):
        smooth = scipy.ndimage.gaussian_filter(
            image, [sigma, sigma, 0], mode="mirror", radius=[4, 4, 0]
        )
        np.testing.assert_allclose(result, smooth, atol=1e-5)


def test_rotation_is_rot90():
    """By each number of quarter turns."""
    got = augment.rotate90(IMAGES, np.array([0, 1, 2, 3, 4, 5]))
    for image, turns, result in zip(IMAGES, range(6), got):
        np.testing.assert_array_equal(result, tf.image.rot90(image, turns))


def test_flip_and_solarize_are_pillows():
    """Mirror and inversion above a threshold, on the values of a uint8 image."""
    pixels = RNG.integers(0, 256, [1, 9, 7, 3], np.uint8)
    picture = Image.fromarray(pixels[0])
    from PIL import ImageOps

    flipped = augment.flip(pixels / np.float32(255), np.array([True]))[0] * 255.0
    np.testing.assert_allclose(flipped, ImageOps.mirror(picture), atol=1e-4)
    inverted = augment.solarize(augment.as_float(pixels), np.array([128 / 255], np.float32))[0]
    np.testing.assert_allclose(inverted * 255.0, ImageOps.solarize(picture, 128), atol=1e-3)


def test_cutout_fills_only_the_box():
    """A box may extend beyond the image; outside the box nothing changes."""
    got = augment.cutout(IMAGES[:2], np.array([[-3.0, 15.0, 8.0, 8.0], [4.0, 4.0, 0.0, 0.0]]), 0.5)
    expected = IMAGES[:2].copy()
    expected[0, :5, 15:] = 0.5
    np.testing.assert_array_equal(got, expected)


def test_sobel_is_the_magnitude_of_sobel_edges():
    """Scaled so that the strongest possible corner is at most 1."""
    edges = tf.image.sobel_edges(tf.constant(IMAGES)).numpy()
    expected = np.hypot(edges[..., 0], edges[..., 1]) / np.sqrt(20.0)
    np.testing.assert_allclose(augment.sobel(IMAGES), expected, atol=1e-6)
    corner = np.zeros([1, 5, 5, 3], np.float32)
    corner[0, 1:4, 1:4] = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 1]])[:, :, None]
    assert augment.sobel(corner).numpy().max() <= 1.0


# -- draws ---------------------------------------------------------------------------------------


def test_threefry_returns_the_published_answers():
    """The known answers of the Random123 library for threefry2x32 with 20 rounds."""
    known = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, answer in known:
        words = threefry(tf.constant(key, tf.int64), tf.constant(counter, tf.int64))
        assert tuple(int(word) for word in words) == answer


def test_a_draw_adds_few_operations_to_a_graph():
    """The rounds of Threefry are traced once, whatever the shape and however often it is called."""
    seed = tf.constant([3, 7], tf.int64)
    graph = tf.function(lambda count: Draw(fold_in(seed, 1), (count, 8, 8)).uniform(count))
    for count in (3, 4):
        assert len(graph.get_concrete_function(count).graph.get_operations()) < 100
        assert graph(count).shape == [count, count]


def test_tensorflows_philox_depends_on_xla():
    """Why this package has its own generator: with a run-time seed XLA draws other numbers.

    When this test fails, `augment/random.py` can use `tf.random.stateless_uniform` in place of its
    own Threefry; views for a given seed then change.
    """

    def uniform(seed):
        return tf.random.stateless_uniform([8], seed, alg="philox")

    seed = tf.constant([3, 7])
    np.testing.assert_array_equal(tf.function(uniform)(seed), uniform(seed))
    compiled = tf.function(uniform, jit_compile=True)(seed)
    assert np.abs(compiled - uniform(seed)).max() > 0.01


def test_xla_compiles_rounds_in_a_row_slowly_with_tensorflow_2_21():
    """Why the rounds of `threefry` are in a loop: four more of 20 take ten times the time.

    When this test fails on the newer TensorFlow, the loop in `augment/random.py` can go.
    """
    jitter = augment.ColorJitter()

    class InARow:
        def __init__(self, count, seed):
            self.count, self.seed = count, seed

        def uniform(self, columns):
            word = tf.reshape(tf.range(6 * columns, dtype=tf.int64), [6, columns]) + self.seed
            rotations = [tf.constant(13, tf.int64)] * self.count
            return tf.cast(rounds(word, word, rotations)[1], tf.float32) * 2.0**-32

    def seconds(count):
        @tf.function(jit_compile=True, autograph=False)
        def call(images, seed):
            return jitter.apply(images, jitter.draw(InARow(count, seed)))

        start = time.perf_counter()
        call(IMAGES, tf.constant(7, tf.int64))
        return time.perf_counter() - start

    seconds(1)  # what is loaded once
    assert (seconds(12) > 3 * seconds(8)) == (not tf.__version__.startswith("2.15."))


def test_draws_are_uniform_and_normal():
    """Moments of each, and no correlation between neighbouring rows and columns."""
    draw = Draw(4, (400, 8, 8))
    uniform, normal = draw.uniform(500).numpy(), draw.normal(500).numpy()
    assert uniform.min() >= 0.0 and uniform.max() < 1.0
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [0.5, 1 / 12], atol=2e-3)
    np.testing.assert_allclose(
        [normal.mean(), normal.std(), (normal**4).mean()], [0, 1, 3], atol=0.05
    )
    for shifted in (np.roll(uniform, 1, axis=0), np.roll(uniform, 1, axis=1)):
        assert abs(np.corrcoef(uniform.ravel(), shifted.ravel())[0, 1]) < 0.01


def test_crops_are_drawn_as_the_paper_says():
    """Area, aspect and position have the moments of a plain loop; every box is inside."""
    area, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
    boxes = draw_boxes(Draw(3, (100000, 224, 224)).uniform(22), 224, 224, area, aspect).numpy()
    expected = reference.crop_boxes(np.random.default_rng(0), 40000, 224, area, aspect)
    assert (boxes[:, 0] + boxes[:, 2] <= 224).all() and (boxes[:, 1] + boxes[:, 3] <= 224).all()
    for ours, theirs in ((boxes, expected), (boxes**2, expected**2.0)):
        np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), rtol=0.05)
    ours, theirs = (b[:, 2] * b[:, 3] / 224**2 for b in (boxes, expected))
    np.testing.assert_allclose(
        np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(theirs, [0.1, 0.5, 0.9]), atol=0.015
    )
    ratio = boxes[:, 3] / boxes[:, 2]
    assert 0.73 < ratio.min() and ratio.max() < 1.37


def test_a_crop_that_never_fits_is_the_whole_image():
    """A very long image has no crop of such an aspect ratio."""
    boxes = draw_boxes(Draw(3, (8, 4, 400)).uniform(22), 4, 400, (0.9, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(boxes, np.tile([[0, 0, 4, 400]], [8, 1]))


def test_the_family_draws_as_the_paper_says():
    """Probabilities and ranges of flip, jitter, drop and blur; all 24 orders equally likely."""
    count, view = 40000, augment.RandomView(224, strength=0.5)
    drawn = {k: v.numpy() for k, v in view.draw(Draw(5, (count, 224, 224))).items()}
    fraction = lambda mask: pytest.approx(np.mean(mask), abs=0.01)  # noqa: E731 - three uses below
    assert fraction(drawn["flipped"]) == 0.5 and fraction(drawn["dropped"]) == 0.2
    jittered = (drawn["factors"] != [1, 1, 1, 0]).any(axis=1)
    assert fraction(jittered) == 0.8
    scales, turns = drawn["factors"][jittered, :3], drawn["factors"][jittered, 3]
    np.testing.assert_allclose(scales.mean(axis=0), 1.0, atol=0.01)
    np.testing.assert_allclose(scales.var(axis=0), 0.8**2 / 12, rtol=0.03)  # uniform in 1 +- 0.4
    assert scales.min() >= 0.6 and scales.max() <= 1.4
    assert np.abs(turns).max() <= 0.1 and turns.var() == pytest.approx(0.2**2 / 12, rel=0.03)
    np.testing.assert_allclose(np.bincount(drawn["order"]) / count, 1 / 24, atol=0.005)
    sigma = drawn["sigma"][drawn["sigma"] > 0]
    assert len(sigma) / count == pytest.approx(0.5, abs=0.01)
    assert 0.1 <= sigma.min() and sigma.max() <= 2.0
    assert sigma.mean() == pytest.approx(1.05, abs=0.02)
    pairs = np.corrcoef(
        [drawn["flipped"], drawn["dropped"], drawn["order"], drawn["sigma"], *drawn["factors"].T]
    )
    assert np.abs(pairs - np.eye(8))[np.isfinite(pairs)].max() < 0.03  # drawn independently


def test_a_strength_above_1_25_has_no_negative_factors():
    """The lower bound is 0."""
    drawn = augment.ColorJitter(2.0).draw(Draw(5, (2000, 8, 8)))
    assert tf.reduce_min(drawn["factors"][:, :3]) >= 0.0


def test_only_views_above_64_pixels_are_blurred():
    """By default; the kernel is a tenth of the height."""
    assert augment.RandomView(64).blurring is None
    assert augment.RandomView.for_size(32).strength == 0.5
    assert augment.RandomView.for_size(224).strength == 1.0
    assert augment.RandomView(224).blurring.radius(224) == 11


# -- the calls -----------------------------------------------------------------------------------

OPERATORS = [
    augment.RandomView(16),
    augment.RandomView(16, blur=True, jit_compile=False),
    augment.RandomCropResize(16),
    augment.RandomFlip(),
    augment.ColorJitter(),
    augment.ColorDrop(0.5),
    augment.RandomBlur(kernel_size=5),
    augment.Cutout(),
    augment.GaussianNoise(),
    augment.RandomRotation90(),
    augment.Sobel(0.5),
    augment.Solarize(0.5),
    augment.Compose([augment.RandomCropResize(16), augment.RandomFlip(), augment.Cutout()]),
    augment.SharedView(
        augment.Compose([augment.RandomCropResize(16), augment.Sobel(0.5)]), ["crop"]
    ),
]


def test_every_operator_is_called_below():
    """The list has every operator."""
    kinds = [thing for thing in vars(augment).values() if isinstance(thing, type)]
    operators = {kind for kind in kinds if issubclass(kind, augment.Operator)}
    assert operators - {augment.Operator} == {type(operator) for operator in OPERATORS}


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda op: type(op).__name__)
def test_a_seed_gives_the_same_view_everywhere(operator):
    """Eagerly, as a graph, in tf.data, under XLA, and for a slice of the batch."""
    images = tf.constant((IMAGES * 255).astype(np.uint8))
    expected = operator(images, seed=11)
    assert expected.dtype == tf.float32
    assert expected.shape == [6, operator.output_size(20), operator.output_size(20), 3]
    assert tf.reduce_min(expected) >= 0.0 and tf.reduce_max(expected) <= 1.0
    seed = tf.constant([11, 0])
    graph = tf.function(lambda x: operator(x, seed=seed))
    compiled = tf.function(lambda x: operator(x, seed=seed), jit_compile=True)
    in_data = tf.data.Dataset.from_tensors(images).map(lambda x: operator(x, seed=seed))
    for got in (graph(images), compiled(images), next(iter(in_data))):
        np.testing.assert_allclose(got, expected, atol=2e-5)
    part = operator(images[2:5], seed=11, first_row=2)
    np.testing.assert_allclose(part, expected[2:5], atol=2e-5)
    assert np.abs(operator(images, seed=12) - expected).max() > 0.01


def test_every_image_draws_its_own_parameters():
    """Six copies of one image become six different views, and two calls differ."""
    copies = tf.constant(np.tile(PHOTO[:1], [6, 1, 1, 1]))
    view = augment.RandomView(16)
    views = view(copies).numpy()
    assert min(np.abs(views[i] - views[j]).max() for i in range(6) for j in range(i)) > 0.01
    assert np.abs(view(copies) - views).max() > 0.01


def test_the_family_is_its_chain_of_operators():
    """The compiled family equals the single operators with the same parameters."""
    view = augment.RandomView(24, blur=True)
    drawn = view.draw(Draw(1, (6, 40, 40)))
    images = tf.constant(PHOTO)
    expected = augment.crop_resize(images, drawn["boxes"], 24)
    expected = augment.flip(expected, drawn["flipped"])
    expected = augment.color_jitter(expected, drawn["factors"], drawn["order"])
    expected = augment.color_drop(expected, drawn["dropped"])
    expected = augment.gaussian_blur(expected, drawn["sigma"], view.blurring.radius(24))
    np.testing.assert_allclose(view.apply(images, drawn), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "in_size", "method", "blur", "dtype"),
    [
        (224, (224, 224), "bicubic", True, np.uint8),
        # Crops larger and smaller than the view; a size that its blocks of rows do not divide.
        (65, (131, 77), "bicubic", True, np.uint8),
        (65, (131, 77), "bicubic", True, np.float32),
        (97, (97, 40), "bilinear", True, np.uint8),
        (97, (97, 40), "bilinear", True, np.float32),
        (66, (9, 300), "bicubic", False, np.uint8),
        (70, (1, 5), "bicubic", True, np.float32),
    ],
)
def test_views_computed_image_by_image_are_those_of_the_batch(size, in_size, method, blur, dtype):
    """The code for large views on a CPU equals the dense form, for tiny crops and flips too."""
    view = augment.RandomView(size, blur=blur, area=(0.001, 1.0), method=method)
    images = RNG.integers(0, 256, [8, *in_size, 3], np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(np.float32)
    drawn = view.draw(Draw(3, (8, *in_size)))
    got = view._by_image(tf.constant(images), drawn)
    np.testing.assert_allclose(got, view._view(tf.constant(images), drawn), atol=1e-5)
    assert tf.reduce_min(got) >= 0.0 and tf.reduce_max(got) <= 1.0


def _no_map_defun(**_):
    raise ValueError("No such operation.")


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "fails to build"])
@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_large_views_do_not_depend_on_an_undocumented_operation(missing, wrap, monkeypatch):
    """Without `MapDefun`, `tf.map_fn` makes the same views."""
    images = tf.constant(RNG.integers(0, 256, [3, 30, 40, 3], np.uint8))
    expected = augment.RandomView(66)(images, seed=4)
    if missing:
        monkeypatch.delattr(tf.raw_ops, "MapDefun")
    else:
        monkeypatch.setattr(tf.raw_ops, "MapDefun", _no_map_defun)
    view = augment.RandomView(66)
    assert view._goes_by_image()
    got = wrap(lambda x: view(x, seed=4))(images)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_large_view_is_the_same_everywhere():
    """Eagerly, as a graph of any batch size, in tf.data, under XLA, for a slice of the batch."""
    view, seed = augment.RandomView(72), tf.constant([11, 0])
    images = tf.constant(RNG.integers(0, 256, [4, 50, 60, 3], np.uint8))
    sizes = tf.constant([[50, 60], [30, 60], [50, 20], [7, 9]])
    call = lambda x, extent: view(x, seed=seed, extent=extent)  # noqa: E731 - four uses below
    expected = call(images, sizes)
    specs = [tf.TensorSpec([None, 50, 60, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)]
    graph, compiled = tf.function(call, specs), tf.function(call, jit_compile=True)
    in_data = tf.data.Dataset.from_tensors((images, sizes)).map(call)
    for got in (graph(images, sizes), compiled(images, sizes), next(iter(in_data))):
        np.testing.assert_allclose(got, expected, atol=2e-5)
    part = view(images[1:3], seed=seed, first_row=1, extent=sizes[1:3])
    np.testing.assert_allclose(part, expected[1:3], atol=2e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros([8, 8, 3], np.float32), r"\[batch, height, width, 3\].*\(8, 8, 3\)"),
        (np.zeros([2, 8, 8, 1], np.float32), r"\(2, 8, 8, 1\)"),
        (np.zeros([2, 8, 8, 3], np.int64), "uint8, or float.*int64"),
    ],
)
def test_wrong_images_are_explained(images, message):
    """The error names the shape or the dtype."""
    for operator in (augment.RandomView(8), augment.RandomFlip()):
        with pytest.raises(ValueError, match=message):
            operator(images)


@pytest.mark.parametrize(
    "make",
    [
        lambda: augment.RandomCropResize(0),
        lambda: augment.RandomView(8, area=(0.5, 1.5)),
        lambda: augment.RandomView(8, area=0.5),
        lambda: augment.center_crop(IMAGES, 1.5),
        lambda: augment.RandomView(8, blur="maybe"),
        lambda: augment.ColorDrop(1.5),
        lambda: augment.ColorJitter(-1.0),
        lambda: augment.Compose(["flip"]),
        lambda: augment.RandomCropResize(8, method="nearest"),
        lambda: augment.RandomRotation90()(IMAGES[:, :10]),
    ],
)
def test_wrong_arguments_are_explained(make):
    """The error has the value that was passed."""
    with pytest.raises(ValueError, match="got"):
        make()


def test_center_crop_keeps_the_middle():
    """The paper's 0.875 of 224 pixels is 196."""
    assert augment.center_crop(np.zeros([1, 224, 224, 3])).shape == (1, 196, 196, 3)
    np.testing.assert_array_equal(augment.center_crop(IMAGES, 0.5), IMAGES[:, 5:15, 5:15])


@pytest.mark.parametrize(
    ("family", "of_one"),
    [
        (augment.RandomView(12, 0.5, jit_compile=False), None),
        # Single images without XLA, which would compile each size.
        (augment.RandomView(12, 0.5), augment.RandomView(12, 0.5, jit_compile=False)),
        (augment.RandomCropResize(12), None),
        (augment.Compose([augment.RandomCropResize(12), augment.RandomFlip()]), None),
    ],
)
def test_padding_does_not_change_a_view(family, of_one):
    """Views of images that fill a part of their square are those of the images cut out."""
    of_one = of_one or family
    sizes = [(20, 30), (30, 20), (11, 30), (30, 30)]
    squares = RNG.integers(0, 256, [4, 30, 30, 3], np.uint8)  # the padding is noise
    got = family(squares, seed=5, extent=np.array(sizes, np.int32))
    for row, (height, width) in enumerate(sizes):
        alone = squares[row : row + 1, :height, :width]
        np.testing.assert_allclose(got[row], of_one(alone, seed=5, first_row=row)[0], atol=2e-5)


@pytest.mark.parametrize("family", [augment.RandomFlip(), augment.Compose([]), tf.identity])
def test_images_of_several_sizes_need_a_crop_first(family):
    """Any other augmentation would mistake the padding for the image."""
    with pytest.raises(ValueError, match="begins with a crop: RandomView"):
        augment.call_view(family, np.zeros([2, 8, 8, 3], np.uint8), extent=np.full([2, 2], 8))


# -- by name -------------------------------------------------------------------------------------

NAMES = "crop,flip,color_jitter,color_drop,blur,cutout,gaussian_noise,rotate90,sobel,solarize"


@pytest.mark.parametrize("size", [32, 224])
def test_by_name_has_the_papers_defaults(size):
    """The names of the paper's family build the operators that `RandomView.for_size` is made of."""
    names = "crop, flip, color_jitter, color_drop" + (",blur" if size > 64 else "")
    operators = augment.by_name(names, size).operators
    expected = augment.RandomView.for_size(size).chain()
    assert [repr(operator) for operator in operators] == [repr(each) for each in expected]


def test_by_name_passes_arguments_on():
    """Strength to the colour jitter, the others to the crop."""
    crop, jitter = augment.by_name(
        "crop,color_jitter", 16, 0.7, area=(0.2, 0.9), method="bilinear"
    ).operators
    assert (crop.size, crop.area, crop.method) == (16, (0.2, 0.9), "bilinear")
    assert jitter.strength == 0.7


def test_by_name_takes_probabilities():
    """After a colon; the others keep the default."""
    operators = augment.by_name("crop,sobel:0.5,color_jitter:1,gaussian_noise", 8).operators
    assert [operator.probability for operator in operators[1:]] == [0.5, 1.0, 1.0]


def test_by_name_has_every_operator():
    """Each operator of the package but those that combine others has a name."""
    kinds = {type(operator) for operator in augment.by_name(NAMES, 16).operators}
    combined = {augment.Compose, augment.RandomView, augment.SharedView}
    assert kinds == {type(operator) for operator in OPERATORS} - combined


def test_by_name_returns_the_same_views_for_a_seed_and_after_a_config_round_trip():
    """The chain of all operators: in [0, 1], of the size asked for, repeatable."""
    view = augment.by_name(NAMES, 16)
    expected = view(IMAGES, seed=4)
    assert expected.shape == [6, 16, 16, 3] and expected.dtype == tf.float32
    assert tf.reduce_min(expected) >= 0.0 and tf.reduce_max(expected) <= 1.0
    config = _keras.saving.serialize_keras_object(view)
    again = _keras.saving.deserialize_keras_object(config)
    for same in (view, augment.by_name(NAMES, 16), again):
        np.testing.assert_array_equal(same(IMAGES, seed=4), expected)
    assert np.abs(view(IMAGES, seed=5) - expected).max() > 0.01


def test_by_name_is_an_augmentation_of_simclr():
    """A model draws the same views for the same seed; with a crop first, an extent is accepted."""
    encoder = keras.Sequential([keras.layers.GlobalAveragePooling2D()])
    view = augment.by_name("crop,color_jitter,blur", 8)
    model = SimCLR(encoder, augment=view)
    seed = tf.constant([3, 1])
    views = model.views(IMAGES, seed)
    assert [each.shape.as_list() for each in views] == [[6, 8, 8, 3]] * 2
    np.testing.assert_array_equal(views, model.views(IMAGES, seed))
    assert np.abs(views[0] - views[1]).max() > 0.01
    extent = np.full([6, 2], 10)
    np.testing.assert_allclose(
        augment.call_view(view, IMAGES, seed, extent=extent),
        augment.call_view(view, IMAGES[:, :10, :10], seed),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.by_name("crop,colour_jitter", 8), "got 'colour_jitter'.*: color_jitter"),
        (lambda: augment.by_name("crop,", 8), "must be one of crop, flip, .*; got ''"),
        (lambda: augment.by_name("sobel:2", 8), r"of sobel must be .* in \[0, 1\]; got 2.0. Write"),
        (lambda: augment.by_name("sobel:half", 8), "got 'half'. Write sobel:0.5, or sobel alone"),
        (lambda: augment.by_name("crop:0.5", 8), "crop and rotate90 are applied to every image"),
        (lambda: augment.by_name("crop", 0), "size must be a whole number of at least 1; got 0"),
        (
            lambda: augment.by_name("flip", 8, area=(0.5, 1.0)),
            "\\(area\\) need the name \"crop\"; got 'flip'",
        ),
    ],
)
def test_by_name_explains_wrong_arguments(make, message):
    """An unknown name lists the names and those close to it."""
    with pytest.raises(errors.ArgumentError, match=message):
        make()


def test_views_of_many_sizes_are_no_warning_of_tensorflow():
    """TensorFlow warns of many traces, and counts those of a method over all objects."""
    messages, handler = [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        views = [augment.RandomView(size) for size in range(4, 12)]  # alive at the same time
        for view in views:
            view(np.zeros((2, 12, 12, 3), np.float32))
    finally:
        tf.get_logger().removeHandler(handler)
    assert not messages
