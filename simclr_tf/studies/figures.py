"""Pictures of studies: a heat map, bars, and points over named values; drawn by matplotlib."""

from __future__ import annotations

import math


def draw_heat_map(matrix, row_names, column_names, path, title="", labels=("", "")):
    """Draws a matrix of accuracies, each with its number.

    Args:
      matrix: list of rows of floats in [0, 1]; nan is an empty cell.
      row_names, column_names: lists of str.
      path: file to write; its suffix selects the format.
      title: str, shown above.
      labels: of the columns and of the rows, shown below and on the left.
    """
    from matplotlib.figure import Figure  # no display and no global state

    figure = Figure(
        figsize=(1.5 + 0.75 * len(column_names), 1.2 + 0.6 * len(row_names)), layout="constrained"
    )
    panel = figure.subplots()
    cells = [[100 * value for value in row] for row in matrix]
    image = panel.imshow(cells, cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=panel, label="accuracy, %")
    panel.set_xticks(range(len(column_names)), column_names)
    panel.set_yticks(range(len(row_names)), row_names)
    panel.set(xlabel=labels[0], ylabel=labels[1], title=title)
    low, high = image.get_clim()
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            if not math.isnan(value):
                color = "white" if value < (low + high) / 2 else "black"
                panel.text(j, i, f"{value:.1f}", ha="center", va="center", color=color)
    figure.savefig(path, dpi=110)


def draw_points(rows, path, x, scores, series=None, title="", labels=None):
    """Draws accuracies over the values of a column, a panel for each score.

    The values are at equal distances, in the order of the rows; the points of a series are
    connected. A row without a score is left out.

    Args:
      rows: list of dicts.
      path: file to write; its suffix selects the format.
      x: the column whose values are on the horizontal axis.
      scores: list of columns of floats in [0, 1] or None.
      series: the column by which points are coloured; None: one colour.
      title: str, shown above.
      labels: dict of column to what the picture calls it.
    """
    from matplotlib.figure import Figure

    labels = labels or {}
    figure = Figure(figsize=(1.5 + 4.5 * len(scores), 4.0), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    values = list(dict.fromkeys(row[x] for row in rows))
    for panel, score in zip(panels, scores):
        for name, points in points_of(rows, x, score, series).items():
            positions = [values.index(value) for value, _ in points]
            panel.plot(positions, [100 * y for _, y in points], marker="o", label=name)
        panel.set_xticks(range(len(values)), values)
        panel.set(xlabel=labels.get(x, x), title=labels.get(score, ""))
        panel.grid(alpha=0.3)
        if series and panel.lines:
            panel.legend(frameon=False, title=labels.get(series, series), loc="best")
    panels[0].set(ylabel="accuracy, %")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def draw_bars(bars, names, path, title="", ticks=None):
    """Draws accuracies as bars in groups, each with its number, and a line across each group.

    Args:
      bars: dict of str, the label of a colour, to a list of floats in [0, 1] or None, one for each
        group; None has no bar.
      names: list of str, below the groups.
      path: file to write; its suffix selects the format.
      title: str, shown above.
      ticks: None, or a pair (label, list of floats in [0, 1]): the lines across the groups.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.6 * len(names), 4.0), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(bars)
    for k, (label, heights) in enumerate(bars.items()):
        found = [(i, 100 * y) for i, y in enumerate(heights) if y is not None]
        left = [i - 0.4 + (k + 0.5) * width for i, _ in found]
        drawn = panel.bar(left, [y for _, y in found], width, label=label)
        panel.bar_label(drawn, fmt="%.1f", fontsize=8)
    if ticks:
        levels = [100 * y for y in ticks[1]]
        edges = [i - 0.45 for i in range(len(names))], [i + 0.45 for i in range(len(names))]
        panel.hlines(levels, *edges, colors="black", linestyles="--", label=ticks[0])
    panel.set_xticks(range(len(names)), names)
    panel.set(ylabel="accuracy, %", ylim=(0, 108), title=title)
    panel.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, dpi=110)


def points_of(rows, x, score, series=None):
    """Returns {series: [(value of x, accuracy), ...]} of the rows that have the score."""
    points = {}
    for row in rows:
        if row.get(score) is not None:
            points.setdefault(row[series] if series else "", []).append((row[x], row[score]))
    return points
