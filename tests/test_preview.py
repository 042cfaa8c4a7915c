"""`simclr-tf preview`: the picture, the measured plan, and the recipe."""

import itertools
import pathlib
import re
import types

import numpy as np
import pytest
from PIL import Image

from simclr_tf import augment, cli, data, report
from simclr_tf.commands import checks
from simclr_tf.commands import preview as preview_command
from simclr_tf.commands.recipe import (
    Facts,
    Setting,
    epochs_for,
    flag_file,
    image_size_for,
    recommend,
)

SMALL_CPU = Facts(50_000, 48, accelerator=False, precision="float32")
CIFAR10_CPU = SMALL_CPU._replace(image_size=32)
ONE_HOUR = pathlib.Path(__file__).resolve().parent.parent / "examples/recipes/cifar10_one_hour.cfg"
LARGE_GPU = Facts(1_000_000, 224, accelerator=True, precision="bfloat16")


def values(facts, **given):
    """The recipe as a dict of flag to text."""
    return {each.flag: each.value for each in recommend(facts, given)}


def test_a_recipe_depends_on_data_and_machine():
    """Small images: CIFAR stem, no blur, weak jitter; photographs on a GPU: the paper's."""
    small, large = values(SMALL_CPU), values(LARGE_GPU)
    assert (small["stem"], small["blur"], small["color_jitter_strength"]) == ("cifar", "no", "0.5")
    assert (large["stem"], large["blur"], large["color_jitter_strength"]) == (
        "imagenet",
        "yes",
        "1",
    )
    assert (small["resnet_depth"], large["resnet_depth"]) == ("18", "50")
    assert (small["precision"], large["precision"]) == ("float32", "bfloat16")
    assert (small["temperature"], large["temperature"]) == ("0.2", "0.1")


@pytest.mark.parametrize(
    ("num_examples", "batch"), [(50_000, 256), (2048, 256), (2047, 128), (100, 8), (5, 2)]
)
def test_a_batch_fits_the_data_set(num_examples, batch):
    """At least 8 steps an epoch; a small batch is not for LARS, and its rate is lower."""
    found = values(SMALL_CPU._replace(num_examples=num_examples))
    assert found["batch_size"] == str(batch)
    assert found["optimizer"] == ("lars" if batch >= 256 else "adamw")
    if batch == 128:
        assert float(found["learning_rate"]) == 0.003
    if batch == 8:
        assert float(found["learning_rate"]) == pytest.approx(0.003 / 4)


def test_what_the_user_chose_is_kept():
    """It stands in the recipe as given, and what depends on it follows."""
    found = recommend(SMALL_CPU, {"batch_size": "32", "dataset": "shapes", "width": "0.25"})
    by_flag = {each.flag: each for each in found}
    assert len(by_flag) == len(found), "a flag stands there twice"
    for flag, value in (("batch_size", "32"), ("dataset", "shapes"), ("width", "0.25")):
        assert by_flag[flag] == Setting(flag, value, "as given.")
    assert by_flag["optimizer"].value == "adamw"
    assert "blur" not in values(SMALL_CPU, augmentations="crop,blur")
    assert "resnet_depth" not in values(SMALL_CPU, encoder="keras_applications/mobilenet")
    assert values(SMALL_CPU, optimizer="sgd")["learning_rate"] == "0.03"


@pytest.mark.parametrize(
    ("seconds", "accelerator", "epochs"),
    [(None, False, 100), (36, False, 100), (36, True, 200), (1e-3, False, 200), (1e6, True, 10)],
)
def test_epochs_fit_the_time(seconds, accelerator, epochs):
    """An hour on a CPU, four on a GPU, within bounds."""
    assert epochs_for(seconds, accelerator)[0] == epochs


def test_images_like_those_of_cifar10_have_its_recipe():
    """That of an hour on a CPU, but for the length and the probe, with its rate as a linear one."""
    _, parsed = cli.parse(["pretrain", f"--flagfile={ONE_HOUR}", "--run_dir=a"])
    expected = {name: parsed[name].value for name in parsed if parsed[name].present}
    for flag in ("run_dir", "dataset", "epochs", "probe_every_epochs"):
        expected.pop(flag)
    assert expected.pop("learning_rate_scaling") == "none" and expected["batch_size"] == 256
    assert expected.pop("view_sizes") == "16:0.679,24:1"
    found = values(CIFAR10_CPU)
    assert found["learning_rate_scaling"] == "linear" and found["view_sizes"] == "16:0.68,24:1"
    for flag, value in expected.items():
        text = found[flag]
        assert text == str(value).lower() or float(text) == value, flag
    assert values(CIFAR10_CPU._replace(image_size=28))["view_sizes"] == "14:0.68,21:1"


@pytest.mark.parametrize(
    ("given", "peak"),
    [
        ({}, 4.8),
        ({"learning_rate_scaling": "sqrt"}, 4.8),
        ({"learning_rate_scaling": "none"}, 4.8),
        ({"batch_size": "1024"}, 9.6),
        ({"batch_size": "64", "optimizer": "lars"}, 1.2),
        ({"batch_size": "64", "optimizer": "lars", "learning_rate_scaling": "none"}, 1.2),
    ],
)
def test_the_rate_follows_batch_and_scaling(given, peak):
    """In proportion to batches up to 256, and with their square root above."""
    found = values(CIFAR10_CPU, **given)
    rate, batch = float(found["learning_rate"]), int(found["batch_size"])
    scale = {"none": 1, "linear": batch / 256, "sqrt": batch**0.5}[found["learning_rate_scaling"]]
    assert rate * scale == pytest.approx(peak)


@pytest.mark.parametrize(
    ("given", "absent"),
    [
        ({"resnet_depth": "14"}, ("encoder", "view_sizes", "whitening")),
        ({"encoder": "resnet"}, ("feature_dim", "view_sizes")),
        ({"encoder": "keras_applications/mobilenet"}, ("feature_dim", "stem", "resnet_depth")),
        ({"method": "looc"}, ("encoder", "projection_layers", "view_sizes")),
        ({"loss": "supervised"}, ("encoder",)),
        ({"views": "2x32"}, ("view_sizes",)),
        ({"transformed_views": "one"}, ("view_sizes",)),
        ({"augmentations": "crop,flip"}, ("view_sizes", "color_drop_probability")),
        ({"train_steps": "5"}, ("warmup_epochs", "view_sizes")),
        ({"epochs": "1"}, ("warmup_epochs", "view_sizes")),
        ({"projection_hidden_dim": "64"}, ("projection_layers",)),
        ({"normalize": "False"}, ("encoder",)),
        ({"whitening_examples": "4000"}, ("whitening",)),
        ({"max_crop_area": "0.1"}, ()),
        ({"feature_dim": "25001"}, ("whitening",)),
        ({"encoder": "airbench", "width": "0.5"}, ("stem", "resnet_depth")),
    ],
)
def test_what_does_not_go_with_a_flag_is_left_out(given, absent, tmp_path):
    """Of that recipe; the flags are accepted together."""
    found = values(CIFAR10_CPU, **given)
    assert not {*absent} & {*found}
    path = tmp_path / "a.cfg"
    path.write_text(flag_file(recommend(CIFAR10_CPU, given)))
    _, parsed = cli.parse(["pretrain", f"--flagfile={path}", f"--run_dir={tmp_path}/run"])
    checks.check_pretrain(cli.options_of(parsed))


@pytest.mark.parametrize(
    "facts", [SMALL_CPU, CIFAR10_CPU, LARGE_GPU, LARGE_GPU._replace(num_examples=40)]
)
def test_every_recipe_parses(facts, tmp_path):
    """As a flag file of pretrain; every value has a reason, one sentence in one line."""
    settings = recommend(facts, {})
    path = tmp_path / "a.cfg"
    path.write_text(flag_file(settings))
    _, parsed = cli.parse(["pretrain", f"--flagfile={path}", "--run_dir=a"])
    for flag, value, reason in settings:
        assert str(parsed[flag].value).lower() == value or float(parsed[flag].value) == float(value)
        assert reason.endswith(".") and "\n" not in reason and len(reason) > 8


def test_the_picture_has_a_column_for_each_heading(tmp_path):
    """Sheets of several data sets stand below each other."""
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3], np.uint8)
    one = report.Sheet("one", images, {"view": images / 255.0, "black": np.zeros([2, 8, 8, 3])})
    report.draw_preview([one], tmp_path / "one.png")
    single = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"))
    wide = report.Sheet("two", images, {str(n): images / 255.0 for n in range(5)})
    report.draw_preview([one, wide], tmp_path / "two.png")
    both = np.asarray(Image.open(tmp_path / "two.png").convert("RGB"))
    assert both.shape[0] == 2 * single.shape[0] and both.shape[1] > single.shape[1]
    # The views are there pixel by pixel: the black column, and the first pixel of the first view.
    zoom = 12
    edge = single.shape[0] - 2 * zoom * (8 + 4)
    assert (single[edge + 30 : edge + 110, -110:-30] == 0).all()
    left = zoom * (8 + 4 + 6 + 2)
    seen = single[edge + zoom * 2 + 6, left + 6].astype(int)
    assert np.abs(seen - images[0, 0, 0]).max() <= 2


@pytest.fixture
def photographs(tmp_path):
    """A folder of photographs of two shapes."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(20):
        size = (40, 30) if number % 2 else (30, 50)
        pixels = rng.integers(0, 256, [*size, 3], np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return f"folder:{tmp_path / 'photos'}"


@pytest.mark.usefixtures("quick_runs")
def test_the_sheet_shows_each_operator_alone(photographs, tmp_path):
    """Of photographs the centre squares; operators with a probability are always applied."""
    _, parsed = cli.parse(["preview", "--image_size=24", "--blur=yes"])
    options = cli.options_of(parsed)
    sheet = preview_command._sheet(options, data.load(photographs, "all", image_size=24))
    assert sheet.images.shape == (6, 24, 24, 3)
    assert list(sheet.columns) == [
        *("view 1", "view 2", "crop", "flip\np = 0.5", "color_jitter\np = 0.8"),
        *("color_drop\np = 0.2", "blur\np = 0.5"),
    ]
    assert {column.shape for column in sheet.columns.values()} == {(6, 24, 24, 3)}
    flipped = sheet.columns["flip\np = 0.5"]
    np.testing.assert_allclose(flipped, sheet.images[:, :, ::-1], atol=1e-6)
    assert np.ptp(sheet.columns["color_drop\np = 0.2"], axis=-1).max() < 1e-6
    assert np.abs(sheet.columns["view 1"] - sheet.columns["view 2"]).mean() > 0.01
    for flags, names in (
        (["--augmentations=crop,sobel:0.5"], ["crop", "sobel\np = 0.5"]),
        (["--augmentations=crop,rotate90", "--transformed_views=one"], ["crop", "rotate90"]),
        (["--method=looc", "--kept=rotate90"], ["crop", "rotate90"]),
        (
            ["--view_sizes=16:0.5,24:1"],
            [f"view {view}\n{side} pixels" for side in (16, 24) for view in (1, 2)],
        ),
    ):
        _, parsed = cli.parse(["preview", *flags])
        sheet = preview_command._sheet(cli.options_of(parsed), data.load("shapes", "test[:9]"))
        assert {*names} <= {*sheet.columns}, flags


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
@pytest.mark.parametrize(
    "flag", ["view_sizes=8:0.5,12:1", "views=2x12,1x8@0.1-0.3", "weight_average=0.9", "kept=flip"]
)
def test_flags_of_every_kind_of_value_are_kept(flag, tmp_path, capsys):
    """Lists, numbers and names, in the picture and in the recipe."""
    flags = [f"--{flag}", "--measure_steps=0", f"--output={tmp_path}/p.png"]
    if flag.startswith("kept"):
        flags.append("--method=looc")
    assert cli.main(["preview", *flags, f"--write_recipe={tmp_path}/my.cfg"]) == 0
    assert f"--{flag}\n" in (tmp_path / "my.cfg").read_text()


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_a_flag_given_as_none_is_not_in_the_recipe(tmp_path):
    """`--views` instead of the `--view_sizes` of a recipe."""
    (tmp_path / "a.cfg").write_text("--view_sizes=8:0.5,12:1\n--measure_steps=0\n")
    flags = [f"--flagfile={tmp_path}/a.cfg", "--view_sizes=none", "--views=2x12,1x8"]
    flags += [f"--output={tmp_path}/p.png", f"--write_recipe={tmp_path}/my.cfg"]
    assert cli.main(["preview", *flags]) == 0
    recipe = (tmp_path / "my.cfg").read_text()
    assert "--views=2x12,1x8" in recipe and "view_sizes" not in recipe
    flags = ["--view_sizes=none", "--feature_dim=none", "--measure_steps=0"]
    flags += [f"--output={tmp_path}/q.png", f"--write_recipe={tmp_path}/other.cfg"]
    assert cli.main(["preview", *flags]) == 0
    recipe = (tmp_path / "other.cfg").read_text()
    assert "airbench" in recipe and "view_sizes" not in recipe and "feature_dim" not in recipe


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_the_command_draws_measures_and_writes_a_recipe(tmp_path, monkeypatch, capsys):
    """And the recipe trains."""
    monkeypatch.chdir(tmp_path)
    one_second_a_step = types.SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(preview_command, "time", one_second_a_step)
    images = np.random.default_rng(0).integers(0, 256, [200, 12, 12, 3], np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images)
    flags = ["--dataset=npz:set.npz", "--width=0.0625", "--batch_size=96", "--measure_steps=1"]
    flags += ["--precision=float32", "--write_recipe=my.cfg", "--output=new/picture.png"]
    assert cli.main(["preview", *flags]) == 0
    out = capsys.readouterr().out
    assert min(Image.open(tmp_path / "new" / "picture.png").size) > 300
    assert "200 images of 12 pixels, 0 unreadable" in out
    assert re.search(r"epoch    2 steps of 96 images\n", out)
    assert "time     3.0 s an epoch (1 step measured, of 64 images, scaled to 96)\n" in out
    assert "run      400 steps, 10.0 minutes of training steps\n" in out
    assert re.search(r"memory   about \d+\.\d GB of this process\n", out)
    assert re.search(r"--width=0.0625 +as given\.\n", out)
    recipe = (tmp_path / "my.cfg").read_text()
    assert "# as given.\n--batch_size=96\n" in recipe and "measure_steps" not in recipe
    assert "next: simclr-tf pretrain --flagfile=my.cfg --run_dir=runs/new\n" in out
    _, parsed = cli.parse(["pretrain", "--flagfile=my.cfg", "--run_dir=a"])
    assert parsed["stem"].value == "cifar" and parsed["min_crop_area"].value == 0.2
    short = ["--train_steps=1", "--probe_every_epochs=-1", "--run_dir=a"]
    assert cli.main(["pretrain", "--flagfile=my.cfg", *short]) == 0


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_the_time_of_smaller_views_is_measured(tmp_path, monkeypatch, capsys):
    """Each size counts for its part of the epochs."""
    monkeypatch.setattr(
        preview_command, "_seconds_of_step", lambda model, *_: float(model.augment.size)
    )
    flags = ["--view_sizes=8:0.75,12:1", "--train_split=train[:128]", "--batch_size=64"]
    assert cli.main(["preview", *flags, "--epochs=2", f"--output={tmp_path}/p.png"]) == 0
    out = capsys.readouterr().out  # 2 steps x (0.75 x 8 + 0.25 x 12)
    assert "time     18 s an epoch (3 steps measured with each size of view)\n" in out


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_several_data_sets_in_one_picture(tmp_path, capsys):
    """A section, a plan and a recipe each; a length that is given is kept."""
    flags = ["--dataset=shapes, shapes_by_color", "--train_split=train[:16]", "--measure_steps=0"]
    picture = tmp_path / "a.png"
    assert cli.main(["preview", *flags, f"--output={picture}", "--epochs=3"]) == 0
    out = capsys.readouterr().out
    assert out.count("recipe\n") == 2 and out.count("--epochs=3 ") == 2
    assert "--dataset=shapes_by_color " in out and "measured" not in out
    assert Image.open(picture).height > 1000


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_photographs_are_taken_at_96_pixels_on_a_cpu(photographs, tmp_path, capsys):
    """Unless a size is given."""
    flags = [f"--dataset={photographs}", "--train_split=all", "--measure_steps=0"]
    flags += [f"--output={tmp_path / 'a.png'}"]
    assert cli.main(["preview", *flags]) == 0
    assert "--image_size=96 " in capsys.readouterr().out
    assert cli.main(["preview", *flags, "--image_size=32"]) == 0
    out = capsys.readouterr().out
    assert "20 images of 32 pixels" in out and re.search(r"--image_size=32 +as given\.", out)
    assert image_size_for(None, True)[0] == 224 and image_size_for(48, True)[0] == 48


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=a.pdf"], "--output must end in .png; got 'a.pdf'. Pass --output=a.pdf.png."),
        (["--write_recipe=there.cfg"], "--write_recipe must not exist; there.cfg does."),
        (["--dataset=a,b", "--write_recipe=x.cfg"], "--write_recipe is for one data set;"),
        (["--measure_steps=-1"], "--measure_steps must be a whole number in [0, 1000]; got '-1'."),
        (["--dataset=npz:none.npz"], "none.npz"),
        (["--kept=color"], "--kept needs --method=looc;"),
        (["--views=2x32", "--view_sizes=16:1"], "--views gives the views and their sizes; got"),
        (["--batch_size=100000", "--measure_steps=0"], "an epoch needs at least one full batch;"),
    ],
)
def test_mistakes(flags, message, tmp_path, monkeypatch, capsys):
    """One line, exit code 2, and no file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.cfg").write_text("")
    assert cli.main(["preview", *flags]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "simclr-tf: " in line]
    assert len(error) == 1 and message in error[0]
    assert [path.name for path in tmp_path.iterdir()] == ["there.cfg"]


def test_names_of_operators():
    """Those that `by_name` takes."""
    names = "crop,flip,color_jitter,color_drop,blur,cutout,gaussian_noise,rotate90,sobel,solarize"
    chain = augment.by_name(names, 8)
    assert ",".join(map(augment.name_of, chain.operators)) == names
    assert augment.name_of(augment.RandomView(8)) == "RandomView"
