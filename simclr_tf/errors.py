"""Every exception of the package.

Messages state the rule, the value received and what to do instead.
"""


class UsageError(ValueError):
    """A command or an argument that cannot be carried out as given."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what happened and what to do."""


class PreemptedError(TrainingError):
    """The machine asked the run to stop (SIGTERM), and its state is saved."""


class TryAgainError(RuntimeError):
    """The machine stopped the run, which is no mistake of the user: the same command resumes it."""


class ExportError(RuntimeError):
    """An exported model that does not give the encoder's outputs; it was removed."""


class CorruptImageError(Exception):
    """An example that cannot be read; the message is the reason."""
