"""Transfer to other data sets: how each is customarily scored, and the table of results.

The twelve data sets are those of SimCLR (arXiv:2002.05709, section 6 and appendix B.8). Loading and
scoring them is the command's part.
"""

import csv
import json
import pathlib
from typing import NamedTuple, Optional

from simclr_tf import _atomic

TOP_1, MEAN_PER_CLASS = "top-1", "mean per class"
MEAN_AP, MEAN_AP_11 = "mAP", "mAP (11 points)"


class DataSet(NamedTuple):
    """How a data set is customarily scored.

    Attributes:
      load_as: name for `data.load`: its TFDS name, or None if TFDS does not have it.
      metric: `TOP_1`, `MEAN_PER_CLASS`, `MEAN_AP` or `MEAN_AP_11`.
      train_split, test_split: in TFDS syntax; the training split includes the validation split
        where there is one, as in the paper.

    Example:

    >>> from simclr_tf.evaluate import transfer
    >>> transfer.DATA_SETS["pets"].metric
    'mean per class'
    """

    load_as: Optional[str]
    metric: str = TOP_1
    train_split: str = "train"
    test_split: str = "test"


DATA_SETS = {
    "food101": DataSet("food101", test_split="validation"),  # TFDS's name for the test set
    "cifar10": DataSet("cifar10"),
    "cifar100": DataSet("cifar100"),
    "birdsnap": DataSet(None),
    "sun397": DataSet("sun397/standard-part1-120k"),  # the first of the ten partitions
    "cars": DataSet("cars196"),
    "aircraft": DataSet(None, MEAN_PER_CLASS),
    "voc2007": DataSet("voc/2007", MEAN_AP_11, "train+validation"),
    "dtd": DataSet("dtd", train_split="train+validation"),  # the first of the ten partitions
    "pets": DataSet("oxford_iiit_pet", MEAN_PER_CLASS),
    "caltech101": DataSet("caltech101", MEAN_PER_CLASS),
    "flowers": DataSet("oxford_flowers102", MEAN_PER_CLASS, "train+validation"),
}


def customary(name):
    """Returns the `DataSet` for a name of `--dataset`.

    Args:
      name: one of `DATA_SETS`; a TFDS name, with or without a version; NAME=OTHER for the metric of
        one of `DATA_SETS` on files of another form, such as aircraft=folder:PATH; or any other
        name of `data.load`, which is scored by top-1.

    Returns:
      A `DataSet`, whose `load_as` is None where TFDS does not have it.

    Example:

    >>> from simclr_tf.evaluate import transfer
    >>> transfer.customary("oxford_iiit_pet:4.0.0").metric, transfer.customary("shapes").metric
    ('mean per class', 'top-1')
    >>> transfer.customary("aircraft=folder:planes").load_as
    'folder:planes'
    """
    known, equals, other = name.partition("=")
    if equals and known in DATA_SETS:
        return DataSet(other, DATA_SETS[known].metric)
    if name in DATA_SETS:
        return DATA_SETS[name]
    for data_set in DATA_SETS.values():
        if name.partition(":")[0] == data_set.load_as:
            return data_set._replace(load_as=name)
    return DataSet(name)


def write_table(directory, rows, summary):
    """Writes a table as table.csv, table.md and table.json, each atomically.

    Args:
      directory: made if it is missing; files of an earlier table are replaced.
      rows: list of dicts with the same keys: the columns, in order. Floats are fractions.
      summary: dict, the rest of table.json, whose "rows" are the rows.

    Example:

    >>> from simclr_tf.evaluate import transfer
    >>> transfer.write_table("table", [{"dataset": "shapes", "knn": 0.5}], {"layer": "h"})
    >>> open("table/table.csv").read().split()
    ['dataset,knn', 'shapes,0.5']
    """
    directory = pathlib.Path(directory)
    with _atomic.atomic_path(directory / "table.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name, text in (
        ("table.md", markdown(rows)),
        ("table.json", json.dumps({**summary, "rows": rows}, indent=1) + "\n"),
    ):
        with _atomic.atomic_path(directory / name) as path:
            path.write_text(text, encoding="utf-8")


def markdown(rows):
    """Returns the rows as a table in Markdown; floats as percentages, None as an empty cell.

    Example:

    >>> from simclr_tf.evaluate import transfer
    >>> transfer.markdown([{"dataset": "shapes", "knn": 0.5}]).splitlines()[-1]
    '| shapes | 50.00 |'
    """
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[c]) for c in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value):
    if value is None:
        return ""
    text = f"{100 * value:.2f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
