"""Prints a lock: the ranges of setup.cfg, resolved by pip once per Python.

`make lock` writes both locks with it. By hand, for one stack and its Pythons, oldest first:
`python .ci/lock.py --extra=keras2 python3.9 python3.10 python3.11 > requirements.txt`.
Nothing is installed: pip only reports what it would install. A pin that does not hold for every
Python carries an environment marker. The lock is for Linux, where the tests run.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADER = """\
# A stack of exact versions, for Linux and Python {pythons}: what the tests ran with.
# Written by `make lock` from the ranges in setup.cfg; not edited by hand.
"""
DEV_HEADER = """
# Only for the development of simclr_tf: tests, style, wheels.
"""


def resolve(python, extras):
    """Returns (minor version of `python`, {project: version}) for this package with `extras`."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([python, "-m", "venv", f"{scratch}/venv"], check=True)
        report = pathlib.Path(scratch, "report.json")
        pip = [f"{scratch}/venv/bin/python", "-m", "pip", "install", "--quiet"]
        # The pip that comes with Python 3.9 searches for many minutes.
        subprocess.run([*pip, "--upgrade", "pip"], check=True, stdout=sys.stderr)
        package = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
        pip += ["--dry-run", "--ignore-installed", f"--report={report}", package]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        found = json.loads(report.read_text(encoding="utf-8"))
    minor = int(found["environment"]["python_version"].split(".")[1])
    pins = {}
    for package in found["install"]:
        if not package["is_direct"]:  # all but simclr_tf itself
            pins[canonical(package["metadata"]["name"])] = package["metadata"]["version"]
    return minor, pins


def canonical(name):
    """Returns a project name as PEP 503 spells it."""
    return name.lower().replace("_", "-").replace(".", "-")


def marker(minors, supported):
    """Returns the environment marker for `minors`, sorted and without gaps, or an empty string."""
    terms = []
    if minors[0] != supported[0]:
        terms.append(f'python_version >= "3.{minors[0]}"')
    if minors[-1] != supported[-1]:
        terms.append(f'python_version < "3.{minors[-1] + 1}"')
    return " ; " + " and ".join(terms) if terms else ""


def merge(by_minor, names):
    """Yields one line for each version of each project in `names`."""
    supported = sorted(by_minor)
    for name in sorted(names):
        versions = {}
        for minor in supported:
            if name in by_minor[minor]:
                versions.setdefault(by_minor[minor][name], []).append(minor)
        for version, minors in versions.items():
            yield f"{name}=={version}{marker(minors, supported)}"


def main():
    """Prints the lock for the interpreters that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", action="append", default=[], help="of setup.cfg")
    parser.add_argument("pythons", nargs="+", help="interpreters, oldest first")
    options = parser.parse_args()
    runtime = dict(resolve(python, options.extra) for python in options.pythons)
    everything = dict(resolve(python, [*options.extra, "dev"]) for python in options.pythons)
    needed = {name for pins in runtime.values() for name in pins}
    for_dev = {name for pins in everything.values() for name in pins} - needed
    print(HEADER.format(pythons=", ".join(f"3.{minor}" for minor in sorted(everything))))
    print("\n".join(merge(everything, needed)))
    print(DEV_HEADER)
    print("\n".join(merge(everything, for_dev)))


if __name__ == "__main__":
    main()
