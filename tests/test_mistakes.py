"""Mistakes on the command line: the exit code, one line that says what to do, nothing left behind.

The rule for the exit code is in docs/reliability.md, and in the code in `cli._exit_code`.
"""

import errno
import inspect
import os

import numpy as np
import pytest
from runs import untrained_run

from simclr_tf import cli, errors

pytestmark = pytest.mark.usefixtures("quick_runs")

SIZE = 8


def stderr_of(arguments, code, capsys):
    """The one line that a command writes before it ends with the exit code `code`."""
    capsys.readouterr()
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("simclr-tf: ") and error.count("\n") == 1
    return error


# -- the exit code -----------------------------------------------------------------------------

EXIT_CODES = {
    errors.Error: 1,
    errors.ArgumentError: 2,
    errors.UsageError: 2,
    errors.TrainingError: 1,
    errors.PreemptedError: 1,  # only within the loop; the command raises TryAgainError
    errors.TryAgainError: 75,
    errors.ExportError: 1,
    errors.CorruptImageError: 1,
    errors.StorageError: 1,
}


@pytest.mark.parametrize(
    "kind",
    [kind for _, kind in inspect.getmembers(errors, inspect.isclass)],
    ids=lambda k: k.__name__,
)
def test_every_exception_has_an_exit_code(kind, monkeypatch, capsys):
    """2 for arguments, all of which come from flags."""

    def fail(*_):
        raise kind("something is wrong.")

    monkeypatch.setattr(cli, "_execute", fail)
    stderr_of(["pretrain", "--run_dir=x"], EXIT_CODES[kind], capsys)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *[(number, 2) for number in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.EROFS)],
        *[(number, 1) for number in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)],
    ],
    ids=lambda number: errno.errorcode.get(number),
)
@pytest.mark.parametrize("action", ["read", "written"])
def test_a_wrong_path_is_usage_and_a_full_disk_is_not(action, number, code, monkeypatch, capsys):
    """The operating system's number decides."""

    def fail(*_):
        with errors.storage_errors("some/path", action):
            raise OSError(number, os.strerror(number), "some/path")

    monkeypatch.setattr(cli, "_execute", fail)
    line = stderr_of(["pretrain", "--run_dir=x"], code, capsys)
    assert f"some/path cannot be {action}: {os.strerror(number)}. " in line


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_runs):
    """A directory with a run, and with what can be confused with one or with a data set."""
    place = tmp_path_factory.mktemp("place")
    pixels = np.random.default_rng(0).integers(0, 256, [20, SIZE, SIZE, 3], np.uint8)
    np.savez(place / "set.npz", x_train=pixels, y_train=np.arange(20) % 2)
    untrained_run(place / "run", place / "set.npz", SIZE)
    (place / "empty").mkdir()
    (place / "file").write_text("no archive")
    return place


DATA = ["pretrain --run_dir=new", "evaluate --run_dir=run", "embed --run_dir=run --output=h.npz"]
RUN = ["evaluate", "embed --output=h.npz", "export --output=new"]
ENCODER = ["evaluate --dataset=npz:set.npz", "embed --dataset=npz:set.npz --output=h.npz"]

# (commands, flag, message)
WRONG_VALUES = [
    (DATA, "--dataset=folder:nowhere", "nowhere"),
    (DATA, "--dataset=folder:file", "file"),
    (DATA, "--dataset=folder:empty", "at least one image"),
    (DATA, "--dataset=npz:nowhere", "existing file"),
    (DATA, "--dataset=npz:file", "numpy.savez"),
    (DATA, "--dataset=npz:empty", "existing file"),
    (DATA, "--dataset=tfrecord:nowhere*", "nowhere*"),
    (DATA, "--dataset=tfrecord:file", "file"),
    (DATA, "--dataset=mnist", "tfds build mnist"),
    (DATA, "--dataset=no_such_set", "no_such_set"),
    (DATA[:2], "--dataset=npz:set.npz --train_split=no", "'no'"),
    (DATA[1:2], "--test_split=no", "'no'"),
    (DATA[2:], "--split=no", "'no'"),
    (RUN, "--run_dir=nowhere", "has no flags.cfg"),
    (RUN, "--run_dir=file", "has no flags.cfg"),
    (RUN, "--run_dir=empty", "has no flags.cfg"),
    (ENCODER, "--saved_model=nowhere", "saved_model.pb"),
    (ENCODER, "--saved_model=run", "saved_model.pb"),
    (ENCODER, "--official_weights=nowhere", "which has none"),
    (ENCODER, "--official_weights=run/checkpoints", "no resnet_model"),
    (["export --run_dir=run --output=new"], "--layer=no", "layer must be"),
    (["export --run_dir=run --output=new"], "--layer=head9", "head1 to head2, or z"),
    (["export --run_dir=run"], "--output=file/new", "is a file"),
    (["export --run_dir=run"], "--output=file", "must not exist"),
    (["embed --run_dir=run"], "--output=file/h.npz", "is a file"),
    (["pretrain"], "--run_dir=file", "--run_dir must be a directory"),
    (["pretrain"], "--run_dir=file/new", "--run_dir must be a directory"),
]


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (command, flags, message)
        for commands, flags, message in WRONG_VALUES
        for command in commands
    ],
)
def test_a_wrong_value_of_a_flag_is_exit_code_2(
    command, flags, message, place, monkeypatch, capsys
):
    """For every command that has the flag, and every kind of wrong value."""
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert message in stderr_of([*command.split(), *flags.split()], 2, capsys)
    assert sorted(place.rglob("*")) == before


MISTAKES = [
    (["train"], "COMMAND must be one of pretrain"),
    (["pretrain"], "needs --run_dir"),
    (["pretrain", "--run_dir=x", "--epochs=0"], "--epochs=0"),
    (["pretrain", "--run_dir=x", "--epoch=3"], "epoch"),
    (["pretrain", "--run_dir=x", "--view_sizes=big"], "16:0.5,24:0.8,32:1"),
    (["pretrain", "--run_dir=x", "more"], "takes flags only"),
    (["pretrain", "--run_dir=x", "--view_sizes=8:0.5"], "ends rising to 1"),
    (["pretrain", "--run_dir=x", "--micro_batch_size=300"], "--micro_batch_size must be even"),
    (["pretrain", "--run_dir=x", "--image_size=0"], "--image_size=0"),
    (["pretrain", "--run_dir=x", "--encoder=keras_cv/resnet18", "--width=2"], "--width=2"),
    (["pretrain", "--run_dir=x", "--batch_size=100000"], "--batch_size is 100000"),
    (["pretrain", "--run_dir=x", "--warmup_epochs=3", "--epochs=3"], "--warmup_epochs"),
    (["pretrain", "--run_dir=x", "--encoder=keras_cv/resnet19"], "resnet18"),
    (["evaluate"], "exactly one of --run_dir, --saved_model, --official_weights; got none"),
    (["evaluate", "--run_dir=x", "--saved_model=y"], "got --run_dir and --saved_model"),
    (["evaluate", "--saved_model=y"], "evaluate needs --dataset"),
    (["pretrain", "--run_dir=x", "--strategy=multi_worker"], "--strategy=multi_worker needs"),
    (["embed", "--run_dir=nowhere"], "--output"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    """Exit code 2, and no run directory."""
    monkeypatch.chdir(tmp_path)
    assert message in stderr_of(arguments, 2, capsys)
    assert not list(tmp_path.iterdir())


def test_no_command_prints_the_help(capsys):
    """On stdout, with exit code 2."""
    assert cli.main([]) == 2
    assert "usage: simclr-tf COMMAND" in capsys.readouterr().out
