"""pretrain --views: groups of views by number, size and area of the crops."""

import numpy as np
import pytest
import tensorflow as tf

import reference
import simclr_tf
from simclr_tf import augment, cli, training
from simclr_tf.commands import build, pretrain
from simclr_tf.commands.views import ViewGroup, parse_views

TINY = ["--width=0.0625", "--precision=float32", "--batch_size=8", "--epochs=1"]
TINY += ["--learning_rate=0.1", "--optimizer=sgd", "--projection_dim=8", "--probe_every_epochs=-1"]


def options_of(*flags):
    _, values = cli.parse(["pretrain", "--run_dir=run", *flags])
    return cli.options_of(values)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An npz of 32 images of 12 pixels."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "set.npz"
    np.savez(path, x_train=rng.integers(0, 256, [32, 12, 12, 3], np.uint8))
    return path


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("2x32", [(2, 32, None)]),
        ("2x32,4x16", [(2, 32, None), (4, 16, None)]),
        ("2x32@0.2-1, 4x16@0.1-0.35", [(2, 32, (0.2, 1.0)), (4, 16, (0.1, 0.35))]),
        ("1x96@.5-1.0,1x96", [(1, 96, (0.5, 1.0)), (1, 96, None)]),
    ],
)
def test_groups_are_read(text, groups):
    """Count, size and, behind an @, the areas."""
    assert parse_views(text) == [ViewGroup(*group) for group in groups]


def test_every_group_has_the_other_flags_of_views():
    """Strength and blur are those of the largest view; only size and area differ."""
    options = options_of(
        "--views=2x72,3x16@0.1-0.35",
        "--min_crop_area=0.2",
        "--max_crop_area=0.9",
        "--color_drop_probability=0.1",
        "--color_jitter_probability=0.7",
    )
    families = build.build_augmentation(options, 96)
    assert [family.size for family in families] == [72, 72, 16, 16, 16]
    assert [family.area for family in families] == 2 * [(0.2, 0.9)] + 3 * [(0.1, 0.35)]
    for family in families:
        assert (family.strength, family.drop_probability) == (1.0, 0.1)
        assert family.jitter_probability == 0.7 and family.blurring is not None
    small = build.build_augmentation(options_of("--views=2x32,1x16"), 32)
    assert all((each.strength, each.blurring) == (0.5, None) for each in small)
    given = options_of("--views=2x72,1x16", "--blur=no", "--color_jitter_strength=0.3")
    given = build.build_augmentation(given, 96)
    assert all((each.strength, each.blurring) == (0.3, None) for each in given)


def test_a_chain_of_operators_in_every_group():
    """--augmentations: its crop has the group's size and areas."""
    flags = ["--views=1x12,1x8@0.1-0.35", "--augmentations=color_drop,crop"]
    families = build.build_augmentation(options_of(*flags), 12)
    crops = [family.operators[1] for family in families]
    assert [(crop.size, crop.area) for crop in crops] == [(12, (0.08, 1.0)), (8, (0.1, 0.35))]


def test_crops_have_the_areas_of_their_group():
    """The area that is drawn is uniform over the range; a crop that does not fit is cut smaller."""
    options = options_of("--views=2x16@0.3-0.5,1x8@0.1-0.2")
    pixels = np.zeros([400, 32, 32, 3], np.uint8)
    for family, (low, high) in zip(
        build.build_augmentation(options, 32), [(0.3, 0.5), (0.3, 0.5), (0.1, 0.2)]
    ):
        boxes = np.asarray(family.parameters(pixels, seed=1)["boxes"])  # in pixels
        area = boxes[:, 2] * boxes[:, 3] / 32**2
        assert low - 0.03 < area.min() < low + 0.03 and high - 0.03 < area.max() < high + 0.03


@pytest.mark.parametrize("loss", ["nt_xent", "decoupled"])
def test_chance_loss_is_that_of_equal_vectors(loss):
    """Of 2 + 3 views of 8 images."""
    options = options_of("--views=2x12,3x8", "--batch_size=8", f"--loss={loss}")
    z = np.ones([5, 8, 4], np.float32)
    expected = reference.nt_xent_of_views(z, 0.1, decoupled=loss == "decoupled")
    assert build.chance_loss(options, None) == pytest.approx(expected)


@pytest.mark.usefixtures("quick_runs")
def test_a_step_is_nt_xent_of_all_views():
    """By the model that the flags build, against a loop over all pairs of views."""
    options = options_of("--views=2x12,3x8", *TINY, "--temperature=0.3")
    model = build.build_model(options, 12)
    model.compile("sgd")
    pixels = np.random.default_rng(0).integers(0, 256, [4, 12, 12, 3], np.uint8)
    views = model.views(pixels, [0, 1])
    assert [view.shape[1] for view in views] == [12, 12, 8, 8, 8]
    assert not np.array_equal(views[0], views[1]) and not np.array_equal(views[2], views[3])
    z = np.stack([model.project(view) for view in views])
    loss, _ = model._loss(tf.constant(z), None)
    np.testing.assert_allclose(loss, reference.nt_xent_of_views(z, 0.3), rtol=1e-5)


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_a_run(images, tmp_path):
    """It trains in micro-batches, draws its views, and resumes with the same views alone."""
    run = tmp_path / "run"
    words = [f"--dataset=npz:{images}", f"--run_dir={run}", *TINY, "--micro_batch_size=6"]
    flags = ["--views=2x12,1x8@0.1-0.35", "--train_steps=1"]
    assert cli.main(["pretrain", *words, *flags]) == 0
    assert "--views=2x12,1x8@0.1-0.35" in (run / "flags.cfg").read_text()
    assert (run / "views.png").stat().st_size > 0
    assert cli.main(["pretrain", *words, "--views=3x12", "--train_steps=1"]) == 2


def test_the_sheet_shows_every_view(tmp_path):
    """A column for each of ten views, in their order."""
    view, local = (augment.RandomCropResize(size) for size in (12, 8))

    class Train:
        num_examples, whole_side = 2, None

        def epochs(self, batch_size, seed):
            yield tf.constant(np.random.default_rng(0).integers(0, 200, [2, 12, 12, 3], np.uint8))

    model = simclr_tf.SimCLR(simclr_tf.ResNet(18, 1 / 16), augment=[view, view, *8 * [local]])
    directory = training.RunDirectory(tmp_path)
    pretrain.draw_views(directory, Train(), model.augment)
    sheet = tf.io.decode_png((tmp_path / "views.png").read_bytes(), 3).numpy()
    assert sheet.shape[1] == 2 * ((1 + 10) * (12 + 4) + 6)  # the image, the views, gaps
    row = sheet[2 * (2 + 6)].max(axis=-1)  # through the middle of the first image
    assert np.sum(row != 255) == 2 * (12 + 2 * 12 + 8 * 8)
    columns = np.split(sheet[:, 2 * (16 + 6) :], 10, axis=1)
    assert all(np.any(columns[i] != columns[j]) for i in range(10) for j in range(i))


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--views=2", "as in 2x32,4x16@0.1-0.35; got '2'"),
        ("--views=2x32,", "as in 2x32,4x16@0.1-0.35; got '2x32,'"),
        ("--views=1x32", "--views must be two views or more; got '1x32', one"),
        ("--views=0x32,2x16", "counts of 1 or more and sides of 1 to 8192 pixels; got '0x32'"),
        ("--views=2x9000", "sides of 1 to 8192 pixels; got '2x9000'"),
        ("--views=2x32@0.5-0.1", "the smaller one first; got '2x32@0.5-0.1'"),
        ("--views=2x32@0-1", "above 0 and up to 1"),
        ("--views=2x32@0.1.2-1", "above 0 and up to 1"),
        ("--views=2x32 --method=looc", "got --method=looc, which has views of its own, too."),
        ("--views=2x32 --transformed_views=one", "got --transformed_views=one, which has"),
        ("--views=2x32 --view_sizes=8:1", "; --view_sizes=none leaves out"),
        ("--views=2x32 --augmentations=sobel", "--views needs crop among the --augmentations"),
        ("--min_crop_area=0.5 --max_crop_area=0.2", "must be at most --max_crop_area; got 0.5 and"),
        ("--views=2x12,1x8 --micro_batch_size=8", "must be a multiple of 3 and divide the 24 view"),
        ("--augmentations=crop --color_jitter_probability=0", "got 0 and --augmentations. Leave"),
    ],
)
def test_mistakes_are_one_line(flags, message, images, tmp_path, capsys):
    """Exit code 2, and no run."""
    words = [f"--run_dir={tmp_path / 'run'}", f"--dataset=npz:{images}", *TINY, *flags.split()]
    assert cli.main(["pretrain", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_python_takes_the_same_families():
    """`augment` of the model is the list."""
    options = options_of("--views=1x12,1x8", *TINY)
    model = simclr_tf.SimCLR(
        simclr_tf.ResNet(18, 1 / 16), augment=build.build_augmentation(options, 12)
    )
    pixels = np.zeros([2, 12, 12, 3], np.uint8)
    assert [view.shape[1] for view in model.views(pixels, [0, 0])] == [12, 8]
