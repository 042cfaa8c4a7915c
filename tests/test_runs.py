"""Runs as records: environment.json, error.txt, states, and the list of `simclr-tf runs`."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest

import simclr_tf
from simclr_tf import cli, errors, training
from simclr_tf.training import RunDirectory, describe_environment, find_runs, records


def write_run(path, epochs=3, rows=(), finished=False, **flags):
    """Writes the files of a run that has trained as far as `rows`."""
    directory = RunDirectory(path)
    directory.path.mkdir(parents=True)
    directory.write_flags({"epochs": str(epochs), **flags})
    lines = [json.dumps({"epoch": n, "step": 10 * n, **row}) for n, row in enumerate(rows, 1)]
    directory.metrics.write_text("".join(line + "\n" for line in lines))
    if finished:
        directory.export.mkdir(parents=True)
    return directory


@contextlib.contextmanager
def locked_by_another_process(directory):
    """Another process has the lock of the run, as one that trains has."""
    code = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory.lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield
    finally:
        process.communicate()


@pytest.mark.end_to_end
def test_the_environment_says_what_is_needed_to_repeat_a_run(tmp_path, monkeypatch):
    """Versions and devices; the commit of the working directory; no variable, no remote."""
    monkeypatch.setenv("SOME_TOKEN", "s3cret-value")
    monkeypatch.chdir(tmp_path)
    outside = describe_environment(["simclr-tf", "pretrain", "--dataset=folder:a b"])
    assert outside["command"] == "simclr-tf pretrain '--dataset=folder:a b'"
    assert outside["directory"] == str(tmp_path)
    assert (outside["commit"], outside["modified"]) == (None, None)
    assert outside["versions"]["simclr_tf"] == simclr_tf.__version__
    assert outside["versions"]["tensorflow"].startswith("2.")
    assert outside["cpus"] >= 1 and outside["devices"][0]["type"] in ("CPU", "GPU", "TPU")

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", "https://user:p4ssword@example.com/x"],
        ["add", "file"],
        ["commit", "-q", "-m", "m"],
    ):
        subprocess.run([*git, *words], check=True)
    clean = describe_environment()
    assert len(clean["commit"]) == 40 and clean["modified"] is False
    (tmp_path / "file").write_text("2")
    changed = describe_environment()
    assert changed["commit"] == clean["commit"] and changed["modified"] is True
    text = json.dumps([outside, changed])
    assert "s3cret" not in text and "p4ssword" not in text and "SOME_TOKEN" not in text


def test_a_start_writes_the_environment_and_an_end_with_an_error_writes_the_error(tmp_path):
    """The next start removes the error; an interruption is none."""
    directory = RunDirectory(tmp_path)
    with pytest.raises(errors.TrainingError), directory.started({"epochs": "3"}):
        raise errors.TrainingError("the loss must be finite;\nit is nan")
    assert directory.read_error() == "TrainingError: the loss must be finite; it is nan"
    assert records.record_of(tmp_path).state == "failed"
    with directory.started({"epochs": "3"}):
        assert directory.read_error() is None
        assert json.loads(directory.environment.read_text())["python"]
    for interruption in (
        errors.PreemptedError("SIGTERM"),
        errors.TryAgainError("later"),
        KeyboardInterrupt(),
        SystemExit(),
    ):
        with pytest.raises(type(interruption)), directory.started({"epochs": "3"}):
            raise interruption
        assert directory.read_error() is None
    assert records.record_of(tmp_path).state == "stopped"


@pytest.mark.end_to_end
def test_the_state_of_a_run(tmp_path):
    """Running by the lock of a living process, whatever else is there; a lock file is no lock."""
    finished = write_run(tmp_path / "a", rows=[{"loss": 1.0}] * 3, finished=True)
    stopped = write_run(tmp_path / "b", rows=[{"loss": 1.0}])
    stopped.lock.touch()  # as a process that was killed leaves it
    failed = write_run(tmp_path / "c")
    failed.error.write_text("TrainingError: no\n")
    states = [record.state for record in find_runs(tmp_path)]
    assert states == ["finished", "stopped", "failed"]
    for directory, state in zip((finished, stopped, failed), states):
        with locked_by_another_process(directory):
            assert records.record_of(directory.path).state == "running"
            with pytest.raises(errors.UsageError), directory.locked():
                pass
        assert records.record_of(directory.path).state == state


def test_asking_for_the_state_does_not_keep_a_run_from_starting(tmp_path):
    """Whoever asks has the lock for a moment, which a start waits out."""
    directory = write_run(tmp_path / "a")
    directory.lock.touch()
    waited = []
    with pytest.MonkeyPatch.context() as patch:
        with open(directory.lock) as file:
            records.fcntl.flock(file, records.fcntl.LOCK_SH)
            unlock = lambda seconds: waited.append(seconds) or file.close()  # noqa: E731 a stand-in
            patch.setattr(training.run_directory.time, "sleep", unlock)
            with directory.locked():
                assert records.is_locked(directory.lock)
    assert len(waited) == 1 and not directory.lock.exists()


def test_what_a_record_holds(tmp_path):
    """The last value of each metric, also of one that is measured seldom; size; planned epochs."""
    rows = [{"loss": 3.0, "knn_accuracy": 0.5}, {"loss": 2.0}]
    directory = write_run(tmp_path / "deep" / "er" / "a", epochs=9, rows=rows)
    directory.metrics.open("a").write('{"epoch": 3, "lo')  # cut off by a crash
    write_run(tmp_path / "deep" / "er" / "a" / "from_scratch")
    (record, other) = find_runs(tmp_path)
    assert record.path == directory.path and other.path == directory.path / "from_scratch"
    assert (record.epochs, record.planned_epochs) == (2, 9)
    assert record.metrics == {"loss": 2.0, "knn_accuracy": 0.5}
    files = [path for path in directory.path.rglob("*") if path.is_file()]
    assert record.num_bytes == sum(path.stat().st_size for path in files) > 0


@pytest.mark.parametrize(
    ("flags", "planned"),
    [({}, 3), ({"train_steps": "25", "batch_size": "10"}, 3), ({"train_steps": "25"}, None)],
)
def test_planned_epochs(flags, planned, tmp_path):
    """From --epochs, or from --train_steps and the size of the data set."""
    directory = write_run(tmp_path / "a", **flags)
    directory.check_same_data(109, "digest")
    assert records.record_of(tmp_path / "a").planned_epochs == planned


@pytest.fixture
def three_runs(tmp_path):
    """A directory with three runs, one of them of fine-tuning without --epochs."""
    write_run(tmp_path / "a", rows=[{"loss": 3.0, "knn_accuracy": 0.9}, {"knn_accuracy": 0.4}])
    write_run(tmp_path / "b", rows=[{"loss": 1.0, "knn_accuracy": 0.6}] * 3, finished=True)
    tuned = write_run(tmp_path / "c", rows=[{"loss": float("nan"), "accuracy": 0.7}])
    tuned.write_flags({"pretrained": "b"}, "finetune")
    tuned.error.write_text("TrainingError: the loss must be finite\n")
    return tmp_path


@pytest.mark.end_to_end
def test_the_table(three_runs, capsys):
    """One line a run; the errors stand below, on stderr."""
    assert cli.main(["runs", f"--under={three_runs}/"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["state", "epochs", "loss", "kNN", "size", "command", "run"]
    assert lines[1][:5] == ["stopped", "2/3", "3", "40.00", "%"]
    assert lines[2][:5] == ["finished", "3/3", "1", "60.00", "%"]
    assert lines[3][:3] == ["failed", "1", "nan"] and lines[3][-2] == "finetune"
    assert [line[-1] for line in lines[1:]] == [str(three_runs / name) for name in "abc"]
    assert "c: TrainingError: the loss must be finite\n" in err and err.endswith("3 runs\n")


@pytest.mark.end_to_end
def test_the_best_runs_stand_first(three_runs, capsys):
    """By the last value; the lowest loss, the highest accuracy; runs without it are left out."""

    def names(*flags):
        assert cli.main(["runs", f"--under={three_runs}", "--format=json", *flags]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [row["path"][-1] for row in rows], rows

    assert names()[0] == ["a", "b", "c"]
    assert names("--best=loss")[0] == ["b", "a"]
    found, rows = names("--best=knn_accuracy")
    assert found == ["b", "a"]
    assert rows[0]["metrics"] == {"loss": 1.0, "knn_accuracy": 0.6}
    assert (rows[0]["state"], rows[0]["epochs"], rows[0]["planned_epochs"]) == ("finished", 3, 3)
    assert cli.main(["runs", f"--under={three_runs}", "--best=accuracy"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[2] == "accuracy"


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "runs needs --under."),
        (["--under=nowhere"], "--under must be a directory; nowhere is none. Pass one with runs."),
        (["--under=.", "--best=acc"], "--best must be a metric of one of the runs; got 'acc'. "),
    ],
)
def test_mistakes(flags, message, three_runs, monkeypatch, capsys):
    """One line and exit code 2."""
    monkeypatch.chdir(three_runs)
    assert cli.main(["runs", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"simclr-tf: {message}")


@pytest.mark.end_to_end
def test_a_directory_without_runs(tmp_path, capsys):
    """Says so, and is no error."""
    assert cli.main(["runs", f"--under={tmp_path}"]) == 0
    assert capsys.readouterr().err.startswith(f"no runs under {tmp_path}")


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_a_run_of_pretrain_leaves_records(tmp_path, capsys, monkeypatch):
    """environment.json is there from the start; a loss that is not finite ends in error.txt."""
    images = np.random.default_rng(0).integers(0, 256, [60, 8, 8, 3], np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images)
    flags = ["pretrain", "--batch_size=30", f"--dataset=npz:{tmp_path / 'set.npz'}", "--epochs=1"]
    monkeypatch.setattr(sys, "argv", ["/bin/simclr-tf", *flags])
    assert cli.main([*flags, f"--run_dir={tmp_path / 'a'}"]) == 0
    environment = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert environment["command"].startswith("simclr-tf pretrain --batch_size=30 ")
    rate = ["--learning_rate=1e30", "--learning_rate_scaling=none", "--optimizer=sgd"]
    assert cli.main([*flags, *rate, "--warmup_epochs=0", f"--run_dir={tmp_path / 'b'}"]) == 1
    capsys.readouterr()
    done, failed = find_runs(tmp_path)
    assert (done.state, done.epochs, done.planned_epochs) == ("finished", 1, 1)
    assert failed.state == "failed" and failed.error.startswith("NonFiniteError: the loss must be")


def test_an_unreadable_file_is_listed_once(tmp_path):
    """Each split of a folder finds it."""
    directory = RunDirectory(tmp_path)
    directory.write_corrupt([("b.jpg", "cut off"), ("a.jpg", "empty"), ("b.jpg", "cut off")])
    assert directory.corrupt.read_text() == "a.jpg\tempty\nb.jpg\tcut off\n"
