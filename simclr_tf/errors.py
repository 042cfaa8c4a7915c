"""Every exception of the package, and the check of numbers that raises one of them.

Messages state the rule, the value received and what to do instead, and name arguments. The command
line shows these exceptions as one line, with `--` in front of the arguments that are flags; any
other exception is a bug and shows its traceback.
"""

import contextlib
import errno
import math
import operator
import re

# Of the operating system, where a path is wrong: not those of a disk that is full or fails.
_PATH_ERRNOS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL),
}


class Error(Exception):
    """Base class of the package's exceptions.

    Example:

    >>> issubclass(simclr_tf.errors.UsageError, simclr_tf.errors.Error)
    True
    """

    # AutoGraph raises such an exception as it is, without the source lines that led to it.
    ag_pass_through = True


class ArgumentError(Error, ValueError):
    """An argument of the wrong type, shape or range.

    Example:

    >>> issubclass(simclr_tf.errors.ArgumentError, ValueError)
    True
    """


class UsageError(ArgumentError):
    """A command whose flags are wrong, or do not fit each other.

    Example:

    >>> issubclass(simclr_tf.errors.UsageError, ValueError)
    True
    """


class TrainingError(Error, RuntimeError):
    """A run that cannot continue.

    Example:

    >>> issubclass(simclr_tf.errors.TrainingError, RuntimeError)
    True
    """


class NonFiniteError(TrainingError):
    """A loss or a weight is NaN or infinite.

    Example:

    >>> issubclass(simclr_tf.errors.NonFiniteError, simclr_tf.errors.TrainingError)
    True
    """


class PreemptedError(TrainingError):
    """The machine asked the run to stop (SIGTERM); its state is saved.

    Example:

    >>> issubclass(simclr_tf.errors.PreemptedError, simclr_tf.errors.TrainingError)
    True
    """


class TryAgainError(Error, RuntimeError):
    """The machine stopped the run; the same command resumes it. The exit code is 75.

    Example:

    >>> issubclass(simclr_tf.errors.TryAgainError, RuntimeError)
    True
    """


class ExportError(Error, RuntimeError):
    """An exported model whose outputs differ from the encoder's; it was removed.

    Example:

    >>> issubclass(simclr_tf.errors.ExportError, RuntimeError)
    True
    """


class CorruptImageError(Error):
    """An example that cannot be read; the message is the reason.

    Example:

    >>> issubclass(simclr_tf.errors.CorruptImageError, ValueError)
    False
    """


class StorageError(Error, OSError):
    """A file or directory that cannot be read or written; `errno` is the operating system's.

    Example:

    >>> issubclass(simclr_tf.errors.StorageError, OSError)
    True
    """

    @property
    def wrong_path(self):
        """Whether the path is the cause, rather than the disk: missing, a file, not accessible."""
        return self.errno in _PATH_ERRNOS


def check_number(
    name, value, *, above=None, at_least=None, below=None, at_most=None, whole=False, hint=""
):
    """Raises `ArgumentError` unless a value is a finite number within bounds.

    Args:
      name: of the argument.
      value: any object; NumPy's numbers and eager scalar tensors are numbers too.
      above, at_least: lower bound, excluded or included; None: no bound. Not both.
      below, at_most: upper bound, excluded or included; None: no bound. Not both.
      whole: whether only integers are accepted.
      hint: a sentence that ends the message.

    Raises:
      ArgumentError: names the argument, the bounds and the value.

    Example:

    >>> simclr_tf.errors.check_number("momentum", 1.0, at_least=0, below=1, hint="Try 0.9.")
    Traceback (most recent call last):
    simclr_tf.errors.ArgumentError: momentum must be a finite number in [0, 1); got 1.0. Try 0.9.
    """
    number = _as_number(value, whole)
    within = (
        number is not None
        and (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
    )
    if not within:
        kind = "whole" if whole else "finite"
        bounds = _bounds(above, at_least, below, at_most)
        message = f"{name} must be a {kind} number{bounds}; got {value!r}. {hint}"
        raise ArgumentError(message.rstrip())


def _as_number(value, whole):
    """The value as an int or a finite float; None if it is neither."""
    try:
        if whole:
            return operator.index(value)
        number = float("nan") if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _bounds(above, at_least, below, at_most):
    """The bounds in words, or as an interval if there are two."""
    low, high = (at_least if above is None else above), (at_most if below is None else below)
    if low is not None and high is not None:
        left, right = "[" if above is None else "(", "]" if below is None else ")"
        return f" in {left}{low}, {high}{right}"
    if low is not None:
        return f" of at least {low}" if above is None else f" above {low}"
    if high is not None:
        return f" of at most {high}" if below is None else f" below {high}"
    return ""


def check_pair(name, pair, at_least, at_most=None):
    """Raises `ArgumentError` unless a value is a pair of finite numbers (a, b), a <= b, in bounds.

    Args:
      name: of the argument.
      pair: any object.
      at_least, at_most: bounds of both numbers; None: no bound.

    Example:

    >>> simclr_tf.errors.check_pair("area", (0.5, 0.1), at_least=0, at_most=1)
    Traceback (most recent call last):
    simclr_tf.errors.ArgumentError: area must be two finite numbers (a, b) with 0 <= a <= b <= ...
    """
    try:
        low, high = (_as_number(value, whole=False) for value in pair)
    except (TypeError, ValueError):
        low = high = None
    within = low is not None and high is not None and at_least <= low <= high
    if not within or (at_most is not None and high > at_most):
        end = "" if at_most is None else f" <= {at_most}"
        raise ArgumentError(
            f"{name} must be two finite numbers (a, b) with {at_least} <= a <= b{end}; got {pair}."
        )


@contextlib.contextmanager
def storage_errors(path, action="written"):
    """Raises an `OSError` of the block as a `StorageError` that names the path.

    Args:
      path: the file or directory that is read or written, for errors that name no file.
      action: "read" or "written".

    Raises:
      StorageError: the disk is full, the directory is missing or not writable, and the like.

    Example:

    >>> with simclr_tf.errors.storage_errors("h.npz"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    simclr_tf.errors.StorageError: h.npz cannot be written: No space left on device. Free some ...
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        path = error.filename or path if action == "read" else path
        message = f"{path} cannot be {action}: {reason}. {_way_out(error.errno, action)}"
        storage_error = StorageError(reason if str(path) in reason else message)
        storage_error.errno = error.errno
        raise storage_error from error


def _way_out(number, action):
    if action == "read":
        return "Make it accessible, or choose another path."
    if number in _PATH_ERRNOS:
        return "Choose another path."
    return "Free some space, or choose another path."


@contextlib.contextmanager
def needs_package(package, purpose):
    """Raises an `ImportError` of the block as an `ArgumentError` with the command that installs it.

    Args:
      package: the name under which pip installs what the block imports.
      purpose: what needs it, such as the argument that asked for it.

    Raises:
      ArgumentError: the package, or one that it needs, cannot be imported.

    Example:

    >>> with simclr_tf.errors.needs_package("no-such-package", "encoder='other'"):
    ...     import no_such_package
    Traceback (most recent call last):
    simclr_tf.errors.ArgumentError: encoder='other' needs the package no-such-package, ...
    """
    try:
        yield
    except ImportError as error:
        missing = package
        if isinstance(error, ModuleNotFoundError) and error.name:
            missing = error.name.partition(".")[0].replace("_", "-")
        reason = " ".join(str(error).split()).rstrip(".")
        raise ArgumentError(
            f"{purpose} needs the package {package}, which cannot be imported ({reason}). "
            f"Run `pip install {missing}`."
        ) from error


# Quoted text, which stays as it is; or a word, which may name a flag.
_QUOTED_OR_WORD = re.compile(
    r"""(?<!\w)'[^']*'(?!\w) | "[^"]*" | `[^`]*`
    | (?<!\S) (?P<open>[(\[]*) (?P<name>[a-z]\w*)
      (?= (?P<value>=) | [,.;:)\]]*(?:\s|$) | 's\b )""",
    re.VERBOSE,
)


def rename_arguments(message, names):
    """Replaces the names of arguments in a message.

    A name with an underscore counts everywhere; a single word, such as precision, only before "="
    or " must". Quoted text and paths stay as they are.

    Args:
      message: one line.
      names: dict of argument to its other name.

    Example:

    >>> simclr_tf.errors.rename_arguments("split must be train; got 'split'.", {"split": "part"})
    "part must be train; got 'split'."
    """

    def renamed(match):
        name = match["name"]
        sure = name and ("_" in name or match["value"] or message.startswith(" must", match.end()))
        if name not in names or not sure:
            return match[0]
        return match["open"] + names[name]

    return _QUOTED_OR_WORD.sub(renamed, message)


@contextlib.contextmanager
def renamed_arguments(**names):
    """Renames arguments in the message of an `ArgumentError` that the block raises.

    For a caller whose own arguments have other names than those that it passes them to.

    Args:
      **names: argument to its other name.

    Example:

    >>> with simclr_tf.errors.renamed_arguments(path="--output"):
    ...     raise simclr_tf.errors.ArgumentError("path must end in .npz.")
    Traceback (most recent call last):
    simclr_tf.errors.ArgumentError: --output must end in .npz.
    """
    try:
        yield
    except ArgumentError as error:
        error.args = (rename_arguments(str(error), names),)
        raise
