"""`simclr-tf study NAME`: an ablation of the paper, resumed by the same call."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

from simclr_tf import _atomic, errors
from simclr_tf.commands.build import DataOptions, counted, load, log, report_unreadable
from simclr_tf.evaluate.transfer import markdown, write_table
from simclr_tf.studies import STUDIES, Runner
from simclr_tf.studies.predict_transformation import write_data_set
from simclr_tf.studies.processes import run_command
from simclr_tf.training import RunDirectory
from simclr_tf.training.run_directory import read_flags, write_atomically

_OWN_FLAGS = ("study", "out", "protocol", "debug")  # the others are those of pretrain
_EXAMPLES = 5000  # of each split, to which transformations are applied


def study(options, invocation):
    """Runs the settings of a study, and writes its table and its picture.

    Args:
      options: attributes named as the flags of `simclr-tf study`.
      invocation: `flags`, dict of flag name to its text; `resumable`, names of flags that may
        change when a study is continued.

    Raises:
      errors.TryAgainError: SIGTERM came; the same call continues.
      errors.TrainingError: a setting failed; its row of the table has the reason.
    """
    _leave_accelerators_to_the_runs()
    chosen, directory = STUDIES[options.study], RunDirectory(options.out)
    given = {name: text for name, text in invocation.flags.items() if name not in _OWN_FLAGS}
    flags = chosen.flags(given)
    with errors.renamed_arguments(run_dir="--out"), directory.locked():
        with errors.storage_errors(options.out):
            _check_flags(directory.path / "study.cfg", invocation)
            runner = Runner(
                chosen,
                directory.path,
                flags,
                options.protocol,
                log,
                run_command,
                data_of_task=lambda name: _data_of_task(options, flags, chosen, directory, name),
            )
            log(f"{chosen.title}: {counted(len(runner.settings), 'setting')} in {directory.path}")
            with _report_ctrl_c(runner):
                runner.run()
            _write(runner)
    failed = sum(result["error"] is not None for result in runner.results.values())
    if failed:
        raise errors.TrainingError(
            f"{failed} of {len(runner.settings)} settings failed; the table has the reasons. "
            "The same command tries them again."
        )


def _leave_accelerators_to_the_runs():
    """Hides GPUs from this process, which would reserve their memory, though not from the runs."""
    with contextlib.suppress(RuntimeError):  # the process has used its devices before
        tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _report_ctrl_c(runner):
    try:
        yield
    except KeyboardInterrupt:
        log(f"\nstopped; {runner.progress()}. The same command continues there.")
        raise


def _check_flags(path, invocation):
    """Raises UsageError if the study was begun with other flags; else records them."""
    flags = {name: text for name, text in invocation.flags.items() if name not in ("out", "debug")}
    begun = (path.parent / "results.jsonl").exists() or list(
        path.parent.glob("runs/*/checkpoints/ckpt-*.index")
    )
    if path.exists() and begun:
        before = read_flags(path)
        changed = [
            f"--{name}={before.get(name)}, now --{name}={flags.get(name)}"
            for name in sorted({*before, *flags})
            if name not in invocation.resumable and before.get(name) != flags.get(name)
        ]
        if changed:
            raise errors.UsageError(
                f"{path.parent} holds a study with other flags: {'; '.join(changed)}. Pass the "
                "same flags to continue it, or another --out."
            )
    lines = [f"--{name}={text}\n" for name, text in sorted(flags.items())]
    write_atomically(path, "".join(lines))


def _write(runner):
    """Writes table.csv, table.md, table.json and figure.png, and prints the table."""
    rows, directory = runner.rows(), runner.directory
    summary = {"study": runner.study.title, "protocol": runner.protocol, "flags": runner.flags}
    write_table(directory, rows, summary)
    with _atomic.atomic_path(directory / "figure.png") as path:
        runner.study.draw(rows, runner.score_columns, path, runner.study.title)
    print(markdown(rows), end="", flush=True)
    log(f"wrote table.csv, table.md, table.json and figure.png to {directory}")


def _data_of_task(options, flags, chosen, directory, name):
    """The npz of transformed images of a task, written if it is missing."""
    path = directory.path / "data" / f"{name.replace(' ', '_')}.npz"
    if not path.exists():
        own = DataOptions.of(options.replace(dataset=flags["dataset"]))
        options = options.replace(**dataclasses.asdict(own))
        images = {
            "train": _images(options, options.train_split, "--train_split"),
            "test": _images(options, options.test_split, "--test_split"),
        }
        write_data_set(chosen.tasks[name], images, path)
    return path


def _images(options, split, flag):
    """The first images of a split, uint8 [n, S, S, 3]."""
    source = load(options, split, flag)
    with report_unreadable(source):
        batches = source.batches(256, limit=options.probe_examples or _EXAMPLES)
        return np.concatenate([np.asarray(batch["image"]) for batch in batches])
