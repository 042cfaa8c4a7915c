"""The environment of a run: versions, devices, commit and command, for environment.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys

import tensorflow as tf

import simclr_tf

_PACKAGES = ("tensorflow", "keras", "keras-cv", "tensorflow-addons", "tensorflow-datasets", "numpy")
_GIT_SECONDS = 10  # a commit on a file system that hangs must not hold up a run


def describe_environment(argv=None):
    """Describes where a command runs: enough to repeat it, and nothing secret.

    Neither environment variables nor the address of a Git remote are read.

    Args:
      argv: list of str, the command line; None: that of this process.

    Returns:
      dict: "started", the time in UTC; "command", one line for a shell; "directory", the working
      directory; "commit", the Git commit of that directory, None outside a repository; "modified",
      whether files that Git tracks differ from the commit, None as well; "python" and "platform";
      "versions", of the packages that are installed, by name; "cpus", the number that this process
      may use; "devices", a list of {"type", "name"}.

    Example:

    >>> found = simclr_tf.training.describe_environment(["simclr-tf", "pretrain", "--epochs=3"])
    >>> found["command"], found["versions"]["simclr_tf"] == simclr_tf.__version__
    ('simclr-tf pretrain --epochs=3', True)
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "started": now.isoformat(timespec="seconds"),
        "command": shlex.join(_command() if argv is None else argv),
        "directory": os.getcwd(),
        **_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions(),
        "cpus": len(os.sched_getaffinity(0)),
        "devices": _devices(),
    }


def _command():
    """The command line of this process, as a person writes it."""
    name = os.path.basename(sys.argv[0])
    program = ["simclr-tf"] if name == "__main__.py" else [name]
    return program + sys.argv[1:]


def _commit():
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {"commit": None, "modified": None}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _git(*words):
    """The output of a git command in the working directory; None where it fails."""
    try:
        done = subprocess.run(
            ["git", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions():
    versions = {"simclr_tf": simclr_tf.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _devices():
    """Accelerators by their names; the CPU where there is none."""
    found = []
    for device in tf.config.list_physical_devices():
        if device.device_type == "CPU":
            found.append({"type": "CPU", "name": _cpu_name()})
        elif not device.device_type.startswith("XLA"):
            details = tf.config.experimental.get_device_details(device)
            found.append({"type": device.device_type, "name": details.get("device_name", "")})
    return found


def _cpu_name():
    """The model of the CPU, or its architecture where the system does not tell."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
