"""What a study is: settings, how they are scored, and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple


class Setting(NamedTuple):
    """One run of a study.

    Attributes:
      name: of the directory of the run.
      flags: dict of flag of `simclr-tf pretrain` to its text, those that the study varies.
      columns: dict of column to text, by which table and picture name the setting.

    Example:

    >>> simclr_tf.studies.STUDIES["strength"].settings({})[0].flags
    {'color_jitter_strength': '0.125', 'blur': 'no'}
    """

    name: str
    flags: dict
    columns: dict


@dataclasses.dataclass(frozen=True)
class Study:
    """A list of settings of `simclr-tf pretrain`, scored alike.

    Attributes:
      title: one line, with the figure or table of the paper.
      settings: a function of a dict of flags, the same for all settings, to a list of `Setting`s.
      draw: a function of (rows, scores, path, title) that draws the picture. rows: list of dicts,
        the rows of the table; scores: list of the columns that are accuracies, floats in [0, 1] or
        None.
      budget: dict of flag to its text, for all settings unless the user gives another one: minutes
        on two cores. It is completed by `BUDGET`.
      layers: the layers that are scored, as in `simclr-tf evaluate --layer`.
      tasks: dict of name to `Task`, what is predicted from the features in place of the classes.

    Example:

    >>> study = simclr_tf.studies.STUDIES["head"]
    >>> study.layers
    ('h', 'z')
    """

    title: str
    settings: Callable
    draw: Callable
    budget: dict = dataclasses.field(default_factory=dict)
    layers: tuple = ("h",)
    tasks: dict = dataclasses.field(default_factory=dict)

    def flags(self, given):
        """The flags that are the same for all settings: the given ones, else the budget."""
        return {**BUDGET, **self.budget, **given}


class Task(NamedTuple):
    """Which of several transformations was applied to an image.

    Attributes:
      transform: a function of (images, which, rng) to the transformed images: float32
        [n, S, S, 3] in [0, 1]; int [n], the number of the transformation of each, below `classes`;
        a NumPy generator.
      classes: number of transformations.
    """

    transform: Callable
    classes: int


# That of examples/recipes/shapes.cfg.
BUDGET = {
    "dataset": "shapes",
    "resnet_depth": "18",
    "width": "0.25",
    "batch_size": "128",
    "epochs": "8",
    "optimizer": "adamw",
    "learning_rate": "0.003",
    "learning_rate_scaling": "none",
    "weight_decay": "1e-4",
    "temperature": "0.2",
    "probe_every_epochs": "-1",
}
