"""The HTML page of a run: curves, views, metrics and flags in one file."""

from __future__ import annotations

import base64
import shlex

from simclr_tf import _atomic
from simclr_tf.report.curves import draw_curve

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ name }}</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: 0 1em 0 0; text-align: left; vertical-align: top; }
.numbers td, .numbers th { text-align: right; font-variant-numeric: tabular-nums; }
.flags td { font-family: monospace; overflow-wrap: anywhere; }
.flags td:first-child { white-space: nowrap; }
img { max-width: 100%; } code { background: #eee; }
</style>
<h1>{{ name }}</h1>
<p>{{ rows|length }} epochs{% if rows %}, {{ rows[-1].step|number }} steps{% endif %}.
Run again with <code>simclr-tf {{ command }} --flagfile={{ flagfile }}</code>.</p>
<h2>Training curves</h2>
<img src="{{ curve }}" alt="Loss and accuracies by epoch">
{% if views -%}
<h2>Views</h2>
<p>The first column shows images of the training set, the others random views of them.</p>
<img src="{{ views }}" alt="Images and random views of them">
{% endif -%}
<h2>Metrics</h2>
<div class="scroll">
<table class="numbers">
<tr>{% for key in keys %}<th>{{ key.replace("_", " ") }}</th>{% endfor %}</tr>
{% for row in rows -%}
<tr>{% for key in keys %}<td>{{ row[key]|number if key in row }}</td>{% endfor %}</tr>
{% endfor -%}
</table>
</div>
<h2>Flags</h2>
<table class="flags">
{% for flag, value in flags.items() -%}
<tr><td>--{{ flag }}</td><td>{{ value }}</td></tr>
{% endfor -%}
</table>
</html>
"""


def write_report(directory, rows, flags, command="pretrain"):
    """Writes report.html, a self-contained page on a run, and the curve.png that it shows.

    The page also shows views.png where the run has one (`draw_views`).

    Args:
      directory: a `training.run_directory.RunDirectory`; its files are read and written.
      rows: list of dicts, the lines of metrics.jsonl (`training.run_directory.read_metrics`).
      flags: dict from flag name to its value as text.
      command: name of the command that the flags are of.

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
    import jinja2

    draw_curve(rows, directory.curve)
    environment = jinja2.Environment(autoescape=True)
    environment.filters["number"] = _number
    page = environment.from_string(_PAGE).render(
        name=directory.path.resolve().name,
        flagfile=shlex.quote(str(directory.flags)),
        command=command,
        rows=rows,
        keys=list(dict.fromkeys(key for row in rows for key in row)),
        flags=flags,
        curve=_data_url(directory.curve),
        views=_data_url(directory.views) if directory.views.exists() else None,
    )
    with _atomic.atomic_path(directory.report, parents=False) as path:
        path.write_text(page, encoding="utf-8")


def _number(value):
    """A metric as text: four digits, without an exponent where the number is large."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _data_url(path):
    """A PNG file as a URL that holds it, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
