"""`simclr-tf study`: its settings, runs that are interrupted and continued, tables, pictures."""

import contextlib
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from simclr_tf import augment, cli, errors, heads, losses, studies
from simclr_tf.commands import build, flags
from simclr_tf.commands import study as study_command
from simclr_tf.studies import (
    batch_epochs,
    composition,
    figures,
    predict_transformation,
    processes,
    runner,
    strength,
)
from simclr_tf.studies.processes import Ended
from simclr_tf.training.run_directory import read_metrics

TINY = ["--batch_size=16", "--epochs=1", "--precision=float32", "--image_size=8"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An npz of 64 labelled images of 8 pixels, two classes by brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    pixels = (rng.random([64, 8, 8, 3]) * 100 + 120 * labels[:, None, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "set.npz"
    np.savez(path, x_train=pixels[:48], y_train=labels[:48], x_test=pixels[48:], y_test=labels[48:])
    return path


class InProcess:
    """In place of `processes.run_command`: fast, and a fixture's small networks are used.

    Attributes:
      words: the commands so far, each without the flags that all of them have.
      before: called with the words of a command before it; returns an `Ended` in its place or None.
    """

    def __init__(self):
        self.words, self.before = [], lambda words: None

    def __call__(self, words, log_path):
        self.words.append(words)
        ended = self.before(words)
        if ended is not None:
            return ended
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = cli.main(words)
        lines = error.getvalue().splitlines() or [""]
        return Ended(code, out.getvalue(), lines[-1].removeprefix("simclr-tf: "))

    def count(self, command, setting):
        """How often a command was called for a setting."""
        ending = f"/runs/{setting}"
        return sum(w[0] == command and w[1].endswith(ending) for w in self.words)


@pytest.fixture
def call(one_layer, monkeypatch):
    """Commands of a study in this process; `strength` has two settings."""
    call = InProcess()
    monkeypatch.setattr(study_command, "run_command", call)
    monkeypatch.setattr(strength, "_STRENGTHS", ("0.25",))
    return call


def run_study(images, out, *flags, name="strength"):
    """Exit code of a tiny study."""
    return cli.main(["study", name, f"--out={out}", f"--dataset=npz:{images}", *TINY, *flags])


def results_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def stop_at(command, ending):
    """Stops a study before a command of the settings whose name has that ending."""

    def stop(words):
        if words[0] == command and words[1].endswith(ending):
            return Ended(os.EX_TEMPFAIL, "", "stopped by SIGTERM.")

    return stop


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.end_to_end
def test_a_study_ends_in_a_table_and_a_picture(images, tmp_path, call, capsys, monkeypatch):
    """The scores are those of `evaluate`, and a second call does nothing but write them again."""
    assert run_study(images, tmp_path / "s") == 0
    out, error = capsys.readouterr()
    rows = results_of(tmp_path / "s")
    assert [row["setting"] for row in rows] == ["strength-0.25", "strength-0.25-blur"]
    assert "setting 1 of 2: strength-0.25\n" in error
    assert "setting 2 of 2: strength-0.25-blur; less than a minute left\n" in error
    run_dir = tmp_path / "s" / "runs" / "strength-0.25-blur"
    options = cli.options_of_run(run_dir)
    assert (options.blur, options.color_jitter_strength, options.optimizer) == (
        "yes",
        0.25,
        "adamw",
    )
    assert cli.main(["evaluate", f"--run_dir={run_dir}", "--protocol=linear"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert rows[1]["scores"] == [{"linear_h": scores["linear"]}]
    metrics = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    with open(tmp_path / "s" / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["blur"] for row in table] == ["no", "yes"]
    assert float(table[1]["linear_h"]) == scores["linear"]
    assert float(table[1]["contrastive_accuracy"]) == metrics["contrastive_accuracy"]
    assert out == (tmp_path / "s" / "table.md").read_text()
    assert "| strength | blur | linear_h | contrastive_accuracy | seconds | error |" in out
    assert min(Image.open(tmp_path / "s" / "figure.png").size) > 100
    assert not list((tmp_path / "s").rglob(".*")), "temporary files are left"
    commands = len(call.words)
    drawn = []

    def draw_points(*args, **kwargs):
        drawn.append(args)
        figures.draw_points(*args, **kwargs)

    monkeypatch.setattr(strength, "draw_points", draw_points)
    assert run_study(images, tmp_path / "s") == 0
    assert len(call.words) == commands and results_of(tmp_path / "s") == rows
    points, _, x, columns = drawn[0]
    assert [point[x] for point in points] == ["0.25", "0.25 + blur"]
    assert points[1][columns[0]] == scores["linear"]


@pytest.mark.end_to_end
def test_it_continues_where_it_was_stopped(images, tmp_path, call, capsys):
    """A setting that has ended is not run again; one that was stopped resumes its run."""
    call.before = stop_at("evaluate", "blur")
    assert run_study(images, tmp_path) == 75
    error = capsys.readouterr().err
    assert f"{tmp_path} has 1 of 2 settings. Start the same command again." in error
    assert len(results_of(tmp_path)) == 1 and not (tmp_path / "table.csv").exists()
    call.before = lambda words: None
    metrics = tmp_path / "runs" / "strength-0.25-blur" / "metrics.jsonl"
    before = metrics.read_text()
    assert run_study(images, tmp_path) == 0
    assert len(results_of(tmp_path)) == 2 and metrics.read_text() == before
    assert call.count("pretrain", "strength-0.25") == call.count("evaluate", "strength-0.25") == 1
    assert call.count("pretrain", "strength-0.25-blur") == 2


@pytest.mark.end_to_end
def test_ctrl_c_is_told(images, tmp_path, call, capsys):
    """Exit code 130, and what there is."""

    def interrupt(words):
        raise KeyboardInterrupt

    call.before = interrupt
    assert run_study(images, tmp_path) == 130
    error = capsys.readouterr().err
    assert f"stopped; {tmp_path} has 0 of 2 settings. The same command continues there." in error


@pytest.mark.end_to_end
def test_a_setting_that_fails_is_a_row_with_its_reason(images, tmp_path, call, capsys):
    """The others are run, the exit code is 1, and the next call tries it again."""

    def fail(words):
        if words[0] == "pretrain" and not words[1].endswith("blur"):
            return Ended(1, "", "the loss is nan. Lower --learning_rate.")

    call.before = fail
    assert run_study(images, tmp_path) == 1
    out, error = capsys.readouterr()
    assert "simclr-tf: 1 of 2 settings failed; the table has the reasons." in error
    assert "the loss is nan. Lower --learning_rate." in out
    rows = results_of(tmp_path)
    assert rows[0]["error"] and rows[0]["scores"] == [{"linear_h": None}] and not rows[1]["error"]
    assert (tmp_path / "figure.png").exists()
    call.before = lambda words: None
    assert run_study(images, tmp_path) == 0
    assert not any(row["error"] for row in results_of(tmp_path))
    assert call.count("pretrain", "strength-0.25-blur") == 1


@pytest.mark.end_to_end
def test_flags_that_are_wrong_in_every_setting_end_it_at_once(images, tmp_path, call, capsys):
    """With the line of `pretrain`; the corrected command may use the same directory."""
    assert run_study(images, tmp_path, "--batch_size=100") == 2
    assert "--batch_size is 100" in capsys.readouterr().err
    assert len(call.words) == 1 and not (tmp_path / "results.jsonl").exists()
    call.before = stop_at("pretrain", "")
    assert run_study(images, tmp_path) == 75
    assert len(call.words) == 2


@pytest.mark.end_to_end
def test_other_flags_are_refused_and_harmless_ones_are_not(images, tmp_path, call, capsys):
    """As by a run; the message names the flag with both values."""
    call.before = stop_at("pretrain", "blur")
    assert run_study(images, tmp_path, "--protocol=knn") == 75
    assert results_of(tmp_path)[0]["scores"][0]["knn_h"] > 0
    capsys.readouterr()
    commands = len(call.words)
    assert run_study(images, tmp_path, "--protocol=knn", "--width=0.5") == 2
    error = capsys.readouterr().err
    assert "holds a study with other flags: --width=None, now --width=0.5. Pass the same" in error
    assert len(call.words) == commands
    assert run_study(images, tmp_path, "--protocol=knn", "--cache_gigabytes=1") == 75
    assert len(call.words) == commands + 1, "it is not refused"


@pytest.mark.end_to_end
def test_a_directory_in_use_is_refused(images, tmp_path, call, capsys):
    """By the lock that runs have too."""
    with study_command.RunDirectory(tmp_path).locked():
        assert run_study(images, tmp_path) == 2
    assert f"is writing to {tmp_path}. Wait for it, stop it, or use another --out." in (
        capsys.readouterr().err
    )


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["temprature", "--out=x"],
            f"NAME must be one of {', '.join(flags.STUDIES)}; got 'temprat",
        ),
        (["--out=x"], "got none. Write `simclr-tf study temperature --out=DIR`."),
        (["temperature"], "study needs --out."),
        (["temperature", "head", "--out=x"], "study takes flags only; got 'head'."),
        (["temperature", "--out=x", "--epochs=0"], "--epochs must be a whole number in [1, "),
        (["temperature", "--out=x", "--protocol=all"], "--protocol must be one of linear, knn"),
        (["temperature", "--out=file/x"], "file is a file. Choose another path."),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    """Exit code 2, before TensorFlow would be imported, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(["study", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- commands in processes of their own ------------------------------------------------------------


def test_a_command_in_a_process_of_its_own(tmp_path):
    """Its exit code, its stdout, and its last line on stderr."""
    ended = processes.run_command(["study", "no"], tmp_path / "logs" / "a.txt")
    assert ended == Ended(2, "", "study needs --out.")
    assert (tmp_path / "logs" / "a.txt").read_text() == "simclr-tf: study needs --out.\n"
    ended = processes.run_command(["export", "--help"], tmp_path / "logs" / "a.txt")
    assert ended.code == 0 and ended.output.startswith("simclr-tf export")


_WAITS = """
import signal, sys, time
def stop(*_):
    print("saved", file=sys.stderr)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_sigterm_is_passed_on(tmp_path, monkeypatch):
    """The command saves its state; this process goes on, and knows that it was asked to stop."""
    monkeypatch.setattr(processes, "_PROGRAM", (sys.executable, "-c", _WAITS))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    ended = processes.run_command([], tmp_path / "a.txt")
    assert ended == Ended(75, "ready\n", "saved", stopped=True)


def test_a_command_that_is_killed_is_told(tmp_path, monkeypatch):
    """As by a machine without memory."""
    program = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(processes, "_PROGRAM", program)
    assert processes.run_command([], tmp_path / "a.txt").reason == "killed by SIGKILL"


@pytest.mark.end_to_end
@pytest.mark.slow
def test_a_study_in_real_processes_is_stopped_and_continued(images, tmp_path):
    """SIGTERM within the training of its run: exit code 75, then the same command ends it."""
    out = tmp_path / "study"
    words = ["predict_transformation", f"--out={out}", f"--dataset=npz:{images}", *TINY[:1]]
    words += ["--epochs=40", "--width=0.0625", "--precision=float32"]
    command = [sys.executable, "-m", "simclr_tf", "study", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = out / "runs" / "pretraining" / "metrics.jsonl", time.time() + 200
    while len(read_metrics(metrics)) < 2:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and error.count("simclr-tf: ") == 1
    assert "has 0 of 1 settings. Start the same command again." in error
    assert len(read_metrics(metrics)) < 40
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert len(read_metrics(metrics)) == 40
    assert ended.stdout == (out / "table.md").read_text() and ended.stdout.count("\n") == 6


# -- settings --------------------------------------------------------------------------------------


def settings_of(name, **given):
    study = studies.STUDIES[name]
    return study.settings(study.flags(given))


def test_the_studies_of_the_command_are_there():
    """The command line names them without importing them."""
    assert flags.STUDIES == tuple(studies.STUDIES)


@pytest.mark.parametrize("name", flags.STUDIES)
def test_the_flags_of_every_setting_are_flags_of_pretrain(name, tmp_path):
    """They parse, are checked, and name runs in directories of their own."""
    study = studies.STUDIES[name]
    flags = study.flags({})
    settings = study.settings(flags)
    assert len({setting.name for setting in settings}) == len(settings)
    columns = [tuple(setting.columns) for setting in settings]
    assert len(set(columns)) == 1
    for setting in settings:
        merged = {**flags, **setting.flags}
        words = [f"--{key}={text}" for key, text in merged.items()]
        _, values = cli.parse(["pretrain", f"--run_dir={tmp_path / setting.name}", *words])
        cli.COMMANDS["pretrain"].check(cli.options_of(values))
        assert set(setting.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_")


def test_settings_of_strength():
    """Table 1 without AutoAugment."""
    found = [(s.flags["color_jitter_strength"], s.flags["blur"]) for s in settings_of("strength")]
    assert found == [("0.125", "no"), ("0.25", "no"), ("0.5", "no"), ("1", "no"), ("1", "yes")]


def test_settings_of_temperature():
    """Table 5."""
    found = [(s.flags["normalize"], s.flags["temperature"]) for s in settings_of("temperature")]
    cosine = [("true", temperature) for temperature in ("0.05", "0.1", "0.5", "1")]
    assert found == [*cosine, ("false", "10"), ("false", "100")]


def test_settings_of_head():
    """Figure 8; at full size with --projection_dim=2048."""
    found = [tuple(setting.columns.values()) for setting in settings_of("head")]
    dims = ("32", "64", "128", "256")
    expected = [(kind, dim) for kind in ("linear", "nonlinear") for dim in dims]
    assert found == [("none", "h"), *expected]
    assert settings_of("head")[1].flags == {"projection_layers": "1", "projection_dim": "32"}
    assert settings_of("head")[5].flags == {"projection_layers": "2", "projection_dim": "32"}
    full = settings_of("head", projection_dim="2048")
    assert [s.columns["output_dim"] for s in full[1:8]] == [str(2**n) for n in range(5, 12)]


def test_settings_of_batch_epochs():
    """Figure 9; halves of what is given."""
    found = [tuple(setting.flags.values()) for setting in settings_of("batch_epochs")]
    batches = ("32", "64", "128", "256", "512")
    assert found == [(epochs, batch) for epochs in ("4", "8", "16") for batch in batches]
    few = settings_of("batch_epochs", epochs="1", batch_size="5")
    assert [tuple(setting.flags.values()) for setting in few] == [("1", "2"), ("1", "5")]
    assert batch_epochs.BATCH_EPOCHS.flags({})["learning_rate_scaling"] == "sqrt"


def test_settings_of_composition():
    """Figure 5: seven alone, 42 ordered pairs."""
    found = {setting.name: setting for setting in settings_of("composition")}
    assert len(found) == 49 and sum("-" not in name for name in found) == 7
    pair = found["color-crop"]
    assert pair.flags == {
        "augmentations": "color_jitter,color_drop,crop",
        "transformed_views": "one",
    }
    assert pair.columns == {"first": "color", "second": "crop"}
    assert found["blur"].columns == {"first": "blur", "second": "blur"}


@pytest.mark.end_to_end
def test_given_flags_come_before_the_budget_and_after_the_setting(images, tmp_path, call):
    """--temperature is what every setting has, except where the study varies it."""
    call.before = stop_at("evaluate", "")
    assert run_study(images, tmp_path, "--temperature=0.3", "--color_jitter_strength=0.7") == 75
    options = cli.options_of_run(tmp_path / "runs" / "strength-0.25")
    assert (options.temperature, options.color_jitter_strength, options.width) == (0.3, 0.25, 0.25)


# -- pictures --------------------------------------------------------------------------------------


def test_the_heat_map_is_that_of_figure_5(tmp_path):
    """Rows are the first operator, columns the second, then the mean; one alone is diagonal."""
    names = list(composition.OPERATORS)
    rows = [
        {"first": a, "second": b, "linear_h": (10 * i + j) / 100}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    rows[3]["linear_h"] = None  # crop, then sobel
    matrix = np.array(composition.matrix(rows, "linear_h"))
    assert matrix.shape == (7, 8)
    assert matrix[0, 0] == 0.0 and matrix[2, 5] == 0.25 and matrix[5, 2] == 0.52
    assert math.isnan(matrix[0, 3]) and matrix[0, 7] == pytest.approx((1 + 2 + 4 + 5 + 6) / 600)
    assert matrix[6, 7] == pytest.approx(np.mean(matrix[6, :7]))
    composition.draw(rows, ["linear_h"], tmp_path / "figure.png", "title")
    assert min(Image.open(tmp_path / "figure.png").size) > 100


def test_a_heat_map_without_results_can_be_drawn(tmp_path):
    """Where every setting failed."""
    rows = [{"first": "crop", "second": "blur", "linear_h": None}]
    composition.draw(rows, ["linear_h"], tmp_path / "figure.png", "")
    assert (tmp_path / "figure.png").exists()


def test_points_are_those_of_the_rows():
    """By series; a row without a score is left out."""
    rows = [
        {"x": "1", "kind": "a", "h": 0.5},
        {"x": "2", "kind": "a", "h": None},
        {"x": "2", "kind": "b", "h": 0.7},
    ]
    found = figures.points_of(rows, "x", "h", "kind")
    assert found == {"a": [("1", 0.5)], "b": [("2", 0.7)]}
    assert figures.points_of(rows, "x", "h") == {"": [("1", 0.5), ("2", 0.7)]}


def test_bars_are_as_high_as_the_accuracies(tmp_path, monkeypatch):
    """One for each accuracy there is, above its group; the line of chance crosses the group."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    bars, chance = {"h": [0.9, None], "z": [0.8, 0.3]}, ("chance", [0.5, 0.25])
    figures.draw_bars(bars, ["noise", "rotation"], tmp_path / "figure.png", "title", chance)
    (panel,) = drawn[0].axes
    centres = [(round(bar.get_center()[0]), bar.get_height()) for bar in panel.patches]
    assert centres == [(0, 90.0), (0, 80.0), (1, 30.0)]
    lines = [segment.tolist() for segment in panel.collections[0].get_segments()]
    assert lines == [[[-0.45, 50.0], [0.45, 50.0]], [[0.55, 25.0], [1.45, 25.0]]]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["noise", "rotation"]


@pytest.mark.parametrize("name", flags.STUDIES)
@pytest.mark.parametrize("failed", [False, True])
def test_every_study_draws_its_rows(name, failed, tmp_path):
    """Also where every setting failed."""
    study = studies.STUDIES[name]
    run = runner.Runner(study, tmp_path, study.flags({}), "linear", data_of_task=lambda name: name)
    score = None if failed else 0.5
    for setting in run.settings:
        scores = [dict.fromkeys(row, score) | row for row in run._no_scores()]
        for row in scores:
            row.update(dict.fromkeys(run.score_columns, score))
        run.results[setting.name] = {
            "scores": scores,
            "contrastive_accuracy": score,
            "seconds": 3.5,
            "error": "a reason" if failed else None,
        }
    study.draw(run.rows(), run.score_columns, tmp_path / "figure.png", study.title)
    assert min(Image.open(tmp_path / "figure.png").size) > 100


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(20, "less than a minute"), (31, "1 min"), (3599, "1 h 0 min"), (3900, "1 h 5 min")],
)
def test_durations_in_words(seconds, words):
    assert runner.duration(seconds) == words


# -- predict_transformation ------------------------------------------------------------------------


def test_transformations_are_applied_to_equal_parts(tmp_path):
    """Labelled with their number; the first one is the image as it is."""
    rng = np.random.default_rng(0)
    split = {"train": rng.integers(0, 256, [24, 8, 8, 3], np.uint8), "test": None}
    split["test"] = split["train"][:8]
    for name, task in predict_transformation.PREDICT_TRANSFORMATION.tasks.items():
        predict_transformation.write_data_set(task, split, tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as arrays:
            x, y = arrays["x_train"], arrays["y_train"]
            assert x.dtype == np.uint8 and arrays["x_test"].shape == (8, 8, 8, 3)
        np.testing.assert_array_equal(y, np.arange(24) % task.classes)
        np.testing.assert_array_equal(x[y == 0], split["train"][y == 0])
        assert np.all(np.any(x[y > 0] != split["train"][y > 0], axis=(1, 2, 3)))
        if name == "rotation":
            for image, original, turns in zip(x, split["train"], y):
                assert np.array_equal(image, np.rot90(original, turns))
        if name == "color or grey":
            assert np.ptp(x[y == 1].astype(int), axis=-1).max() <= 1


@pytest.mark.end_to_end
def test_predict_transformation_runs_once_and_scores_h_and_z(images, tmp_path, call, capsys):
    """One run, four tasks, two layers, a row for each task."""
    assert run_study(images, tmp_path, name="predict_transformation") == 0
    assert [words[0] for words in call.words] == ["pretrain"] + 4 * ["evaluate"]
    options = cli.options_of_run(tmp_path / "runs" / "pretraining")
    names = [name.partition(":")[0] for name in options.augmentations.split(",")]
    assert names[-3:] == ["rotate90", "gaussian_noise", "sobel"]
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    tasks = ["color or grey", "rotation", "original or noisy", "original or Sobel"]
    assert [row["task"] for row in rows] == tasks
    assert [float(row["chance"]) for row in rows] == [0.5, 0.25, 0.5, 0.5]
    for row in rows:
        assert 0 <= float(row["linear_h"]) <= 1 and 0 <= float(row["linear_z"]) <= 1
    assert min(Image.open(tmp_path / "figure.png").size) > 100


# -- the flags of pretrain that studies need -------------------------------------------------------


def options_of(*flags):
    _, values = cli.parse(["pretrain", "--run_dir=x", *flags])
    return cli.options_of(values)


def test_heads_by_their_number_of_layers():
    """--projection_layers: none, linear, and the two of the paper's versions."""
    made = [build.build_head(options_of(f"--projection_layers={n}")) for n in range(4)]
    assert [type(head) for head in made] == [
        heads.NoHead,
        heads.LinearHead,
        heads.ProjectionHead,
        heads.ProjectionHead,
    ]
    assert [head.layers for head in made] == [0, 1, 2, 3]
    assert (
        build.build_head(options_of("--projection_layers=1", "--projection_dim=7")).output_dim == 7
    )


def test_the_similarity_of_the_loss():
    """--nonormalize with its temperature."""
    flags = ("--nonormalize", "--temperature=10")
    objective = build.build_model(options_of(*flags, "--width=0.0625"), 8).objective
    assert type(objective) is losses.DotProduct and objective.temperature == 10.0


def test_a_chain_in_place_of_the_family():
    """--augmentations with the strength and the crop of the other flags."""
    flags = ["--augmentations=crop, color_jitter", "--color_jitter_strength=0.3"]
    view = build.build_augmentation(options_of(*flags, "--min_crop_area=0.5"), 8)
    assert [type(each) for each in view.operators] == [
        augment.RandomCropResize,
        augment.ColorJitter,
    ]
    assert view.operators[0].area == (0.5, 1.0) and view.operators[1].strength == 0.3
    assert type(build.build_augmentation(options_of("--augmentations=sobel"), 8)) is augment.Compose


@pytest.mark.parametrize("flags", [["--augmentations=sobel"], []])
def test_one_transformed_view(flags):
    """The first view is a crop, the second the same one and then the rest."""
    views = build.build_augmentation(options_of("--transformed_views=one", *flags), 8)
    assert [type(view) for view in views] == [augment.Compose, augment.SharedView]
    pixels = np.random.default_rng(0).integers(0, 256, [4, 12, 12, 3], np.uint8)
    if flags:
        crop, edges = views[0](pixels, seed=3), views[1](pixels, seed=4, query_seed=3)
        np.testing.assert_allclose(augment.sobel(crop), edges, atol=1e-6)
    else:
        assert type(views[1].family.operators[1]) is augment.RandomView


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--augmentations=sobel --blur=yes", "got --blur=yes and --augmentations. Leave it out"),
        ("--augmentations=sobel --color_drop_probability=0", "got 0 and --augmentations. Leave it"),
        ("--augmentations=sobel --view_sizes=8:1", "both views; got --augmentations too."),
        ("--transformed_views=one --view_sizes=8:1", "got --transformed_views=one too."),
        ("--augmentations=crop,swirl", "must be one of crop, flip, "),
        ("--nonormalize --loss=decoupled", "got --loss=decoupled and --normalize=False."),
        (
            "--nonormalize --method=moco",
            "--method=moco has its own loss, of cosines; got --normalize",
        ),
        ("--transformed_views=none", "--transformed_views must be one of both, one"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, message, images, tmp_path, capsys):
    """Exit code 2, and no run."""
    words = [f"--run_dir={tmp_path / 'run'}", f"--dataset=npz:{images}", *TINY, *flags.split()]
    assert cli.main(["pretrain", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


NEW_FLAGS = ("normalize", "transformed_views")


@pytest.mark.end_to_end
def test_a_run_made_before_these_flags_resumes_and_is_evaluated(
    images, tmp_path, one_layer, capsys
):
    """Its flags.cfg lacks them; a value other than the default is still refused."""
    words = ["pretrain", f"--run_dir={tmp_path}", f"--dataset=npz:{images}", *TINY]
    assert cli.main(words) == 0
    path = tmp_path / "flags.cfg"
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(tuple(f"--{n}=" for n in NEW_FLAGS))]
    assert len(kept) == len(lines) - 2
    path.write_text("".join(kept))
    assert cli.main(["evaluate", f"--run_dir={tmp_path}"]) == 0
    capsys.readouterr()
    assert cli.main([*words, "--nonormalize"]) == 2
    assert "--normalize=True, now --normalize=False" in capsys.readouterr().err
    path.write_text("".join(kept))
    assert cli.main(words) == 0
    assert "holds all 1 epoch" in capsys.readouterr().err


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "flags",
    [
        ["--augmentations=crop,sobel", "--transformed_views=one", "--projection_layers=0"],
        ["--augmentations=flip,blur", "--projection_layers=1", "--nonormalize"],
    ],
)
def test_a_run_with_these_flags(flags, images, tmp_path, one_layer, capsys):
    """It is trained, resumed, drawn and scored on h and z."""
    words = ["pretrain", f"--run_dir={tmp_path / 'run'}", f"--dataset=npz:{images}", *TINY, *flags]
    assert cli.main(words) == 0
    assert cli.main(words) == 0
    assert min(Image.open(tmp_path / "run" / "views.png").size) > 20
    capsys.readouterr()
    assert cli.main(["evaluate", f"--run_dir={tmp_path / 'run'}", "--layer=all"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["layers"]) == ["h", "z"]
    if "--projection_layers=0" in flags:
        assert result["layers"]["h"]["knn"] == result["layers"]["z"]["knn"]
        assert cli.main(["evaluate", f"--run_dir={tmp_path / 'run'}", "--layer=head1"]) == 2
        assert "must be h or z, since there is no head" in capsys.readouterr().err


def test_errors_of_the_package_are_raised_where_a_loss_has_no_dot_products():
    with pytest.raises(errors.ArgumentError, match="loss=nt_xent is the only one"):
        losses.by_name("supervised", 0.1, normalize=False)
