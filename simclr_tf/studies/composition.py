"""Every augmentation alone and every ordered pair, on one of the views (SimCLR, figure 5)."""

from __future__ import annotations

import statistics

from simclr_tf.studies.figures import draw_heat_map
from simclr_tf.studies.study import Setting, Study

# The figure's names and order; values of --augmentations.
OPERATORS = {
    "crop": "crop",
    "cutout": "cutout",
    "color": "color_jitter,color_drop",
    "sobel": "sobel",
    "noise": "gaussian_noise",
    "blur": "blur",
    "rotate": "rotate90",
}


def settings(flags):
    """49 settings: both views are the same random crop, of which the second is transformed."""
    return [_setting(first, second) for first in OPERATORS for second in OPERATORS]


def _setting(first, second):
    names = [first] if first == second else [first, second]
    return Setting(
        "-".join(names),
        {
            "augmentations": ",".join(OPERATORS[name] for name in names),
            "transformed_views": "one",
        },
        {"first": first, "second": second},
    )


def matrix(rows, score):
    """Accuracies [7][8]: the first operator's row, the second one's column, the mean of the row.

    A single operator is on the diagonal; nan stands for a setting without a result.
    """
    found = {(row["first"], row["second"]): row.get(score) for row in rows}
    lines = []
    for first in OPERATORS:
        values = [found.get((first, second)) for second in OPERATORS]
        known = [value for value in values if value is not None]
        mean = statistics.fmean(known) if known else None
        lines.append([float("nan") if value is None else value for value in (*values, mean)])
    return lines


def draw(rows, scores, path, title):
    """The heat map of the figure."""
    names = list(OPERATORS)
    labels = ("second augmentation (the diagonal: one alone)", "first augmentation")
    draw_heat_map(matrix(rows, scores[0]), names, [*names, "average"], path, title, labels)


COMPOSITION = Study(
    "Augmentations alone and in pairs, on one view (SimCLR, figure 5)",
    settings,
    draw,
    budget={"epochs": "4"},
)
