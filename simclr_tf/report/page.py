"""The HTML page of a run, or of several side by side: one file that needs no other."""

from __future__ import annotations

import dataclasses
import shlex

from simclr_tf import _atomic
from simclr_tf.errors import check_number
from simclr_tf.report import template
from simclr_tf.report.charts import draw_charts
from simclr_tf.report.curves import draw_curve
from simclr_tf.report.pictures import file_url
from simclr_tf.report.samples import Samples
from simclr_tf.report.sections import sections_of
from simclr_tf.report.verdict import verdict, warnings

_VIEWS_WIDTH = 1000  # pixels
_COMPARED = ("loss", "contrastive_accuracy", "knn_accuracy", "linear_accuracy", "accuracy")
_COMPARED += ("rankme", "lidar", "images_per_second")
_PERCENT = ("contrastive_accuracy", "knn_accuracy", "linear_accuracy", "accuracy")


@dataclasses.dataclass
class RunPage:
    """What a page shows of a run; all but the first four may be missing.

    Attributes:
      name: of the run.
      rows: list of dicts, the lines of metrics.jsonl.
      flags: dict from flag name to its value as text.
      flagfile: path of its flags.cfg.
      command: name of the command that the flags are of.
      state, planned_epochs, error: as of a `training.RunRecord`.
      batch_size: images per step.
      chance_loss: the loss of a model that has learnt nothing.
      environment: dict, see `training.describe_environment`.
      views: path of a sheet of views.
      samples: `Samples`.
      note: a sentence on what is missing.

    Raises:
      ArgumentError: a `chance_loss` below 0, or one that is not finite.

    Example:

    >>> rows = [{"epoch": 1, "step": 8, "loss": 5.1}]
    >>> run = simclr_tf.report.RunPage("a", rows, {"dataset": "shapes"}, "runs/a/flags.cfg")
    >>> "The loss is 5.100." in simclr_tf.report.render([run])
    True
    """

    name: str
    rows: list
    flags: dict
    flagfile: str
    command: str = "pretrain"
    state: str = ""
    planned_epochs: int | None = None
    error: str | None = None
    batch_size: int | None = None
    chance_loss: float | None = None
    environment: dict | None = None
    views: object = None
    samples: Samples | None = None
    note: str = ""

    def __post_init__(self):
        """Checks the numbers."""
        if self.chance_loss is not None:
            check_number("chance_loss", self.chance_loss, at_least=0)


def write_report(directory, rows, flags, command="pretrain", **details):
    """Writes report.html, a self-contained page on a run, and curve.png for other uses.

    Args:
      directory: a `training.run_directory.RunDirectory`; its files are read and written.
      rows: list of dicts, the lines of metrics.jsonl (`training.run_directory.read_metrics`).
      flags: dict from flag name to its value as text.
      command: name of the command that the flags are of.
      **details: further attributes of `RunPage`.

    Raises:
      OSError: the directory cannot be written.

    Example:

    >>> from simclr_tf.training.run_directory import RunDirectory
    >>> directory = RunDirectory(".")
    >>> rows = [{"epoch": 1, "step": 8, "loss": 5.1}]
    >>> simclr_tf.report.write_report(directory, rows, {"dataset": "shapes"})
    >>> "--dataset" in directory.report.read_text()
    True
    """
    draw_curve(rows, directory.curve)
    views = directory.views if directory.views.exists() else None
    name, flagfile = directory.path.resolve().name, str(directory.flags)
    run = RunPage(name, rows, flags, flagfile, command, views=views, **details)
    write_page([run], directory.report, parents=False)


def write_page(runs, path, parents=True):
    """Writes a page on one run, or on several side by side.

    Args:
      runs: list of `RunPage`.
      path: the file.
      parents: whether to make missing parent directories.

    Raises:
      OSError: the file cannot be written.

    Example:

    >>> run = simclr_tf.report.RunPage("a", [], {}, "runs/a/flags.cfg")
    >>> simclr_tf.report.write_page([run, run], "report.html")
    >>> "Side by side" in open("report.html").read()
    True
    """
    page = render(runs)
    with _atomic.atomic_path(path, parents=parents) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(runs):
    """The HTML of a page, str.

    Args:
      runs: list of `RunPage`.

    Example:

    >>> run = simclr_tf.report.RunPage("a", [], {}, "runs/a/flags.cfg")
    >>> simclr_tf.report.render([run])[:15]
    '<!doctype html>'
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True)
    environment.filters["number"] = _number
    return environment.from_string(template.PAGE).render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        style=template.STYLE,
        script=template.SCRIPT,
        runs=[_values(run) for run in runs],
        charts=draw_charts(runs),
        compared=_comparison(runs) if len(runs) > 1 else None,
    )


def _values(run):
    """What the template shows of a run."""
    return {
        "name": run.name,
        "rows": run.rows,
        "columns": list(dict.fromkeys(key for row in run.rows for key in row)),
        "flags": run.flags,
        "flagfile": shlex.quote(run.flagfile),
        "command": run.command,
        "verdict": verdict(run),
        "warnings": warnings(run),
        "note": run.note,
        "views": file_url(run.views, _VIEWS_WIDTH) if run.views else None,
        "environment": _environment(run.environment),
        **(sections_of(run.samples) if run.samples else {}),
    }


def _environment(environment):
    """Rows of the table of the environment: nested values in one line each."""
    rows = []
    for name, value in (environment or {}).items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {each}" for key, each in value.items())
        elif isinstance(value, list):
            value = ", ".join(" ".join(map(str, each.values())) for each in value)
        if value is not None:
            rows.append((name, value))
    return rows


def _comparison(runs):
    """The table of last values and the flags that differ."""
    last = [{key: row[key] for row in run.rows for key in row} for run in runs]
    keys = [key for key in _COMPARED if any(key in values for values in last)]
    rows = [
        [run.name, run.state, values.get("epoch", 0), *(_cell(values, key) for key in keys)]
        for run, values in zip(runs, last)
    ]
    names = sorted({name for run in runs for name in run.flags} - {"run_dir"})
    differing = [
        (name, [run.flags.get(name, "") for run in runs])
        for name in names
        if len({run.flags.get(name) for run in runs}) > 1
    ]
    return {
        "best": _best(runs, last),
        "head": ["run", "state", "epochs", *(key.replace("_", " ") for key in keys)],
        "rows": rows,
        "flags": differing,
    }


def _best(runs, last):
    """A sentence on the run of the highest last kNN accuracy; None where fewer than two have one.

    Args:
      runs: list of `RunPage`.
      last: list of dicts, the last value of each metric.
    """
    scored = [
        (values["knn_accuracy"], run) for run, values in zip(runs, last) if "knn_accuracy" in values
    ]
    if len(scored) < 2:
        return None
    accuracy, run = max(scored, key=lambda pair: pair[0])
    return f"The highest kNN accuracy at the end is that of {run.name}: {accuracy:.1%}."


def _cell(values, key):
    if key not in values:
        return ""
    return f"{values[key]:.1%}" if key in _PERCENT else _number(values[key])


def _number(value):
    """A metric as text: four digits, without an exponent where the number is large."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
