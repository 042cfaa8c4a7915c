"""Every exception of the package.

Messages state the rule, the value received and what to do instead, and name arguments. The command
line shows these exceptions as one line, with `--` in front of the arguments that are flags; any
other exception is a bug and shows its traceback.
"""


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


class StorageError(Error, RuntimeError):
    """A file or directory of the user that cannot be read or written."""


class CorruptImageError(Error):
    """An example that cannot be read; the message is the reason."""
