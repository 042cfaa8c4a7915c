"""Curves of a run, drawn by matplotlib from the rows of its metrics.jsonl."""

from __future__ import annotations

_ACCURACIES = {
    "contrastive_accuracy": ("contrastive accuracy", "tab:grey"),
    "knn_accuracy": ("kNN accuracy", "tab:orange"),
    "accuracy": ("training accuracy", "tab:green"),
}


def draw_curve(rows, path, title=""):
    """Draws loss and accuracies of a run against its epochs.

    The left panel shows the loss; the right panel shows contrastive accuracy and kNN accuracy, or
    the training accuracy of fine-tuning, in percent. A metric may be missing in some rows or in
    all.

    Args:
      rows: list of dicts, the lines of metrics.jsonl: "epoch" (int, from 1), "loss", and optionally
        "contrastive_accuracy", "knn_accuracy" and "accuracy", floats in [0, 1].
      path: file to write; its suffix selects the format, such as .png, .svg or .pdf.
      title: str, shown above the panels.

    Raises:
      ValueError: a suffix that matplotlib has no format for.
      OSError: `path` cannot be written.

    Example:

    >>> rows = [{"epoch": 1, "loss": 5.1}, {"epoch": 2, "loss": 4.3, "knn_accuracy": 0.4}]
    >>> simclr_tf.report.draw_curve(rows, "curve.png")
    >>> import os; os.path.getsize("curve.png") > 0
    True
    """
    from matplotlib.figure import Figure  # no display and no global state

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot(left, rows, "loss", color="tab:blue")
    left.set(ylabel="loss")
    for key, (label, color) in _ACCURACIES.items():
        _plot(right, rows, key, scale=100, color=color, label=label)
    right.set(ylabel="accuracy, %", ylim=(-2, 102))
    if right.lines:
        # Given: matplotlib then does not warn where it is slow.
        right.legend(frameon=False, loc="best")
    for panel in (left, right):
        panel.set(xlabel="epoch")
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _plot(panel, rows, key, scale=1, **style):
    """Plots a metric against the epoch, over the rows that have it."""
    points = [(row["epoch"], scale * row[key]) for row in rows if key in row]
    # A metric that is measured in few epochs shows its points: a line of one is invisible.
    marker = "o" if len(points) < 2 or len(points) < len(rows) else None
    if points:
        panel.plot(*zip(*points), marker=marker, markersize=4, **style)
