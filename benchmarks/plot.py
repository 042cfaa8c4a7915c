"""Plots time and memory of NT-Xent against the batch size, from the JSON file of run.py.

python benchmarks/plot.py benchmarks.json docs/loss.png
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot(source, target):
    """Draws two panels, seconds and memory, with logarithmic axes."""
    rows = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))["loss"]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in dict.fromkeys(row["implementation"] for row in rows):
        rows_of_name = [row for row in rows if row["implementation"] == name]
        style = {"linestyle": ":", "color": "grey"} if name == "three products" else {"marker": "o"}
        for panel, key in zip(panels, ("seconds", "megabytes")):
            points = [(row["images"], row[key]) for row in rows_of_name if row.get(key)]
            if points:
                panel.plot(*zip(*points), label=name, **style)
    for panel, label in zip(panels, ("seconds, value and gradient", "memory added, MB")):
        panel.set(xscale="log", yscale="log", xlabel="images in the batch, N", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    plot(*sys.argv[1:])
