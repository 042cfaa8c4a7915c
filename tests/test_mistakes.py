"""Mistakes on the command line: the exit code, one line that says what to do, nothing left behind.

The rule for the exit code is in docs/reliability.md, and in the code in `cli._exit_code`.
"""

import errno
import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
import urllib.error

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from runs import untrained_run
from simclr_tf import _quiet, cli, errors

pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("quick_runs")]

SIZE = 8


def stderr_of(arguments, code, capsys):
    """The one line that a command writes before it ends with the exit code `code`.

    The runs of these tests are not trained, which is said first.
    """
    capsys.readouterr()
    assert cli.main(arguments) == code
    lines = capsys.readouterr().err.splitlines(keepends=True)
    error = "".join(line for line in lines if not line.startswith("the run has "))
    assert error.startswith("simclr-tf: ") and error.count("\n") == 1
    return error


# -- the exit code -----------------------------------------------------------------------------

EXIT_CODES = {
    errors.Error: 1,
    errors.ArgumentError: 2,
    errors.UsageError: 2,
    errors.TrainingError: 1,
    errors.NonFiniteError: 1,
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
def inputs(tmp_path_factory, quick_runs):
    """A directory with a run, and with what can be confused with one or with a data set."""
    inputs = tmp_path_factory.mktemp("inputs")
    pixels = np.random.default_rng(0).integers(0, 256, [20, SIZE, SIZE, 3], np.uint8)
    np.savez(inputs / "set.npz", x_train=pixels, y_train=np.arange(20) % 2)
    untrained_run(inputs / "run", inputs / "set.npz", SIZE)
    for folder in ("empty", "home", "folder.npz"):
        (inputs / folder).mkdir()
    for name in ("there.tflite", "there.npz", "there.parquet", "there.tfrecord"):
        (inputs / name).touch()
    (inputs / "begun").mkdir()
    (inputs / "begun" / "flags.cfg").write_text("--run_dir=begun\n")
    (inputs / "link").symlink_to("nowhere")
    (inputs / "file").write_text("no archive")
    (inputs / "damaged.npz").write_bytes(
        (inputs / "set.npz").read_bytes().replace(b"NUMPY", b"numpi")
    )
    np.savez(inputs / "objects.npz", x_train=np.array([{}, {}]))
    np.savez(inputs / "other.npz", z=pixels)
    for folder in ("images/train", "images/test", "plain"):
        (inputs / folder).mkdir(parents=True)
        Image.fromarray(pixels[0]).save(inputs / folder / "0.png")
    return inputs


DATA = ["pretrain --run_dir=new", "evaluate --run_dir=run", "embed --run_dir=run --output=h.npz"]
RUN = ["evaluate", "embed --output=h.npz", "export --output=new"]
EXPORT, TFLITE = ["export --run_dir=run"], ["export --run_dir=run --format=tflite"]
EMBED = ["embed --run_dir=run"]
LONG = "n" * 300
ENCODER = ["evaluate --dataset=npz:set.npz", "embed --dataset=npz:set.npz --output=h.npz"]

# (commands, flag, message)
WRONG_VALUES = [
    (DATA, "--dataset=folder:nowhere", "got 'nowhere' ('{}/nowhere'). Correct the path."),
    (DATA, "--dataset=folder:~/no", "got '{}/home/no'. Correct the path."),
    (DATA, "--dataset=folder:file", "got 'file' ('{}/file'). Pass the folder that it is in."),
    (DATA, "--dataset=folder:empty/", "none under 'empty' ('{}/empty'). Convert other files, or"),
    (DATA, "--dataset=folder:", "--dataset must have a path after the colon; got 'folder:'. Write"),
    (
        DATA,
        "--dataset=npz:nowhere",
        "needs an existing file; got 'nowhere' ('{}/nowhere'). Correct",
    ),
    (DATA, "--dataset=npz:file", "'file' ('{}/file') is not one. Pass another file."),
    (DATA, "--dataset=npz:empty", "needs an existing file; got 'empty' ('{}/empty'). Correct"),
    (DATA, "--dataset=npz:damaged.npz", "needs an undamaged file of arrays"),
    (DATA, "--dataset=npz:objects.npz", "Object arrays cannot be loaded"),
    (DATA, "--dataset=npz:other.npz", "x_test or images; 'other.npz' has z. Write it with these"),
    (DATA, "--dataset=tfrecord:nowhere*", "none does for 'nowhere*' ('{}/nowhere*'). Correct the"),
    (DATA, "--dataset=tfrecord:file", "'file' does not start as one. Decompress it, or leave it"),
    (DATA, "--dataset=mnist", "'mnist' must be prepared on disk first"),
    (
        DATA,
        "--dataset=mnist --data_dir=file",
        "it is not under 'file'. Prepare it with `tfds build",
    ),
    (
        DATA,
        "--dataset=no_such_set",
        "--dataset must be shapes, folder:PATH, npz:PATH, tfrecord:GLOB",
    ),
    (DATA, "--dataset=empty", "For the image files in that folder, write folder:empty."),
    (DATA, "--dataset=set.npz", "For that file, write npz:set.npz or tfrecord:set.npz."),
    (DATA[:2], "--dataset=npz:set.npz --train_split=no", "--train_split must be one of train in"),
    (DATA[:2], "--dataset=npz:set.npz --train_split=test", "got 'test', which needs x_test or"),
    (DATA[:2], "--dataset=shapes --train_split=no", "--train_split must be one of train, test of"),
    (
        DATA[:2],
        "--dataset=folder:images --train_split=no",
        "--train_split must be one of train, test",
    ),
    (
        DATA[:2],
        "--dataset=folder:plain --train_split=no",
        "--train_split must be train or all, since",
    ),
    (
        DATA[:2],
        "--dataset=npz:set.npz --train_split=train[",
        "--train_split must be a name, with a",
    ),
    (DATA[:2], "--dataset=npz:set.npz --train_split=train+test", "--train_split must consist of"),
    (DATA[1:2], "--test_split=no", "--test_split must be one of train"),
    (DATA[2:], "--split=no", "--split must be one of train"),
    (RUN, "--run_dir=nowhere", "has no flags.cfg"),
    (RUN, "--run_dir=file", "has no flags.cfg"),
    (RUN, "--run_dir=empty", "has no flags.cfg"),
    (RUN, "--run_dir=begun", "--run_dir must hold a run with a checkpoint; begun has none yet."),
    (RUN, "--run_dir=run/checkpoints/", "run/checkpoints has no flags.cfg"),
    (ENCODER, "--saved_model=nowhere", "--saved_model must be an exported SavedModel"),
    (ENCODER, "--saved_model=run/", "got run, which has no saved_model.pb"),
    (ENCODER, "--saved_model=~/no", "got {}/home/no, which has no saved_model.pb"),
    (ENCODER, "--saved_model=file", "got file, which has no saved_model.pb"),
    (ENCODER, "--official_weights=nowhere", "--official_weights must be a SavedModel's directory"),
    (ENCODER, "--official_weights=file", "got file, which has none"),
    (ENCODER, "--official_weights=run/checkpoints", "--official_weights must be a model that the"),
    (["export --run_dir=run --output=new"], "--layer=no", "layer must be"),
    (["export --run_dir=run --output=new"], "--layer=head9", "head1 to head2, or z"),
    (
        ["pretrain"],
        "--run_dir=file",
        "--run_dir must be a directory that can be written; file is a",
    ),
    (["pretrain"], "--run_dir=file/new", "can be written; file is a file. Pass another path."),
    (["pretrain"], f"--run_dir={LONG}", f"{LONG} cannot be written: File name too long. Choose"),
    (RUN, f"--run_dir={LONG}", "has no flags.cfg. Make one with"),
    (EXPORT, "--output=file", "--output must not exist; file does. Remove it, or choose another"),
    (EXPORT, "--output=empty/", "--output must not exist; empty does."),
    (EXPORT, "--output=~", "--output must not exist; {}/home does."),
    (EXPORT, "--output=link", "--output must not exist; link does."),
    (
        EXPORT,
        "--output=file/new",
        "file/new cannot be written: file is a file. Choose another path.",
    ),
    (EXPORT, "--output=link/new", "link/new cannot be written: File exists. Choose another path."),
    (EXPORT, f"--output={LONG}", f"{LONG} cannot be written: File name too long. Choose another"),
    (
        EXPORT,
        "--output=new.tflite",
        "got 'new.tflite', the name of a file. Drop the suffix, or pass",
    ),
    *[(EXPORT, f"--output=new{end}", "file. Drop the suffix.") for end in (".keras", ".H5", ".pb")],
    (
        TFLITE,
        "--output=new",
        "must end in .tflite with --format=tflite; got 'new'. Pass --output=new.",
    ),
    (TFLITE, "--output=new.keras", "got 'new.keras'. Pass --output=new.tflite."),
    (TFLITE, "--output=new/1", "got 'new/1'. Pass --output=new/1.tflite."),
    (TFLITE, "--output=there.tflite", "--output must not exist; there.tflite does."),
    (TFLITE, "--output=file/new.tflite", "cannot be written: file is a file."),
    (EMBED, "--output=there.npz", "--output must not exist; there.npz does. Remove it, or choose"),
    (EMBED, "--output=there.parquet", "--output must not exist; there.parquet does."),
    (EMBED, "--output=there.tfrecord/", "--output must not exist; there.tfrecord does."),
    (EMBED, "--output=folder.npz", "--output must be a file; folder.npz is a directory."),
    (EMBED, "--output=file/h.npz", "file/h.npz cannot be written: file is a file. Choose another"),
    (EMBED, f"--output={LONG}.npz", f"{LONG}.npz cannot be written: File name too long. Choose"),
    (EMBED, "--output=new", "--output must end in .npz, .parquet, .tfrecord; got 'new'. Pass"),
    (EMBED, "--output=new.tflite", "must end in .npz, .parquet, .tfrecord; got 'new.tflite'"),
    (EMBED, "--output=new/", "must end in .npz, .parquet, .tfrecord; got 'new'"),
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
    command, flags, message, inputs, monkeypatch, capsys
):
    """For every command that has the flag, and every kind of wrong value."""
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("HOME", f"{inputs}/home")
    before = sorted(inputs.rglob("*"))
    line = stderr_of([*command.split(), *flags.split()], 2, capsys)
    assert message.format(inputs) in line
    assert sorted(inputs.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        "pretrain --run_dir=file/new",
        f"pretrain --run_dir={LONG}",
        "export --run_dir=run --output=new.tflite",
        "export --run_dir=run --output=file/new",
        "export --run_dir=run --output=link",
        "export --run_dir=run --output=new --precision=int8",
        "export --run_dir=nowhere --output=new",
        "embed --run_dir=run --output=there.npz",
        "embed --run_dir=run --output=file/h.npz",
        "evaluate --run_dir=nowhere",
    ],
)
def test_a_wrong_path_is_reported_before_tensorflow_is_imported(words, inputs, monkeypatch, capsys):
    """That takes seconds, and reading a data set or converting a model minutes."""
    monkeypatch.chdir(inputs)
    monkeypatch.setattr(_quiet, "import_tensorflow", lambda: pytest.fail("it is imported"))
    stderr_of(words.split(), 2, capsys)


def test_legacy_keras_that_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    """TensorFlow's own message does not name what is missing."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf_keras" else found(name)
    )
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    line = stderr_of(["pretrain", f"--run_dir={tmp_path / 'run'}"], 2, capsys)
    assert "TF_USE_LEGACY_KERAS=1 needs tf-keras" in line


MISTAKES = [
    (["train"], "COMMAND must be one of pretrain"),
    (["pretrain"], "needs --run_dir"),
    (["pretrain", "--run_dir=x", "--view_sizes=big"], "16:0.5,24:0.8,32:1"),
    # Before the data set is read, which may take long and leave an index in the run directory.
    (
        ["pretrain", "--run_dir=x", "--dataset=folder:none", "--view_sizes=8:0.5"],
        "ends rising to 1",
    ),
    (
        ["preview", "--output=x.png", "--dataset=folder:none", "--view_sizes=8:0.5"],
        "ends rising to 1",
    ),
    (
        ["pretrain", "--run_dir=x", "--dataset=folder:none", "--micro_batch_size=300"],
        "--micro_batch_size must be even",
    ),
    (
        ["pretrain", "--run_dir=x", "--encoder=keras_cv/resnet18", "--width=2"],
        "must be resnet14 to resnet200 or airbench for --width=2.0; got",
    ),
    (
        ["pretrain", "--run_dir=x", "--encoder=airbench", "--stem=cifar", "--sk_ratio=0.1"],
        "must be resnet14 to resnet200 for --sk_ratio=0.1 and --stem='cifar'; got 'airbench'",
    ),
    (["pretrain", "--run_dir=x", "--batch_size=100000"], "--batch_size is 100000"),
    (
        ["pretrain", "--run_dir=x", "--dataset=folder:none", "--warmup_epochs=3", "--epochs=3"],
        "--warmup_epochs",
    ),
    (
        ["pretrain", "--run_dir=x", "--warmup_epochs=9", "--train_steps=5"],
        "--warmup_epochs",
    ),
    (["pretrain", "--run_dir=x", "--encoder=keras_cv/resnet19"], "resnet18"),
    (["pretrain", "--run_dir=x", "--encoder=keras_applications/xception"], "--image_size must be"),
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


# -- what a flag says --------------------------------------------------------------------------

_FLAG_FILE = (
    "--flagfile must be a text file that can be read; got {} ({}). "
    "Pass a recipe, or RUN_DIR/flags.cfg."
)
# The words after `pretrain --run_dir=x`, and all of the line that they lead to.
WRONG_FLAGS = [
    ("--epochs=0", "--epochs must be a whole number in [1, 2**31 - 1]; got '0'. {} 100."),
    ("--epochs=3.5", "--epochs must be a whole number in [1, 2**31 - 1]; got '3.5'. {} 100."),
    ("--epochs=", "--epochs must be a whole number in [1, 2**31 - 1]; got ''. {} 100."),
    (
        "--epochs=9999999999",
        "--epochs must be a whole number in [1, 2**31 - 1]; got '9999999999'. {} 100.",
    ),
    ("--batch_size=1", "--batch_size must be a whole number in [2, 2**31 - 1]; got '1'. {} 512."),
    (
        "--projection_layers=4",
        "--projection_layers must be a whole number in [0, 3]; got '4'. {} 2.",
    ),
    (
        "--image_size=0",
        "--image_size must be a whole number in [1, 8192]; got '0'. {} the default.",
    ),
    (
        "--image_size=9000",
        "--image_size must be a whole number in [1, 8192]; got '9000'. {} the default.",
    ),
    ("--seed=-1", "--seed must be a whole number in [0, 2**31 - 1]; got '-1'. {} 0."),
    (
        "--temperature=0",
        "--temperature must be a finite number of at least 1e-06; got '0'. {} 0.1.",
    ),
    (
        "--temperature=nan",
        "--temperature must be a finite number of at least 1e-06; got 'nan'. {} 0.1.",
    ),
    (
        "--temperature=1e999",
        "--temperature must be a finite number of at least 1e-06; got '1e999'. {} 0.1.",
    ),
    (
        "--temperature=warm",
        "--temperature must be a finite number of at least 1e-06; got 'warm'. {} 0.1.",
    ),
    (
        "--learning_rate=0",
        "--learning_rate must be a finite number of at least 1e-12; got '0'. {} 0.3.",
    ),
    ("--momentum=1", "--momentum must be a finite number in [0, 0.9999]; got '1'. {} 0.9."),
    ("--blur=maybe", "--blur must be one of auto, yes, no; got 'maybe'. {} auto."),
    ("--blur=", "--blur must be one of auto, yes, no; got ''. {} auto."),
    ("--debug=maybe", "--debug must be true or false; got 'maybe'. Write --debug or --nodebug."),
    ("--nodebug=1", "--nodebug takes no value; got one. Write --nodebug alone."),
    ("--batchsize=8", "pretrain has no flag --batchsize. Near matches: --batch_size."),
    ("--output=8", "pretrain has no flag --output. `simclr-tf pretrain --help` lists its flags."),
    ("---epochs=8", "pretrain has no flag ---epochs. Near matches: --epochs."),
    ("--data_dir", "--data_dir must be followed by its value; got none."),
    ("--data_dir=", "--data_dir must be followed by its value; got ''. Write --data_dir=VALUE."),
    (
        "--data_dir --seed=1",
        "--data_dir must be followed by its value; got '--seed=1'. Write --data_dir=VALUE.",
    ),
    (
        "--train_split=",
        "--train_split must be followed by its value; got ''. Write --train_split=VALUE.",
    ),
    (
        "--data_dir=caf\udce9",
        r"--data_dir must be one line of UTF-8 text; got 'caf\udce9'. Rename what it stands for.",
    ),
    (
        "--data_dir=a\x85b",
        r"--data_dir must be one line of UTF-8 text; got 'a\x85b'. Rename what it stands for.",
    ),
    ("more", "pretrain takes flags only; got 'more'. Write --flag=value."),
    (
        "--flagfile",  # the last word
        _FLAG_FILE.format("''", "No such file or directory"),
    ),
    (
        "--flagfile=no.cfg",
        _FLAG_FILE.format("'no.cfg'", "No such file or directory"),
    ),
    (
        "--flagfile=~/no.cfg",
        _FLAG_FILE.format("'/home/a/no.cfg'", "No such file or directory"),
    ),
    (
        "--flagfile=.",
        _FLAG_FILE.format("'.'", "Is a directory"),
    ),
    (
        "--flagfile=binary.cfg",
        _FLAG_FILE.format("'binary.cfg'", "not UTF-8"),
    ),
    (
        "--flagfile=outer.cfg",
        "a flag file must not include itself; outer.cfg does. Remove that line.",
    ),
    ("--flagfile=words.cfg", "pretrain takes flags only; got 'epochs=3'. Write --flag=value."),
]


@pytest.mark.parametrize(("words", "line"), WRONG_FLAGS, ids=lambda text: ascii(text)[:30])
def test_a_wrong_flag_is_one_line(words, line, tmp_path, monkeypatch, capsys):
    """With the rule, the value and the way out, and nothing of absl's own texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.setattr(cli, "_execute", lambda *_: pytest.fail("the flags were accepted"))
    (tmp_path / "binary.cfg").write_bytes(b"\xff\xfe--epochs=3")
    (tmp_path / "outer.cfg").write_text("--epochs=3\n--flagfile=inner.cfg\n")
    (tmp_path / "inner.cfg").write_text("--flagfile=outer.cfg\n")
    (tmp_path / "words.cfg").write_text("epochs=3\n")
    found = stderr_of(["pretrain", "--run_dir=x", *words.split(" ")], 2, capsys)
    assert found == f"simclr-tf: {line.format('Leave it out to use')}\n"


def test_a_flag_file_is_read_where_it_stands(tmp_path):
    """Comments and blank lines are skipped; later flags win; one file may include another."""
    inner, outer = tmp_path / "inner.cfg", tmp_path / "outer.cfg"
    inner.write_text("--epochs=3\n--seed=3\n")
    outer.write_text(f"# a comment\n\n// another\n--seed=4\n  --flagfile={inner}  \n--epochs=5\n")
    for flag_file in ([f"--flagfile={outer}"], ["--flagfile", str(outer)], [f"-flagfile={outer}"]):
        words = ["pretrain", "--run_dir=x", "--temperature=0.5", *flag_file, "--temperature=0.7"]
        _, values = cli.parse(words)
        assert (values.seed, values.epochs, values.temperature) == (3, 5, 0.7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "cannot be read (not UTF-8). Restore it, or pass another"),
        (b"", "does not hold the flags of one: pretrain needs --run_dir"),
        (b"--run_dir=x\n--no_such_flag=3", "of one: pretrain has no flag --no_such_flag"),
        (b"--run_dir=x\n--epochs=many", "of one: --epochs must be"),
    ],
)
@pytest.mark.parametrize("command", RUN)
def test_damaged_flags_of_a_run_name_their_file(content, message, command, tmp_path, capsys):
    """The line says which file is wrong, since the wrong flag is none of the command line."""
    (tmp_path / "flags.cfg").write_bytes(content)
    line = stderr_of([*command.split(), f"--run_dir={tmp_path}"], 2, capsys)
    assert f"--run_dir must be the directory of a run; {tmp_path}/flags.cfg " in line
    assert message in line


@pytest.mark.parametrize("command", ["pretrain", *RUN])
def test_a_path_without_access_is_one_line(command, tmp_path, monkeypatch, capsys):
    """A run whose directory or whose flags cannot be read, as by another user."""
    monkeypatch.setattr(_quiet, "import_tensorflow", lambda: pytest.fail("the run was accepted"))
    (tmp_path / "flags.cfg").write_text("--run_dir=x")

    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(pathlib.Path, "read_text", denied)
    words = [*command.split(), f"--run_dir={tmp_path}"]
    assert "flags.cfg cannot be read (Permission denied). Restore" in stderr_of(words, 2, capsys)
    monkeypatch.setattr(pathlib.Path, "exists", denied)
    monkeypatch.setattr(os.path, "isfile", lambda path: False)
    stderr_of(words, 2, capsys)


def test_files_without_access_are_one_line(inputs, monkeypatch, capsys):
    """A SavedModel and an npz."""
    monkeypatch.chdir(inputs)

    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(pathlib.Path, "open", denied)
    line = stderr_of(["pretrain", "--run_dir=new", "--dataset=npz:set.npz"], 2, capsys)
    assert "set.npz cannot be read: Permission denied. Make it accessible" in line
    monkeypatch.setattr(pathlib.Path, "is_file", denied)
    line = stderr_of(
        ["embed", "--saved_model=run", "--output=h.npz", "--dataset=shapes"], 2, capsys
    )
    assert "run/saved_model.pb cannot be read: Permission denied. Make it accessible" in line


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_lists_every_flag_once(command, capsys):
    """And no module's name."""
    assert cli.main([command, "--help"]) == 0
    help_text = capsys.readouterr().out
    listed = re.findall(r"^  --(?:\[no\])?(\w+):", help_text, re.MULTILINE)
    assert sorted(listed) == sorted(cli._flag_values(cli.COMMANDS[command]))
    assert "absl" not in help_text and "_flags" not in help_text


def test_a_reader_that_leaves_early_is_no_error():
    """`simclr-tf pretrain --help | head -1`."""
    command = f"{sys.executable} -m simclr_tf pretrain --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("simclr-tf pretrain") and not done.stderr


# -- packages that are not installed -----------------------------------------------------------

# The module that cannot be imported, what needs it, the command.
PACKAGES = [
    ("tensorflow_datasets", "--dataset='cifar10'", "pretrain --run_dir=new --dataset=cifar10"),
    ("tensorflow_datasets", "--dataset='cifar10'", "evaluate --run_dir=run --dataset=cifar10"),
    ("pyarrow", "--output='h.parquet'", "embed --run_dir=run --output=h.parquet"),
    (
        "keras_cv",
        "--encoder='keras_cv/resnet18'",
        "pretrain --run_dir=new --encoder=keras_cv/resnet18 --image_size=8 --probe_every_epochs=-1",
    ),
]


@pytest.mark.parametrize(("module", "needs", "words"), PACKAGES)
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
    module, needs, words, inputs, monkeypatch, capsys
):
    """Exit code 2, since the flag asks for it."""
    monkeypatch.chdir(inputs)
    monkeypatch.setitem(sys.modules, module, None)
    line, package = stderr_of(words.split(), 2, capsys), module.replace("_", "-")
    assert f"{needs} needs the package {package}, which cannot be imported" in line
    assert line.endswith(f". Run `pip install {package}`.\n")


def test_what_is_missing_may_be_a_package_that_the_other_needs():
    """TensorFlow Datasets imports tensorflow-metadata, which pip may not have installed."""
    with pytest.raises(errors.ArgumentError, match=r"needs the package a-b, .*`pip install c-d`"):
        with errors.needs_package("a-b", "name='x'"):
            raise ModuleNotFoundError("No module named 'c_d.e'", name="c_d.e")
    with pytest.raises(errors.ArgumentError, match=r"\(broken\)\. Run `pip install a-b`"):
        with errors.needs_package("a-b", "name='x'"):
            raise ImportError("broken")


@pytest.mark.parametrize("error", [ValueError("no TPU"), urllib.error.URLError("unknown name")])
def test_a_tpu_that_does_not_answer(error, tmp_path, monkeypatch, capsys):
    """Its name cannot be resolved, or this machine has none."""

    def connect(*_):
        raise error

    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", connect)
    words = ["pretrain", f"--run_dir={tmp_path}/x", "--strategy=tpu", "--tpu=here"]
    line = stderr_of(words, 2, capsys)
    assert "--strategy=tpu needs a TPU; none answers at here. Pass its name as --tpu=NAME" in line


def test_no_command_prints_the_help(capsys):
    """On stdout, with exit code 2."""
    assert cli.main([]) == 2
    assert "usage: simclr-tf COMMAND" in capsys.readouterr().out
