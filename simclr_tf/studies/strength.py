"""Strength of the colour distortion (SimCLR, table 1)."""

from __future__ import annotations

from simclr_tf.studies.figures import draw_points
from simclr_tf.studies.study import Setting, Study

_STRENGTHS = ("0.125", "0.25", "0.5", "1")


def settings(flags):
    """Strengths of the colour jitter as in the table; the strongest also with blur."""
    return [
        *[_setting(strength, "no") for strength in _STRENGTHS],
        _setting(_STRENGTHS[-1], "yes"),
    ]


def _setting(strength, blur):
    name = f"strength-{strength}" + ("-blur" if blur == "yes" else "")
    flags = {"color_jitter_strength": strength, "blur": blur}
    return Setting(name, flags, {"strength": strength, "blur": blur})


def draw(rows, scores, path, title):
    """Accuracy over the strength; with blur as the last value."""
    named = [{**row, "x": row["strength"] + _suffix(row)} for row in rows]
    draw_points(named, path, "x", scores, title=title, labels={"x": "colour distortion strength"})


def _suffix(row):
    return " + blur" if row["blur"] == "yes" else ""


STRENGTH = Study("Strength of the colour distortion (SimCLR, table 1)", settings, draw)
