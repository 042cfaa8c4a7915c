"""Every exception of the package.

Messages state the rule, the value received and what to do instead, and name arguments. The command
line shows these exceptions as one line, with `--` in front of the arguments that are flags; any
other exception is a bug and shows its traceback.
"""

import contextlib


class Error(Exception):
    """Base class of the package's exceptions."""

    # AutoGraph raises such an exception as it is, without the source lines that led to it.
    ag_pass_through = True


class ArgumentError(Error, ValueError):
    """An argument of the wrong type, shape or range."""


class UsageError(ArgumentError):
    """A command that cannot be carried out as given; its exit code is 2."""


class TrainingError(Error, RuntimeError):
    """A run that cannot continue."""


class PreemptedError(TrainingError):
    """The machine asked the run to stop (SIGTERM); its state is saved."""


class TryAgainError(Error, RuntimeError):
    """The machine stopped the run; the same command resumes it. The exit code is 75."""


class ExportError(Error, RuntimeError):
    """An exported model whose outputs differ from the encoder's; it was removed."""


class CorruptImageError(Error):
    """An example that cannot be read; the message is the reason."""


class OutputError(Error, OSError):
    """A file or directory that cannot be written; `errno` is that of the operating system."""


@contextlib.contextmanager
def output_errors(path):
    """Raises an `OSError` of the block as an `OutputError` that names the path.

    For blocks that do nothing but write.

    Args:
      path: the file or directory that is written.

    Raises:
      OutputError: the disk is full, the directory is not writable, and the like.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{path} cannot be written: {reason}. Free some space, or choose another path."
        output_error = OutputError(reason if str(path) in reason else message)
        output_error.errno = error.errno
        raise output_error from error
