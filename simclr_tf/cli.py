"""The command line: `simclr-tf COMMAND --flags`. The only module that reads a flag.

TensorFlow is imported only when a command runs, so help and mistakes are answered at once.
Exit codes: 0 done; 2 a flag is wrong, or what it names (`_exit_code`); 75 the machine stopped the
command, which can be started again (SIGTERM, a worker that is gone); 130 stopped by Ctrl-C; 1 any
other failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable

from simclr_tf import _flags, errors
from simclr_tf.commands import checks, flags
from simclr_tf.commands.views import parse_view_sizes, parse_views


@dataclasses.dataclass(frozen=True)
class Command:
    """All that the command line knows of a command.

    Attributes:
      name: the word after `simclr-tf`.
      help: one line.
      run: "module:function", imported when the command runs, so that help needs no TensorFlow.
        The function is called with `Options` and an `Invocation`.
      groups: functions that define flags, called with a `_flags.Define`.
      required: flags without which the command is refused.
      argument: the flag that the first word after the name stands for, where it is not a flag.
      exactly_one: flags of which exactly one must be given; none: no such rule.
      required_without_run: flags that are required where --run_dir is not given.
      run_flags: flags that name runs that exist, whose options are then passed. One other than
        --run_dir may also name something else than a run.
      several_runs: whether --run_dir may name several runs, joined by commas, whose options are
        then passed by path.
      takes_fine_tuned: whether that run may be one of `finetune` or `distill`.
      resumable: flags that do not change what is learnt and may differ when a run is resumed.
      check: called with the `Options` before TensorFlow is imported; raises `errors.UsageError`.

    Example:

    >>> simclr_tf.cli.COMMANDS["export"].required
    ('run_dir', 'output')
    """

    name: str
    help: str
    run: str
    groups: tuple
    required: tuple = ()
    argument: str | None = None
    exactly_one: tuple = ()
    required_without_run: tuple = ()
    run_flags: tuple = ("run_dir",)
    several_runs: bool = False
    takes_fine_tuned: bool = True
    resumable: tuple = ()
    check: Callable | None = None


class Options:
    """The flags of a command as attributes, which cannot be changed; `replace` returns a copy.

    Example:

    >>> options = simclr_tf.cli.Options(epochs=3, seed=0)
    >>> options.replace(epochs=4).epochs, options.epochs
    (4, 3)
    """

    def __init__(self, **values):
        vars(self).update(values)

    def __setattr__(self, name, value):
        raise AttributeError(f"options cannot be changed; got {name} = {value!r}. Use replace().")

    def replace(self, **changes):
        """The same options with other values for some names."""
        return Options(**{**vars(self), **changes})


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What a command is called with besides its own options.

    Attributes:
      flags: dict of flag name to its text, for flags.cfg.
      resumable: names of flags that may change when a run is resumed.
      runs: the `Options` of the runs that the command reads, by flag (by path where --run_dir names
        several), each with `command`, the name of the command that trained it.
      trained: those of the first of the command's `run_flags`; None where it names no run.
      defaults: dict of flag name to the text of its default; flags without one are left out.
      given: names of the flags that stand on the command line or in its flag files, with a value
        other than none.
      given_as_none: names of those that stand there with none.

    Example:

    >>> simclr_tf.cli.Invocation(flags={"epochs": "3"}, resumable=("debug",)).flags
    {'epochs': '3'}
    """

    flags: dict
    resumable: tuple
    trained: Options | None = None
    runs: dict = dataclasses.field(default_factory=dict)
    defaults: dict = dataclasses.field(default_factory=dict)
    given: tuple = ()
    given_as_none: tuple = ()


# Flags that do not change what is learnt, of every command that trains.
_OF_EXECUTION = (
    "data_dir",
    "cache_gigabytes",
    "index_cache",
    "checkpoint_every_steps",
    "steps_per_execution",
    "max_corrupt_share",
)
_ENCODER_SOURCES = ("run_dir", "saved_model", "official_weights")

COMMANDS = {
    command.name: command
    for command in (
        Command(
            name="pretrain",
            help="learn an encoder from images; given again, it resumes",
            run="simclr_tf.commands.pretrain:pretrain",
            groups=(
                flags.define_common,
                flags.define_data,
                flags.define_model,
                flags.define_method,
                flags.define_init_from,
                flags.define_views,
                flags.define_training,
                flags.define_whitening,
            ),
            required=("run_dir",),
            run_flags=("init_from",),
            check=checks.check_pretrain,
            resumable=(
                "run_dir",
                *_OF_EXECUTION,
                "probe_every_epochs",
                "probe_examples",
                "probe_protocols",
                "probe_dataset",
                "probe_train_split",
                "probe_test_split",
                "milestones",
                "test_split",
                "debug",
            ),
        ),
        Command(
            name="evaluate",
            help="kNN and linear accuracy of an encoder, on one data set or several",
            run="simclr_tf.commands.evaluate:evaluate_encoder",
            groups=(
                flags.define_common,
                flags.define_encoder,
                flags.define_evaluate,
                flags.define_protocols,
            ),
            exactly_one=_ENCODER_SOURCES,
            required_without_run=("dataset",),
            check=checks.check_evaluate,
        ),
        Command(
            name="finetune",
            help="train a pretrained encoder with few or many labels; given again, it resumes",
            run="simclr_tf.commands.finetune:finetune",
            groups=(flags.define_common, flags.define_finetune),
            required=("run_dir", "pretrained"),
            run_flags=("pretrained",),
            check=checks.check_finetune,
            resumable=(
                "run_dir",
                *_OF_EXECUTION,
                "test_split",
                "from_scratch",
                "debug",
            ),
        ),
        Command(
            name="distill",
            help="train a student on a fine-tuned teacher's soft labels; given again, it resumes",
            run="simclr_tf.commands.distill:distill",
            groups=(flags.define_common, flags.define_distill, flags.define_student),
            required=("run_dir", "teacher"),
            run_flags=("teacher", "init_from"),
            check=checks.check_distill,
            resumable=(
                "run_dir",
                *_OF_EXECUTION,
                "test_split",
                "debug",
            ),
        ),
        Command(
            name="embed",
            help="embeddings, labels and ids of a data set, as npz, Parquet or TFRecord",
            run="simclr_tf.commands.embed:embed",
            groups=(flags.define_common, flags.define_encoder, flags.define_embed),
            required=("output",),
            exactly_one=_ENCODER_SOURCES,
            required_without_run=("dataset",),
            check=checks.check_embed,
        ),
        Command(
            name="export",
            help="the encoder of a run as a SavedModel, or for TensorFlow Lite",
            run="simclr_tf.commands.export:export",
            groups=(flags.define_common, flags.define_export),
            required=("run_dir", "output"),
            takes_fine_tuned=False,
            check=checks.check_export,
        ),
        Command(
            name="preview",
            help="what a model would see of a data set, a plan and a recipe, before a run",
            run="simclr_tf.commands.preview:preview",
            groups=(
                flags.define_preview,
                flags.define_data,
                flags.define_model,
                flags.define_method,
                flags.define_views,
                flags.define_training,
                flags.define_whitening,
            ),
            run_flags=(),
            check=checks.check_preview,
        ),
        Command(
            name="report",
            help="a page on a run, or on several side by side, in one file",
            run="simclr_tf.commands.report:report_runs",
            groups=(flags.define_common, flags.define_report),
            required=("run_dir",),
            several_runs=True,
            check=checks.check_report,
        ),
        Command(
            name="runs",
            help="the runs under a directory: state, epochs, last metrics, size",
            run="simclr_tf.commands.runs:runs",
            groups=(flags.define_runs,),
            required=("under",),
            run_flags=(),
        ),
        Command(
            name="replay",
            help="compute a run's step again whose loss was not finite, and say where it began",
            run="simclr_tf.commands.replay:replay",
            groups=(flags.define_common,),
            required=("run_dir",),
            takes_fine_tuned=False,
        ),
        Command(
            name="study",
            help="an ablation of the paper (study NAME); given again, it continues",
            run="simclr_tf.commands.study:study",
            groups=(flags.define_study, flags.define_runs_of_study),
            argument="study",
            required=("out",),
            run_flags=(),
            check=checks.check_study,
            resumable=(
                *_OF_EXECUTION,
                "probe_every_epochs",
            ),
        ),
    )
}


# Flags that are paths. Shells leave the "~" of --run_dir=~/runs as it is.
_PATHS = ("run_dir", "data_dir", "output", "saved_model", "official_weights", "cache_dir")
_PATHS += ("pretrained", "init_from", "teacher", "out", "under", "write_recipe")


def _flag_values(command):
    """The flags of a `Command`, unparsed."""
    define = _flags.Define()
    for group in command.groups:
        group(define)
    # Expanded before the others are parsed; declared so that --help lists it.
    define.string(
        "flagfile",
        None,
        "Read flags from this file, one a line; a recipe or RUN_DIR/flags.cfg. Later flags "
        "override it; FLAG=none is the same as leaving out a flag that has no default.",
    )
    return define.values


def parse(argv):
    """Command and flags of an argument list (without the program's name).

    Returns:
      (name of the command, values): values is an `absl.flags.FlagValues`, parsed.

    Raises:
      errors.UsageError: an unknown command or flag, a value out of range, a flag missing.

    Example:

    >>> command, values = simclr_tf.cli.parse(["pretrain", "--run_dir=runs/a", "--epochs=3"])
    >>> command, values.epochs, values.dataset
    ('pretrain', 3, 'shapes')
    """
    if not argv or argv[0] not in COMMANDS:
        given = f"got {argv[0]!r}" if argv else "got none"
        raise errors.UsageError(f"COMMAND must be one of {', '.join(COMMANDS)}; {given}.")
    command = COMMANDS[argv[0]]
    values, words = _flag_values(command), argv[1:]
    if command.argument and words and not words[0].startswith("-"):
        words = [f"--{command.argument}={words[0]}", *words[1:]]
    try:
        _flags.parse(values, command.name, words)
    except _flags.FlagError as error:
        raise errors.UsageError(str(error)) from None
    _check_given(command, values)
    return command.name, values


def _check_given(command, values):
    """Raises UsageError unless the flags that a command needs are there."""

    def given(names):
        return [f"--{name}" for name in names if values[name].value]

    for name in command.required:
        if not given([name]):
            raise errors.UsageError(f"{command.name} needs --{name}.")
    one_of = given(command.exactly_one)
    if command.exactly_one and len(one_of) != 1:
        names = ", ".join(f"--{name}" for name in command.exactly_one)
        raise errors.UsageError(
            f"{command.name} needs exactly one of {names}; got {' and '.join(one_of) or 'none'}."
        )
    for name in command.required_without_run:
        if not given([name]) and not given(["run_dir"]):
            raise errors.UsageError(f"{command.name} needs --{name} where it has no --run_dir.")


def options_of(values):
    """Flag values as `Options`; views and view sizes as lists, "~" in paths expanded.

    Example:

    >>> _, values = simclr_tf.cli.parse(["pretrain", "--run_dir=a", "--view_sizes=16:0.5,32:1"])
    >>> simclr_tf.cli.options_of(values).view_sizes
    [(16, 0.5), (32, 1.0)]
    """
    options = values.flag_values_dict()
    for name in _PATHS:
        if options.get(name):
            options[name] = _path(options[name])
    if options.get("view_sizes"):
        options["view_sizes"] = parse_view_sizes(options["view_sizes"])
    if options.get("views"):
        options["views"] = parse_views(options["views"])
    return Options(**options)


def _path(text):
    """A path with "~" expanded and without slashes at its end."""
    return os.path.expanduser(text).rstrip("/") or "/"


def _paths(text):
    """The paths in a text, joined by commas; a path that exists may hold commas itself."""
    if os.path.exists(text):
        return [text]
    return [_path(part.strip()) for part in text.split(",") if part.strip()]


def flag_texts(values):
    """Flag name to its text, for flags.cfg; flags without a value are left out.

    Example:

    >>> _, values = simclr_tf.cli.parse(["export", "--run_dir=runs/a", "--output=encoder/1"])
    >>> simclr_tf.cli.flag_texts(values)["format"]
    'saved_model'
    """
    return {
        name: str(values[name].value)
        for name in values
        if name != "flagfile" and values[name].value is not None
    }


def options_of_run(run_dir):
    """The options that a run was trained with, from its flags.cfg, with `command` for its command.

    Raises:
      errors.UsageError: there is no run.

    Example:

    >>> simclr_tf.training.RunDirectory(".").write_flags({"epochs": "7", "run_dir": "."})
    >>> simclr_tf.cli.options_of_run(".").epochs
    7
    """
    path = pathlib.Path(run_dir) / "flags.cfg"
    if not os.path.isfile(path):  # unlike that of pathlib, it raises nothing
        raise errors.UsageError(
            f"--run_dir must be the directory of a run; {run_dir} has no flags.cfg. "
            "Make one with `simclr-tf pretrain`."
        )
    checks.check_text(path)
    begin = re.match(r"# simclr-tf (\w+)\n", path.read_text(encoding="utf-8"))
    command = begin[1] if begin else "pretrain"
    try:
        _, values = parse([command, f"--flagfile={path}"])
    except errors.UsageError as error:
        raise errors.UsageError(
            f"--run_dir must be the directory of a run; {path} does not hold the flags of one: "
            f"{error}"
        ) from error
    # The directory may have been moved.
    return options_of(values).replace(run_dir=run_dir, command=command)


def _check_legacy_keras():
    """Raises unless the Keras that TF_USE_LEGACY_KERAS asks TensorFlow for is installed."""
    value = os.environ.get("TF_USE_LEGACY_KERAS")
    if value in ("1", "true", "True") and importlib.util.find_spec("tf_keras") is None:
        raise errors.UsageError(
            f"TF_USE_LEGACY_KERAS={value} needs tf-keras, which is not installed. Install the "
            "tf-keras of TensorFlow's version, or unset the variable."
        )


def _options_of_run_read(command, options, flag):
    """The `Options` of the run at a flag of a command, or None."""
    path = getattr(options, flag)
    if not path or (flag != "run_dir" and not os.path.isfile(f"{path}/flags.cfg")):
        return None
    trained = options_of_run(path)
    if trained.command != "pretrain" and not command.takes_fine_tuned:
        raise errors.UsageError(
            f"{command.name} takes a run of `simclr-tf pretrain`; {path} is a fine-tuned one, "
            f"whose export is {path}/export/1."
        )
    return trained


def _execute(command, values):
    """Runs a parsed command."""
    options = options_of(values)
    if command.check:
        command.check(options)
    if command.several_runs:
        runs = {path: options_of_run(path) for path in _paths(options.run_dir)}
    else:
        runs = {flag: _options_of_run_read(command, options, flag) for flag in command.run_flags}
    trained = next(iter(runs.values()), None)
    defaults = flag_texts(_flag_values(command))
    texts = flag_texts(values)
    present = [name for name in values if name != "flagfile" and values[name].present]
    given = tuple(name for name in present if name in texts)
    as_none = tuple(name for name in present if name not in texts)
    invocation = Invocation(texts, command.resumable, trained, runs, defaults, given, as_none)
    _check_legacy_keras()
    from simclr_tf import _quiet

    # TensorFlow logs while it is imported, and XLA and the kernels when they are first used.
    with _quiet.native_noise_hidden():
        _quiet.import_tensorflow()
        module, _, function = command.run.partition(":")
        getattr(importlib.import_module(module), function)(options, invocation)


def _help(argv):
    """Prints help; argv holds --help or is empty."""
    name = next((word for word in argv if word in COMMANDS), None)
    if name:
        print(f"simclr-tf {name}: {COMMANDS[name].help}\n")
        print(_flags.help_of(_flag_values(COMMANDS[name])))
        return
    print("Learn an image encoder without labels (SimCLR).\n\nusage: simclr-tf COMMAND --flags\n")
    for command in COMMANDS.values():
        print(f"  {command.name:<10} {command.help}")
    print("\n`simclr-tf COMMAND --help` lists the flags of a command.")


class _Terminated(BaseException):
    """SIGTERM came. Not an `Exception`: libraries catch these while they are imported."""


@contextlib.contextmanager
def _sigterm_raises():
    """Raises `_Terminated` at SIGTERM, except in blocks that have a handler of their own."""
    if threading.current_thread() is not threading.main_thread():  # Python allows it there only
        yield
        return

    def stop(number, frame):
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stops_at_sigterm(main):
    """Decorates `main`, so that it returns 75 after SIGTERM, from its first line on."""

    @functools.wraps(main)
    def stopping(argv=None):
        try:
            with _sigterm_raises():
                return main(argv)
        except _Terminated:
            print("simclr-tf: stopped by SIGTERM; start the same command again.", file=sys.stderr)
            return os.EX_TEMPFAIL

    return stopping


@_stops_at_sigterm
def main(argv=None):
    """Runs a command line and returns its exit code; argv is without the program's name.

    Only the package's own exceptions become one line; any other is a bug and is raised.

    Example:

    >>> simclr_tf.cli.main(["evaluate", "--saved_model=encoder/1"])
    2
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout is gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(argv):
    if not argv or {"-h", "--help", "-help", "help"} & set(argv):
        _help(argv)
        return 0 if argv else 2
    debug = "--debug" in argv or "--debug=true" in argv
    try:
        name, values = parse(argv)
        _execute(COMMANDS[name], values)
    except KeyboardInterrupt:
        return 130
    except errors.Error as error:
        if debug and not isinstance(error, errors.TryAgainError):
            raise
        _print_error(error, COMMANDS.get(argv[0]))
        return _exit_code(error)
    return 0


def _exit_code(error):
    """2 where the cause is a flag, or what it names (a path, a data set); else 75 or 1.

    Every argument that the commands pass to the library comes from a flag.
    """
    if isinstance(error, errors.TryAgainError):
        return os.EX_TEMPFAIL
    if isinstance(error, errors.StorageError):
        return 2 if error.wrong_path else 1
    return 2 if isinstance(error, errors.ArgumentError) else 1


def _print_error(error, command):
    line = " ".join(str(error).split())
    if command:
        line = name_flags(line, set(_flag_values(command)))
    print(f"simclr-tf: {line}", file=sys.stderr)


def name_flags(message, flags):
    """Writes `--` before the arguments in a message of the library that are flags of a command.

    Args:
      message: one line.
      flags: set of the names of the flags.

    Example:

    >>> simclr_tf.cli.name_flags("batch_size must be even; got 3.", {"batch_size"})
    '--batch_size must be even; got 3.'
    """
    return errors.rename_arguments(message, {name: f"--{name}" for name in flags})
