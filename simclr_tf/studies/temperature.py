"""Temperature and normalization of NT-Xent (SimCLR, table 5)."""

from __future__ import annotations

from simclr_tf.studies.figures import draw_points
from simclr_tf.studies.study import Setting, Study

# Those of the table. Dot products are not bounded by 1, and need higher ones.
_TEMPERATURES = {"cosine": ("0.05", "0.1", "0.5", "1"), "dot_product": ("10", "100")}


def settings(flags):
    """Each temperature of the table, with and without normalization."""
    return [
        _setting(similarity, temperature)
        for similarity, temperatures in _TEMPERATURES.items()
        for temperature in temperatures
    ]


def _setting(similarity, temperature):
    normalize = "true" if similarity == "cosine" else "false"
    return Setting(
        f"{similarity}-{temperature}",
        {"normalize": normalize, "temperature": temperature},
        {"similarity": similarity.replace("_", " "), "temperature": temperature},
    )


def draw(rows, scores, path, title):
    """Accuracy over the temperature, for cosines and for dot products."""
    draw_points(rows, path, "temperature", scores, "similarity", title)


TEMPERATURE = Study("Temperature and normalization of NT-Xent (SimCLR, table 5)", settings, draw)
