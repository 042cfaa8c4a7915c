"""Charts of a page as inline SVG, which take the colour of the text around them."""

from __future__ import annotations

import io
import math
import re
from typing import NamedTuple

_FOREGROUND = "#010203"  # stands for the colour of the page's text
_SIZE = (4.6, 2.9)  # inches; the page scales a chart to its column
_MAX_POINTS = 1000  # of a curve, which is no wider than as many pixels
_MAX_DOTS = 60  # of a metric that is measured in some epochs only
_MAX_NAME = 24  # characters in a legend
_STYLES = ("-", "--", ":", "-.")


class Chart(NamedTuple):
    """One chart of the metrics of a run.

    Attributes:
      title: what it shows.
      unit: label of the vertical axis.
      keys: dict of a key of metrics.jsonl to its name in the legend.
      scale: factor of the values.
    """

    title: str
    unit: str
    keys: dict
    scale: float = 1.0


CHARTS = (
    Chart("Loss", "loss", {"loss": "loss"}),
    Chart("kNN accuracy", "%", {"knn_accuracy": "kNN accuracy"}, 100),
    Chart("Linear probe", "%", {"linear_accuracy": "linear accuracy"}, 100),
    Chart(
        "Accuracy in training",
        "%",
        {"contrastive_accuracy": "contrastive accuracy", "accuracy": "training accuracy"},
        100,
    ),
    Chart("Effective dimensions", "dimensions", {"rankme": "RankMe", "lidar": "LiDAR"}),
    Chart("Alignment", "squared distance", {"alignment": "alignment"}),
    Chart("Uniformity", "log potential", {"uniformity": "uniformity"}),
    Chart("Similarity gap", "cosine", {"similarity_gap": "positive - negative"}),
    Chart("Gradient norm", "norm", {"gradient_norm": "gradient norm"}),
    Chart("Learning rate", "rate", {"learning_rate": "learning rate"}),
    Chart("Speed", "images/s", {"images_per_second": "images per second"}),
    Chart("Waiting for data", "% of the time", {"data_wait": "waiting"}, 100),
)


def draw_charts(runs):
    """Draws the charts for which some run has a metric.

    Args:
      runs: list of objects with `name`, `rows` (lines of metrics.jsonl) and `chance_loss` (float,
        or None).

    Returns:
      list of (SVG, text that describes it), both str.
    """
    return [
        (_curves(chart, runs), _description(chart, runs))
        for chart in CHARTS
        if any(key in row for run in runs for row in run.rows for key in chart.keys)
    ]


def _points(rows, key, scale):
    """(epochs, values) of a metric over the rows that have it, at most `_MAX_POINTS`."""
    points = [
        (row["epoch"], scale * row[key]) for row in rows if math.isfinite(row.get(key, math.nan))
    ]
    every = -(-len(points) // _MAX_POINTS) or 1
    return list(zip(*(points[::every] if every > 1 else points)))


def _curves(chart, runs):
    def draw(axes):
        for number, run in enumerate(runs):
            for style, (key, label) in zip(_STYLES, chart.keys.items()):
                points = _points(run.rows, key, chart.scale)
                if not points:
                    continue
                sparse = len(points[0]) < max(2, min(len(run.rows), _MAX_DOTS))
                color = f"C{number}" if len(runs) > 1 else f"C{_STYLES.index(style)}"
                names = [_short(run.name)] if len(runs) > 1 else []
                names += [label] if len(chart.keys) > 1 or not names else []
                axes.plot(
                    *points,
                    style if len(runs) > 1 else "-",
                    color=color,
                    marker="o" if sparse else None,
                    markersize=3.5,
                    label=", ".join(names),
                )
        if "loss" in chart.keys:
            _draw_chance(axes, runs)
        axes.set(title=chart.title, xlabel="epoch", ylabel=chart.unit, xlim=_epochs(runs))
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=8, loc="best")

    return _svg(draw, chart.title)


def _epochs(runs):
    """Limits of the epochs, the same for all charts of a page."""
    last = max((row["epoch"] for run in runs for row in run.rows), default=1)
    margin = 0.03 * (last - 1) or 0.5
    return 1 - margin, last + margin


def _draw_chance(axes, runs):
    """Draws the loss of a model that has learnt nothing: one line where it is that of all runs."""
    values = [run.chance_loss for run in runs]
    if len(set(values)) == 1 and values[0] is not None:
        axes.axhline(values[0], color=_FOREGROUND, linestyle=":", label="chance")
        return
    for number, value in enumerate(values):
        if value is not None:
            label = f"{_short(runs[number].name)}, chance"
            axes.axhline(value, color=f"C{number}", linestyle=":", label=label)


def _short(name):
    """The end of a long name, for a legend."""
    return name if len(name) <= _MAX_NAME else f"...{name[-_MAX_NAME:]}"


def _description(chart, runs):
    """The chart in words: first and last value of every curve."""
    parts = []
    for run in runs:
        for key, label in chart.keys.items():
            points = _points(run.rows, key, chart.scale)
            if points:
                of_run = f" of {run.name}" if len(runs) > 1 else ""
                values = f"{points[1][0]:.4g} to {points[1][-1]:.4g}"
                parts.append(f"{label}{of_run} from {values} {chart.unit}".rstrip())
        if "loss" in chart.keys and run.chance_loss is not None:
            parts.append(f"chance at {run.chance_loss:.4g}")
    return f"{chart.title} by epoch: {'; '.join(parts)}."


def draw_similarities(positive, negative):
    """The distributions of the cosine similarities of positive and negative pairs, as SVG."""
    import numpy as np

    bins = np.linspace(min(positive.min(), negative.min(), 0.9), 1.0 + 1e-6, 50)

    def draw(axes):
        for values, label in ((negative, "of different images"), (positive, "of one image")):
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, alpha=0.6, label=label)
        axes.set(title="Similarity of two views", xlabel="cosine similarity", ylabel="% of pairs")
        axes.legend(frameon=False, fontsize=8, loc="best")

    return _svg(draw, "similarities")


def _svg(draw, name):
    """An SVG element with what `draw` draws on axes, without a width of its own."""
    import matplotlib
    from matplotlib.figure import Figure

    foreground = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
        _FOREGROUND,
    )
    settings = {
        **foreground,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.25, color="#808080")
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue())


def _inline(text):
    """The SVG element of a file for a page: no declarations, no metadata, no fixed size."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    begin, end, rest = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', begin)[0]
    text = f'<svg {box} aria-hidden="true"{end}{rest}'
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 sans-serif", text)
    return re.sub(r"\n\s*", "\n", text).replace(_FOREGROUND, "currentColor")
