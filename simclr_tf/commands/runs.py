"""`simclr-tf runs`: lists the runs under a directory."""

from __future__ import annotations

import dataclasses
import json
import math

from simclr_tf.commands.build import counted, log
from simclr_tf.training.records import best_first, find_runs

_COLUMNS = ("state", "epochs", "loss", "kNN", "size", "command", "run")
_LEFT = ("state", "command", "run")  # columns of words
_UNITS = ((2**30, "GB"), (2**20, "MB"), (2**10, "kB"))


def runs(options, invocation):
    """Prints a table of the runs, or a JSON object for each; returns the list of `RunRecord`.

    Args:
      options: attributes named as the flags of `simclr-tf runs`.
      invocation: not used.

    Raises:
      errors.ArgumentError: no such directory, or no run with the metric of --best.
    """
    found = find_runs(options.under)
    if not found:
        log(f"no runs under {options.under}: no directory there has a flags.cfg.")
        return found
    if options.best:
        found = best_first(found, options.best)
    if options.format == "json":
        for record in found:
            print(json.dumps(_json(record)))
    else:
        _print_table(found, options.best)
    return found


def _json(record):
    finite = {
        name: value if math.isfinite(value) else None for name, value in record.metrics.items()
    }
    return {**dataclasses.asdict(record), "path": str(record.path), "metrics": finite}


def _print_table(found, best):
    columns = list(_COLUMNS)
    if best and best not in ("loss", "knn_accuracy"):
        columns.insert(2, best)
    rows = [{name: name for name in columns}, *(_cells(record, best) for record in found)]
    widths = {name: max(len(row[name]) for row in rows) for name in columns}
    for row in rows:
        cells = (
            row[name].ljust(widths[name]) if name in _LEFT else row[name].rjust(widths[name])
            for name in columns
        )
        print("  ".join(cells).rstrip())
    for record in found:
        if record.error:
            log(f"{record.path}: {record.error}")
    log(counted(len(found), "run"))


def _cells(record, best):
    """The texts of a row of the table, by column."""
    metrics = record.metrics
    planned = f"/{record.planned_epochs}" if record.planned_epochs else ""
    accuracy = metrics.get("knn_accuracy")
    cells = {
        "state": record.state,
        "epochs": f"{record.epochs}{planned}",
        "loss": _number(metrics.get("loss")),
        "kNN": "" if accuracy is None else f"{100 * accuracy:.2f} %",
        "size": _size(record.num_bytes),
        "command": record.command,
        "run": str(record.path),
    }
    if best:
        cells.setdefault(best, _number(metrics.get(best)))
    return cells


def _number(value):
    return "" if value is None else f"{value:.4g}"


def _size(num_bytes):
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} B"
