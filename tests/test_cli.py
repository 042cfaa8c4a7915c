"""The command line end to end on small images: runs, resuming, mistakes."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclr_tf import cli, data, embeddings, errors
from simclr_tf.commands import build
from simclr_tf.commands import pretrain as pretrain_command
from simclr_tf.training import callbacks, run_directory
from test_pretrained import Official

SMALL = ["--resnet_depth=18", "--width=0.0625", "--batch_size=16", "--precision=float32"]
SMALL += ["--learning_rate=0.1", "--optimizer=sgd", "--projection_dim=8"]
SMALL += ["--probe_every_epochs=3"]  # the last epoch is enough


pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("quick_runs")]

# The same in a process of its own.
QUICK = """
import sys
from simclr_tf import augment, cli
from simclr_tf.encoders import resnet
make = augment.RandomView.__init__
make.__defaults__ = (*make.__defaults__[:-1], False)
resnet.BASIC_BLOCKS[18] = (2, 1, 1, 1)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An npz of 80 labelled images of 8 pixels, two classes by brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    pixels = (rng.random([80, 8, 8, 3]) * 100 + 120 * labels[:, None, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "set.npz"
    np.savez(path, x_train=pixels[:64], y_train=labels[:64], x_test=pixels[64:], y_test=labels[64:])
    return path


def pretrain(images, run_dir, *flags):
    """Exit code of a small pretraining."""
    return cli.main(
        [
            "pretrain",
            f"--dataset=npz:{images}",
            f"--run_dir={run_dir}",
            "--epochs=3",
            *SMALL,
            *flags,
        ]
    )


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory, quick_runs):
    """A run of three epochs."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    assert pretrain(images, run_dir) == 0
    return run_dir


CLOCK = {"images_per_second", "data_wait"}


def metrics_of(run_dir):
    """Rows of metrics.jsonl without the clock."""
    rows = run_directory.read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def test_a_run_leaves_what_the_design_says(finished):
    """Flags, named metrics, logs, checkpoints, the encoder, pictures."""
    rows = metrics_of(finished)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["step"] == 12
    assert {"loss", "contrastive_accuracy", "learning_rate", "knn_accuracy"} <= set(rows[-1])
    for name in ("flags.cfg", "logs", "checkpoints", "report.html", "export/1/saved_model.pb"):
        assert (finished / name).exists()
    for picture in ("views.png", "curve.png"):
        assert min(Image.open(finished / picture).size) > 20
    assert not list(finished.rglob(".*")), "temporary files are left"


def test_the_export_takes_images(finished):
    """serving_default: uint8 images of any size to h of the encoder."""
    served = tf.saved_model.load(str(finished / "export" / "1")).signatures["serving_default"]
    assert set(served.structured_input_signature[1]) == {"images"}
    for side in (8, 13):
        h = served(images=tf.zeros([2, side, side, 3], tf.uint8))["embedding"]
        assert h.shape == [2, 32] and h.dtype == tf.float32


@pytest.mark.usefixtures("no_export")
def test_the_flag_file_runs_it_again(finished, tmp_path):
    """The same metrics in another directory: a seed makes a run repeatable."""
    again = tmp_path / "again"
    assert cli.main(["pretrain", f"--flagfile={finished}/flags.cfg", f"--run_dir={again}"]) == 0
    assert metrics_of(again) == metrics_of(finished)


def test_the_same_command_on_a_finished_run_does_nothing(finished, images, capsys):
    """It logs that all epochs are done."""
    before = metrics_of(finished)
    assert pretrain(images, finished) == 0
    assert "holds all 3 epochs" in capsys.readouterr().err
    assert metrics_of(finished) == before


def test_a_changed_flag_is_refused_by_name(finished, images, capsys):
    """A flag that affects the result, with both values; one that does not may change."""
    assert pretrain(images, finished, "--temperature=0.7") == 2
    error = capsys.readouterr().err
    assert "--temperature=0.1, now --temperature=0.7" in error and error.count("\n") == 1
    assert pretrain(images, finished, "--probe_examples=7") == 0


@pytest.mark.slow
def test_a_killed_run_ends_as_one_left_alone(images, finished, tmp_path):
    """SIGKILL after the first epoch, then the same command again: the same metrics."""
    run_dir = tmp_path / "killed"
    command = [sys.executable, "-c", QUICK, "pretrain", f"--dataset=npz:{images}"]
    command += [f"--run_dir={run_dir}", "--epochs=3", *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (run_dir / "checkpoints" / "checkpoint").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(metrics_of(run_dir)) < 3, "it was killed too late to show anything"
    assert pretrain(images, run_dir) == 0
    for ours, theirs in zip(metrics_of(run_dir), metrics_of(finished)):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory, quick_runs):
    """A run with another seed that got Ctrl-C in its last epoch: exit code, stderr, directory."""
    run_dir, end_step = tmp_path_factory.mktemp("runs") / "stopped", callbacks.StopAtStep

    def end_step_and_interrupt(self, steps, logs, after=end_step.on_steps_end):
        after(self, steps, logs)
        if int(self.model.optimizer.iterations) == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as error:
        patch.setattr(end_step, "on_steps_end", end_step_and_interrupt)
        code = pretrain(images, run_dir, "--seed=1")
    return code, error.getvalue(), run_dir


def test_ctrl_c_leaves_a_resumable_run(stopped):
    """Exit code 130, a line with what the run directory keeps, no traceback."""
    code, error, run_dir = stopped
    assert code == 130 and len(metrics_of(run_dir)) == 2
    assert "keeps 2 whole epochs. The same command resumes" in error and "Traceback" not in error


def test_another_seed_is_another_run(stopped, finished):
    """The metrics of each epoch differ."""
    for ours, theirs in zip(metrics_of(stopped[2]), metrics_of(finished)):
        assert ours["step"] == theirs["step"] and ours["loss"] != theirs["loss"]


@pytest.mark.slow
def test_ctrl_c_ends_the_process(images, tmp_path):
    """Exit code 130, a line with what the run directory keeps, no traceback."""
    run_dir = tmp_path / "stopped"
    command = [sys.executable, "-m", "simclr_tf", "pretrain", f"--dataset=npz:{images}"]
    command += [f"--run_dir={run_dir}", "--epochs=2000", *SMALL, "--probe_every_epochs=-1"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 120
    while len(run_directory.read_metrics(run_dir / "metrics.jsonl")) < 2:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "The same command resumes" in error and "Traceback" not in error


def test_evaluate_ends_with_one_json_line(finished, capsys):
    """A table with the baselines, then the JSON."""
    assert cli.main(["evaluate", f"--run_dir={finished}", "--protocol=all", "--baselines"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [
        "features",
        "raw pixels",
        "random encoder",
        "trained encoder",
    ]
    result = json.loads(lines[-1])
    assert result["protocol"] == "all" and result["test_examples"] == 16
    assert 0.0 <= result["knn"] <= 1.0 and result["raw_pixels"]["linear"] == 1.0
    assert cli.main(["evaluate", f"--run_dir={finished}"]) == 0
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert again["protocol"] == "knn" and again["accuracy"] == result["knn"]
    assert again["k"] == result["k"] == 64, "fewer training images than --knn_k, which is 200"
    assert cli.main(["evaluate", f"--run_dir={finished}", "--knn_k=7"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["k"] == 7


def test_an_unfinished_run_is_used_and_named(stopped, finished, tmp_path, capsys):
    """By evaluate, embed and export; the JSON of evaluate has the epoch of every run."""
    for run_dir, done in ((stopped[2], 2), (finished, 3)):
        commands = [
            ["evaluate"],
            ["embed", f"--output={tmp_path}/{done}.npz"],
            ["export", f"--output={tmp_path}/{done}.tflite", "--format=tflite"],
        ]
        for command, *flags in commands:
            assert cli.main([command, f"--run_dir={run_dir}", *flags]) == 0
            out, error = capsys.readouterr()
            assert ("the run has 2 of 3 epochs.\n" in error) == (done == 2)
            if command == "evaluate":
                result = json.loads(out.splitlines()[-1])
                assert (result["epoch"], result["planned_epochs"]) == (done, 3)


def test_the_epochs_of_a_run_of_so_many_steps(tmp_path):
    """As many as --train_steps takes with the examples that the run has recorded."""
    _, values = cli.parse(["pretrain", f"--run_dir={tmp_path}", "--epochs=9", "--batch_size=10"])
    options = cli.options_of(values)
    assert build.planned_epochs(options) == 9
    of_steps = options.replace(train_steps=7)
    assert build.planned_epochs(of_steps) is None
    run_directory.RunDirectory(tmp_path).check_same_data(39, "a hash")
    assert build.planned_epochs(of_steps) == 3


def test_embed_writes_embeddings_labels_and_ids(finished, tmp_path):
    """Of every example, in the order of the data."""
    path = tmp_path / "h.npz"
    assert cli.main(["embed", f"--run_dir={finished}", f"--output={path}", "--split=test"]) == 0
    with np.load(path) as arrays:
        assert arrays["embeddings"].shape == (16, 32)
        np.testing.assert_array_equal(arrays["labels"], np.arange(64, 80) % 2)
        assert len(set(arrays["ids"])) == 16


def test_export_writes_the_encoder(finished, tmp_path, capsys):
    """A layer of the head, normalised; an existing path is refused."""
    path = tmp_path / "encoder" / "1"
    command = ["export", f"--run_dir={finished}", f"--output={path}", "--layer=z", "--normalize"]
    assert cli.main(command) == 0
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    z = served(images=tf.zeros([2, 8, 8, 3], tf.uint8))["embedding"]
    assert z.shape == [2, 8]
    np.testing.assert_allclose(tf.norm(z, axis=1), 1.0, rtol=1e-5)
    assert cli.main(command) == 2
    assert "must not exist" in capsys.readouterr().err


def test_export_for_tensorflow_lite(finished, tmp_path, capfd):
    """int8 with ranges measured on the run's images; a quiet converter; usage is exit code 2."""
    path = tmp_path / "encoder.tflite"
    command = ["export", f"--run_dir={finished}", f"--output={path}", "--precision=int8"]
    assert cli.main(command) == 2
    assert "--precision=int8 is for --format=tflite" in capfd.readouterr().err
    assert cli.main([*command, "--format=tflite", "--examples=20"]) == 0
    assert capfd.readouterr().err == f"wrote the encoder to {path}\n"
    runner = tf.lite.Interpreter(str(path)).get_signature_runner("serving_default")
    assert runner(images=np.zeros([2, 8, 8, 3], np.uint8))["embedding"].shape == (2, 32)


@pytest.mark.usefixtures("one_layer")
def test_smaller_views_first(images, tmp_path):
    """--view_sizes: the run ends at the full size; views.png shows views of both sizes."""
    assert pretrain(images, tmp_path / "sizes", "--view_sizes=4:0.5,8:1") == 0
    assert len(metrics_of(tmp_path / "sizes")) == 3
    sheet = np.asarray(Image.open(tmp_path / "sizes" / "views.png").convert("RGB"))
    row = sheet[2 * (2 + 4)].max(axis=-1)  # through the middle of the first image
    assert np.sum(row != 255) <= 2 * (8 + 4 * 4 + 4 * 8)


@pytest.mark.usefixtures("one_layer")
def test_train_steps_override_epochs(images, tmp_path, monkeypatch, capsys):
    """Six steps are one epoch and a half; with LAMB, whose rate is a schedule object.

    With `--steps_per_execution=2` there are two steps between callbacks; test_whole_step.py tests
    that they are the same steps.
    """
    called_at, check = [], callbacks.StopAtStep.on_steps_end

    def check_and_note(self, steps, logs):
        called_at.append(steps)
        check(self, steps, logs)

    monkeypatch.setattr(callbacks.StopAtStep, "on_steps_end", check_and_note)
    flags = ["--train_steps=6", "--optimizer=lamb", "--steps_per_execution=2"]
    assert pretrain(images, tmp_path / "steps", *flags) == 0
    assert "; 6 steps (1.5 epochs) of 16 images." in capsys.readouterr().err
    rows = metrics_of(tmp_path / "steps")
    assert [row["step"] for row in rows] == [4, 6]
    assert called_at == [2, 4, 2]


@pytest.mark.usefixtures("one_layer")
def test_a_test_split_without_labels_means_no_probe(images, tmp_path, capsys):
    """The run continues and logs why there is no probe."""
    with np.load(images) as arrays:
        parts = {name: arrays[name] for name in ("x_train", "y_train", "x_test")}
    np.savez(tmp_path / "half.npz", **parts)
    assert pretrain(tmp_path / "half.npz", tmp_path / "run", "--train_steps=1") == 0
    assert "no labels" in capsys.readouterr().err
    options = cli.options_of_run(tmp_path / "run").replace(dataset=f"npz:{images}", test_split="no")
    assert pretrain_command.load_sources(options)[1] is None
    error = capsys.readouterr().err
    assert "no kNN probe during training" in error and "--test_split must be one of train" in error
    assert "knn_accuracy" not in metrics_of(tmp_path / "run")[0]


@pytest.mark.usefixtures("one_layer")
def test_unlabelled_images_train_and_cannot_be_evaluated(tmp_path, capsys):
    """A folder of files without classes; the corrupt one is listed in the run directory."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, [9 + index, 12, 3], np.uint8)).save(
            folder / f"{index}.png"
        )
    (folder / "broken.jpg").write_bytes(b"not a picture")
    flags = ["--image_size=8", "--max_corrupt_share=0.1", "--epochs=1", *SMALL]
    command = ["pretrain", f"--dataset=folder:{folder}", f"--run_dir={tmp_path / 'run'}", *flags]
    assert cli.main(command) == 0
    assert "; 1 epoch of 1 step of 16 images." in capsys.readouterr().err
    assert (tmp_path / "run" / "corrupt.txt").read_text().startswith("broken.jpg\t")
    assert cli.main(["evaluate", f"--run_dir={tmp_path / 'run'}"]) == 2
    assert "needs labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size must be even; got 3.", "--batch_size must be even; got 3."),
        ("Lower --batch_size, or (batch_size=4).", "Lower --batch_size, or (--batch_size=4)."),
        ("width=2; the width of width must be 1", "--width=2; the width of --width must be 1"),
        ("'batch_size' in a/run_dir/b, run_dir's", "'batch_size' in a/run_dir/b, --run_dir's"),
        ('`batch_size`, "a batch_size b" don\'t', '`batch_size`, "a batch_size b" don\'t'),
        ("micro_batch_sizes of batch_size_2 is not", "micro_batch_sizes of batch_size_2 is not"),
    ],
)
def test_arguments_in_messages_are_shown_as_flags(message, expected):
    """Names with an underscore everywhere, words before "=" and " must"; no quotes, no paths."""
    assert cli.name_flags(message, {"batch_size", "width", "run_dir"}) == expected


@pytest.mark.parametrize("error", [ValueError("not broadcastable"), OSError(5, "a bug")])
def test_an_exception_that_is_not_the_packages_own_shows_its_traceback(
    error, finished, monkeypatch
):
    """A ValueError raised inside NumPy is a bug, not a mistake of the user."""

    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(np, "concatenate", fail)
    with pytest.raises(type(error)):
        cli.main(["evaluate", f"--run_dir={finished}"])


def test_a_file_that_cannot_be_read_is_one_line(finished, tmp_path, capsys, monkeypatch):
    """An OSError while the data is read, here of a path that a flag names: exit code 2."""

    def fail(*arguments, **keywords):
        raise PermissionError(13, "Permission denied", "photos/1.png")

    monkeypatch.setattr(data, "load", fail)
    assert cli.main(["embed", f"--run_dir={finished}", f"--output={tmp_path}/h.npz"]) == 2
    assert "photos/1.png cannot be read: Permission denied" in capsys.readouterr().err


def test_options_are_a_value():
    """They cannot be changed; a copy with other values is another one."""
    options = cli.Options(epochs=3, run_dir="a")
    with pytest.raises(AttributeError, match="cannot be changed"):
        options.epochs = 4
    assert options.replace(epochs=4).epochs == 4 and options.epochs == 3


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=lambda command: command.name)
def test_a_command_is_one_record(command):
    """Its function is there, and every flag that the record names is one of its flags."""
    module, _, function = command.run.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    named = {*command.required, *command.exactly_one, *command.required_without_run}
    assert named | {*command.resumable} <= set(cli._flag_values(command))


def test_an_encoder_is_the_same_from_a_run_an_export_and_official_weights(
    finished, images, tmp_path, capsys
):
    """The embeddings to 1e-4; the accuracies; the JSON names the source."""
    options = cli.Options(image_size=None)
    encoder = build.load_encoder(options, cli.options_of_run(finished)).encoder
    official = Official(encoder).save_checkpoint(tmp_path / "official")
    dataset = [f"--dataset=npz:{images}", "--image_size=8"]
    sources = {
        "run_dir": [f"--run_dir={finished}"],
        "saved_model": [f"--saved_model={finished}/export", *dataset],
        "official_weights": [f"--official_weights={official}", *dataset],
    }
    found, results = {}, {}
    for name, flags in sources.items():
        output = tmp_path / f"{name}.npz"
        assert cli.main(["embed", *flags, f"--output={output}", "--split=test"]) == 0
        found[name] = embeddings.read(output)
        capsys.readouterr()
        assert cli.main(["evaluate", *flags]) == 0
        results[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert results[name]["encoder_source"] == name
        assert results[name]["encoder_path"] in flags[0]
    for name, features in found.items():
        np.testing.assert_allclose(features.h, found["run_dir"].h, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(features.ids, found["run_dir"].ids)
        assert results[name]["accuracy"] == results["run_dir"]["accuracy"]


@pytest.mark.usefixtures("one_layer")
def test_photographs_of_several_sizes(tmp_path, capsys):
    """Trained on whole, embedded by their centres; nothing on stderr."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(16):
        height, width = [(12, 18), (18, 12), (8, 8), (40, 60)][i % 4]
        pixels = rng.integers(0, 256, [height, width, 3], np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    flags = [f"--dataset=folder:{tmp_path / 'photos'}", "--image_size=8", "--epochs=1", *SMALL]
    run_dir = f"--run_dir={tmp_path / 'run'}"
    assert cli.main(["pretrain", run_dir, *flags]) == 0
    assert cli.main(["embed", run_dir, f"--output={tmp_path / 'h.npz'}"]) == 0
    with np.load(tmp_path / "h.npz") as arrays:
        assert arrays["embeddings"].shape == (16, 32)
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.usefixtures("one_layer")
def test_a_loss_that_turns_nan_stops_the_run(images, tmp_path, capsys):
    """With advice; as there is no checkpoint yet, the directory accepts other flags."""
    flags = ["--learning_rate=1e30", "--learning_rate_scaling=none", "--epochs=1"]
    assert pretrain(images, tmp_path / "nan", *flags) == 1
    assert "Lower --learning_rate" in capsys.readouterr().err
    assert not list((tmp_path / "nan").glob("checkpoints/*"))
    assert pretrain(images, tmp_path / "nan", "--train_steps=2") == 0


@pytest.mark.usefixtures("one_layer")
def test_changed_training_data_is_refused(images, tmp_path, capsys):
    """A run resumes on the examples that it began with, or not at all."""
    with np.load(images) as arrays:
        np.savez(tmp_path / "set.npz", **{name: arrays[name] for name in arrays})
        more = np.concatenate([arrays["x_train"]] * 2), np.concatenate([arrays["y_train"]] * 2)
    assert pretrain(tmp_path / "set.npz", tmp_path / "run", "--train_steps=2") == 0
    np.savez(tmp_path / "set.npz", x_train=more[0], y_train=more[1])
    capsys.readouterr()
    assert pretrain(tmp_path / "set.npz", tmp_path / "run", "--train_steps=2") == 2
    assert "64 examples then, 128 now" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("flag", ["temperature", "learning_rate", "width", "min_crop_area"])
def test_float_flags_are_finite(flag, value, capsys):
    """One line and exit code 2, before anything is trained."""
    assert cli.main(["pretrain", "--run_dir=runs/a", f"--{flag}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--{flag}" in error


def test_a_tilde_in_a_path_is_the_home_directory(monkeypatch):
    """--run_dir=~/runs/a, which no shell expands."""
    monkeypatch.setenv("HOME", "/home/somebody")
    _, values = cli.parse(["pretrain", "--run_dir=~/runs/a", "--data_dir=~/data"])
    options = cli.options_of(values)
    assert (options.run_dir, options.data_dir) == ("/home/somebody/runs/a", "/home/somebody/data")


def test_none_undoes_a_flag_of_a_flag_file(tmp_path):
    """Text, numbers and booleans without a default; flags with one keep their rule."""
    recipe = tmp_path / "recipe.cfg"
    recipe.write_text("--view_sizes=16:0.5,32:1\n--feature_dim=64\n--symmetric\n--epochs=3\n")
    undone = ["--view_sizes=none", "--feature_dim=none", "--symmetric=none"]
    _, values = cli.parse(["pretrain", "--run_dir=a", f"--flagfile={recipe}", *undone])
    options = cli.options_of(values)
    assert (options.view_sizes, options.feature_dim, options.symmetric) == (None, None, None)
    assert not {"view_sizes", "feature_dim", "symmetric"} & set(cli.flag_texts(values))
    assert options.epochs == 3
    with pytest.raises(errors.UsageError, match=r"--epochs must be .* got 'none'"):
        cli.parse(["pretrain", "--run_dir=a", f"--flagfile={recipe}", "--epochs=none"])
    with pytest.raises(errors.UsageError, match="pretrain needs --run_dir"):
        cli.parse(["pretrain", "--run_dir=none"])
