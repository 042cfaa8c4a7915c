"""Definitions of flags, and one line for each way to get one wrong.

absl parses the command line; its own messages are replaced. Which flags a command has is in `cli`.
"""

from __future__ import annotations

import difflib
import math
import os

from absl import flags as absl_flags

_MAX_INTEGER = 2**31 - 1


class Define:
    """Defines the flags of a command.

    Each method takes the name of the flag, its default and its help; numbers also take the bounds
    of their range, which belong to it. A flag whose default is None also takes the word "none": as
    if it had not been given, whatever a flag file before it says.

    Attributes:
      values: the `absl.flags.FlagValues`, not parsed yet.
    """

    def __init__(self):
        self.values = absl_flags.FlagValues()

    def string(self, name, default, text):
        """One line of UTF-8, since flags.cfg holds a flag in a line."""
        absl_flags.DEFINE_string(name, default, text, flag_values=self.values)
        self._add_rule(
            name,
            f"--{name} must be followed by its value",
            f"Write --{name}=VALUE.",
            lambda value: value.strip() and not value.startswith("--"),
        )
        self._add_rule(
            name,
            f"--{name} must be one line of UTF-8 text",
            "Rename what it stands for.",
            lambda value: len(value.splitlines()) == 1 and value.encode(),
        )

    def boolean(self, name, default, text):
        """True or false; also --noNAME."""
        absl_flags.DEFINE_boolean(name, default, text, flag_values=self.values)
        rule = f"--{name} must be true or false"
        self._add_rule(name, rule, f"Write --{name} or --no{name}.")

    def enum(self, name, default, choices, text):
        """One of some words."""
        absl_flags.DEFINE_enum(name, default, choices, text, flag_values=self.values)
        self._add_rule(name, f"--{name} must be one of {', '.join(choices)}", _leave_out(default))

    def integer(self, name, default, text, low=0, high=_MAX_INTEGER):
        """A whole number."""
        absl_flags.DEFINE_integer(name, default, text, low, high, flag_values=self.values)
        shown = "2**31 - 1" if high == _MAX_INTEGER else high
        self._add_range(name, f"a whole number in [{low}, {shown}]", default)

    def float(self, name, default, text, low=0.0, high=None):
        """A finite number."""
        absl_flags.DEFINE_float(name, default, text, low, high, flag_values=self.values)
        rule = f"in [{low:g}, {high:g}]" if high is not None else f"of at least {low:g}"
        self._add_range(name, f"a finite number {rule}", default)

    def _add_range(self, name, rule, default):
        # Bounds let nan pass, and an infinity where one is open.
        self._add_rule(name, f"--{name} must be {rule}", _leave_out(default), math.isfinite)
        self.values[name].parser.syntactic_help = rule

    def _add_rule(self, name, rule, way_out, accepts=lambda value: True):
        flag = self.values[name]
        flag.parser = _Parser(flag.parser, rule, way_out, accepts, optional=flag.default is None)


def help_of(values):
    """Help for all flags, one after the other."""
    return values.get_help(include_special_flags=False).partition(":\n")[2]  # without the module


def _leave_out(default):
    return f"Leave it out to use {'the default' if default is None else default}."


class FlagError(Exception):
    """A wrong flag. Not a ValueError: absl would put the flag's name in front of the message."""


class _Parser(absl_flags.ArgumentParser):
    """A parser of absl whose error states the rule, the value and the way out."""

    def __init__(self, parser, rule, way_out, accepts, optional):
        self._parser, self._rule, self._way_out, self._accepts = parser, rule, way_out, accepts
        self._optional = optional

    def parse(self, argument):
        if self._optional and argument == "none":
            return None
        try:
            value = self._parser.parse(argument)
            accepted = self._accepts(value)
        except (TypeError, ValueError):
            accepted = False
        if not accepted:
            raise FlagError(f"{self._rule}; got {argument!r}. {self._way_out}")
        return value

    def flag_type(self):
        return self._parser.flag_type()


def parse(values, command, argv):
    """Parses flags.

    Args:
      values: an `absl.flags.FlagValues`, changed in place.
      command: name of the command, for messages.
      argv: list of words.

    Raises:
      FlagError: an unknown flag, a wrong value, a flag file that cannot be read, or a word that
        is not a flag.
    """
    argv = _expanded(argv)
    try:
        _, *rest = values([command, *argv])
    except absl_flags.UnrecognizedFlagError as error:
        raise FlagError(_unknown(error.flagname, values, command)) from None
    except absl_flags.Error:  # the last word is a flag that needs a value
        raise FlagError(f"{argv[-1]} must be followed by its value; got none.") from None
    except ValueError as error:  # --noNAME=VALUE
        flag = str(error).partition("=")[0]
        raise FlagError(f"{flag} takes no value; got one. Write {flag} alone.") from None
    if rest:
        raise FlagError(f"{command} takes flags only; got {rest[0]!r}. Write --flag=value.")


def _unknown(name, values, command):
    near = difflib.get_close_matches(name, list(values), n=3, cutoff=0.75)
    hint = f"`simclr-tf {command} --help` lists its flags."
    if near:
        hint = f"Near matches: {', '.join(f'--{flag}' for flag in near)}."
    return f"{command} has no flag --{name}. {hint}"


def _expanded(argv, above=()):
    """The words of a command line, each --flagfile replaced by the lines of its file.

    Args:
      argv: list of words.
      above: the flag files that lead to these words.
    """
    expanded, words = [], iter(argv)
    for word in words:
        name, equals, path = word.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(word)
            continue
        path = os.path.expanduser(path if equals else next(words, "")).strip()
        if path in above:
            raise FlagError(f"a flag file must not include itself; {path} does. Remove that line.")
        expanded += _expanded(_flag_file(path), (*above, path))
    return expanded


def _flag_file(path):
    """The lines of a flag file, without comments."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise FlagError(
            f"--flagfile must be a text file that can be read; got {path!r} ({reason}). "
            "Pass a recipe, or RUN_DIR/flags.cfg."
        ) from None
    return [line for line in lines if line and not line.startswith(("#", "//"))]
