"""Faults of machines: signals, damaged checkpoints, full disks, two runs in one directory."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from runs import weights_of
from simclr_tf import ProjectionHead, SimCLR, _quiet, augment, cli, errors
from simclr_tf.commands import pretrain
from simclr_tf.training import checkpoints, loop, preemption, run_directory

IMAGES = np.random.default_rng(5).integers(0, 256, [32, 8, 8, 3], np.uint8)
STEPS = 4


def model_of():
    """A built and compiled model of a few hundred weights, each time the same."""
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, input_shape=(8, 8, 3)),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model = SimCLR(encoder, ProjectionHead(output_dim=4), augment.RandomFlip(), 0.2, seed=1)
    model.build((None, 8, 8, 3))
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model


def train(directory, epochs=2, every_steps=None):
    """Trains with checkpoints in a directory; returns the model and its `Checkpoints`."""
    model = model_of()
    saver = checkpoints.Checkpoints(directory, model, STEPS, every_steps, log=lambda text: None)
    epoch, step = saver.restore()
    assert step == 0, "whole epochs only"
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8, drop_remainder=True)
    if epoch < epochs:
        model.fit(data, epochs=epochs, initial_epoch=epoch, callbacks=[saver], verbose=0)
    return model, saver


# -- checkpoints -----------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept_and_named_by_their_step(tmp_path):
    """Three epochs of four steps, one checkpoint within each; TensorFlow finds the latest too."""
    train(tmp_path, 3, every_steps=3)
    assert checkpoints.numbers(tmp_path) == [11, 12]
    assert checkpoints.latest_position(tmp_path) == (3, 0)
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-12")


def cut(path):
    """Leaves the first half of a file."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES = {
    "data cut off": lambda d: cut(d / "ckpt-8.data-00000-of-00001"),
    "data empty": lambda d: (d / "ckpt-8.data-00000-of-00001").write_bytes(b""),
    "data with a bit changed": lambda d: flip(d / "ckpt-8.data-00000-of-00001"),
    "data gone": lambda d: (d / "ckpt-8.data-00000-of-00001").unlink(),
    "index cut off": lambda d: cut(d / "ckpt-8.index"),
    "index empty": lambda d: (d / "ckpt-8.index").write_bytes(b""),
}


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """The checkpoints of a run of two epochs, and its weights."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    model, _ = train(directory)
    return directory, model.get_weights()


@pytest.fixture
def copied(two_epochs, tmp_path):
    """A copy of those checkpoints to spoil."""
    return pathlib.Path(shutil.copytree(two_epochs[0], tmp_path / "run"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, copied):
    """A line of text names it."""
    DAMAGES[damage](copied)
    lines = []
    saver = checkpoints.Checkpoints(copied, model_of(), STEPS, log=lines.append)
    assert saver.restore() == (1, 0)
    assert len(lines) == 1 and "ckpt-8 cannot be read" in lines[0] and "\n" not in lines[0]


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(two_epochs, copied):
    """It ends with the same weights; the damaged checkpoint is written again."""
    DAMAGES["data cut off"](copied)
    again, saver = train(copied)
    for ours, theirs in zip(again.get_weights(), two_epochs[1]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    assert saver.restore() == (2, 0)


@pytest.mark.parametrize("state", [None, b"", b"model_checkpoint_path: \x00"])
def test_the_list_of_checkpoints_is_not_needed(state, copied):
    """TensorFlow's list, a file named `checkpoint`, is lost, empty or damaged."""
    (copied / "checkpoint").unlink()
    if state is not None:
        (copied / "checkpoint").write_bytes(state)
    assert checkpoints.Checkpoints(copied, model_of(), STEPS).restore() == (2, 0)


def test_only_damaged_checkpoints_are_an_error_and_no_new_start(copied):
    """Training does not start again over them."""
    for path in copied.glob("*.data*"):
        cut(path)
    with pytest.raises(errors.TrainingError, match="none of the 2 checkpoints"):
        train(copied)


@contextlib.contextmanager
def files_up_to(size):
    """Limits files of this process to `size` bytes: writing then fails as on a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(copied):
    """One line; the checkpoints that are there can still be read."""
    with files_up_to(1000), pytest.raises(errors.TrainingError, match="File too large"):
        train(copied, epochs=3)
    assert not list(copied.glob("*_temp"))
    assert checkpoints.latest_position(copied) == (2, 0)
    assert train(copied, epochs=2)[1].restore() == (2, 0)


def test_a_directory_that_is_gone_is_not_made_anew(tmp_path):
    """A directory with one checkpoint would look like the whole run."""
    _, saver = train(tmp_path / "run" / "checkpoints", epochs=1)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        saver.on_epoch_end(1)
    assert not list(tmp_path.iterdir())


# -- the run directory -----------------------------------------------------------------------


@pytest.mark.end_to_end
def test_one_process_at_a_time_writes_to_a_directory(tmp_path, capsys):
    """The second is told which process it is; the lock is released afterwards."""
    directory = run_directory.RunDirectory(tmp_path / "run")
    with directory.locked():
        assert cli.main(["pretrain", f"--run_dir={tmp_path / 'run'}", *TINY]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"process {os.getpid()} on" in error and "another --run_dir" in error
    with directory.locked():
        pass
    assert not directory.lock.exists()


HOLDER = """
import sys, time
from simclr_tf.training import run_directory
with run_directory.RunDirectory(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.end_to_end
def test_a_killed_process_holds_nothing(tmp_path):
    """The operating system releases its lock, though the file is still there."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(errors.UsageError, match=f"process {process.pid} on"):
            with run_directory.RunDirectory(tmp_path).locked():
                pass
        process.kill()
    assert (tmp_path / "lock").exists()
    with run_directory.RunDirectory(tmp_path).locked():
        pass


def test_a_path_that_cannot_be_written_is_an_error_before_training(tmp_path):
    """Here because its parent is a file; a read-only directory has the same message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        errors.UsageError, match=r"can be written.*Not a directory.*Pass another path"
    ):
        with run_directory.RunDirectory(tmp_path / "file" / "run").locked():
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_directory_is_an_error_before_training(tmp_path):
    """Without a traceback."""
    tmp_path.chmod(0o500)
    with pytest.raises(errors.UsageError, match="Permission denied"):
        with run_directory.RunDirectory(tmp_path / "run").locked():
            pass


def test_a_failure_to_write_within_a_run_is_one_line(two_epochs, tmp_path):
    """metrics.jsonl on a full disk; the line names what the directory keeps."""
    directory = run_directory.RunDirectory(tmp_path)
    shutil.copytree(two_epochs[0], directory.checkpoints)
    with pytest.raises(
        errors.TrainingError, match=r"cannot be written.*keeps 2 whole epochs"
    ) as caught:
        with loop.report_unwritable(directory), files_up_to(0):
            directory.metrics.write_text("{}")
    assert "\n" not in str(caught.value)


# -- signals ---------------------------------------------------------------------------------

TINY = ["--width=0.0625", "--batch_size=16", "--precision=float32", "--optimizer=sgd"]
TINY += ["--projection_dim=8", "--image_size=8", "--train_split=train[:80]", "--epochs=2"]
TINY += ["--probe_every_epochs=-1", "--learning_rate=0.1", "--deterministic"]

# Runs the command with a SIGTERM in the seventh step, again until its end, and once undisturbed.
# Fewer residual blocks and shapes, no XLA, no export: like the fixtures of conftest.py.
STOPPED = """
import os, signal, sys
from simclr_tf import augment, cli
from simclr_tf.encoders import resnet
from simclr_tf.data import by_name
from simclr_tf.commands import pretrain
make = augment.RandomView.__init__
make.__defaults__ = (*make.__defaults__[:-1], False)
resnet.BASIC_BLOCKS[18] = (2, 1, 1, 1)
by_name.SHAPES_SPLITS["train"] = (200, 1)
pretrain.export_encoder = lambda encoder, path, *_: path.mkdir(parents=True)
parent, flags = sys.argv[1], sys.argv[2:]
from simclr_tf.training import callbacks
check = callbacks.StopAtStep.on_steps_end
def check_and_signal(self, steps, logs):
    check(self, steps, logs)
    if int(self.model.optimizer.iterations) == 7:
        os.kill(os.getpid(), signal.SIGTERM)
callbacks.StopAtStep.on_steps_end = check_and_signal
first = cli.main(["pretrain", f"--run_dir={parent}/stopped", *flags])
print("before:", first, flush=True)
callbacks.StopAtStep.on_steps_end = check
print("after:", cli.main(["pretrain", f"--run_dir={parent}/stopped", *flags]))
print("whole:", cli.main(["pretrain", f"--run_dir={parent}/whole", *flags]))
"""


def metrics_of(directory):
    """Rows of metrics.jsonl without the clock."""
    rows = run_directory.read_metrics(directory / "metrics.jsonl")
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")}
        for row in rows
    ]


@pytest.mark.end_to_end
def test_sigterm_saves_and_the_run_ends_bit_for_bit_as_one_left_alone(tmp_path):
    """In the second step of the second epoch; exit code 75 and one line."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path), *TINY],
        capture_output=True,
        text=True,
        check=False,
    )
    codes = [
        line
        for line in done.stdout.splitlines()
        if line.split(":")[0] in ("before", "after", "whole")
    ]
    assert codes == ["before: 75", "after: 0", "whole: 0"], done.stderr[-3000:]
    line = next(row for row in done.stderr.splitlines() if "SIGTERM" in row)
    assert "keeps 1 whole epochs and 2 steps" in line and "same command resumes" in line
    assert "resuming after epoch 1 and 2 steps." in done.stderr
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    assert metrics_of(stopped) == metrics_of(whole) and len(metrics_of(whole)) == 2
    ours, theirs = weights_of(stopped), weights_of(whole)
    assert set(ours) == set(theirs) and len(ours) > 100
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def signal_in(module, name, monkeypatch):
    """Makes a function of a module send SIGTERM to this process, as a library would let it pass."""

    def stop(*args, **kwargs):
        with contextlib.suppress(Exception):  # such as `try: import x ... except Exception`
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError(f"{name} went on")

    monkeypatch.setattr(module, name, stop)


@pytest.mark.end_to_end
@pytest.mark.parametrize("phase", ["import", "data", "export"])
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_sigterm_outside_training(phase, tmp_path, monkeypatch, capsys):
    """While TensorFlow is imported, while the data are read, after the last step."""
    where = {"import": (_quiet, "import_tensorflow"), "data": (pretrain, "load")}
    signal_in(*where.get(phase, (pretrain, "export_encoder")), monkeypatch)
    flags = TINY[:-1]  # without --deterministic, which lasts as long as the process
    assert cli.main(["pretrain", f"--run_dir={tmp_path}/run", "--dataset=shapes", *flags]) == 75
    error = capsys.readouterr().err
    assert error.endswith("simclr-tf: stopped by SIGTERM; start the same command again.\n")
    assert "Traceback" not in error
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (tmp_path / "run" / "checkpoints").exists() == (phase == "export")


def test_a_signal_between_steps_is_obeyed_after_the_next():
    """At any step of an epoch, and with several steps per execution."""
    saved = []
    stop = preemption.StopOnSignal(lambda: saved.append(True))
    with stop.listening():
        stop.on_epoch_begin(0)
        stop.on_train_batch_end(9)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not saved
        with pytest.raises(errors.PreemptedError):
            stop.on_train_batch_end(19)
    assert saved == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_workers_stop_together():
    """A worker without a signal too, at the next step at which they communicate."""
    others, saved = [False], []
    stop = preemption.StopOnSignal(lambda: saved.append(True), lambda flag: flag or others[0], 10)
    stop.on_epoch_begin(0)
    for batch in range(9, 15):
        stop.on_train_batch_end(batch)
    others[0] = True
    for batch in range(15, 19):
        stop.on_train_batch_end(batch)
    with pytest.raises(errors.PreemptedError):
        stop.on_train_batch_end(19)
    assert saved == [True]


# Saves in an endless loop, so that a kill interrupts a save more often than not.
SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
import test_reliability as here
model, saver = here.train(sys.argv[1], 1)
saver._position = 1, 0
print("saving", flush=True)
while True:
    epoch, step = saver._position
    saver._position = (epoch, step + 1) if step < 3 else (epoch + 1, 0)
    model.encoder.layers[0].bias.assign([float(saver._position[0] * 4 + saver._position[1])] * 4)
    saver.save()
"""


@pytest.mark.end_to_end
@pytest.mark.slow
def test_kills_within_a_save_lose_nothing_but_that_save(tmp_path):
    """Ten times, after more and more saves: the latest complete checkpoint is found."""
    here = os.path.dirname(os.path.abspath(__file__))
    for turn in range(10):
        directory = tmp_path / str(turn)
        command = [sys.executable, "-c", SAVER, str(directory), here]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "saving\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2 + 0.037 * turn)
            process.kill()
        model = model_of()
        epoch, step = checkpoints.Checkpoints(directory, model, STEPS).restore()
        assert 4 * epoch + step > 4
        np.testing.assert_array_equal(model.encoder.layers[0].bias, [4.0 * epoch + step] * 4)
