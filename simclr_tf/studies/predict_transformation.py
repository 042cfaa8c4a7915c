"""How well h and z tell which transformation was applied to an image (SimCLR, table 3)."""

from __future__ import annotations

import numpy as np

from simclr_tf import _atomic, augment
from simclr_tf.studies.figures import draw_bars
from simclr_tf.studies.study import Setting, Study, Task

_AUGMENTATIONS = "crop,flip,color_jitter,color_drop,rotate90,gaussian_noise:0.5,sobel:0.5"
_STDDEV = 0.1  # of the noise that is predicted; 1 is the range of the image


def settings(flags):
    """One run, whose views are also rotated, noisy or Sobel-filtered, as in the table."""
    return [Setting("pretraining", {"augmentations": _AUGMENTATIONS}, {})]


def _grey(images, which, rng):
    return augment.color_drop(images, which == 1)


def _rotated(images, which, rng):
    return augment.rotate90(images, which)


def _noisy(images, which, rng):
    noise = rng.normal(size=images.shape).astype(np.float32)
    return augment.gaussian_noise(images, _STDDEV * (which == 1).astype(np.float32), noise)


def _edges(images, which, rng):
    return np.where((which == 1)[:, None, None, None], augment.sobel(images), images)


def write_data_set(task, images_by_split, path, seed=0):
    """Writes images to each of which one transformation is applied, labelled with its number.

    The transformations are applied to the same number of images each.

    Args:
      task: a `Task`.
      images_by_split: dict of "train" and "test" to images, uint8 [n, S, S, 3].
      path: npz file to write, for `--dataset=npz:PATH`.
      seed: int, of the noise.
    """
    rng, arrays = np.random.default_rng(seed), {}
    for split, images in images_by_split.items():
        which = np.arange(len(images)) % task.classes
        floats = np.asarray(augment.as_float(images))
        transformed = np.asarray(task.transform(floats, which, rng))
        arrays[f"x_{split}"] = np.round(255 * transformed).astype(np.uint8)
        arrays[f"y_{split}"] = which
    with _atomic.atomic_path(path) as temporary:
        np.savez(temporary, **arrays)


def draw(rows, scores, path, title):
    """Accuracy on h and on z for each task, with that of chance."""
    rows = [row for row in rows if "task" in row]
    bars = {score.rpartition("_")[2]: [row.get(score) for row in rows] for score in scores}
    chance = "chance", [row["chance"] for row in rows]
    draw_bars(bars, [row["task"] for row in rows], path, title, chance)


PREDICT_TRANSFORMATION = Study(
    "Which transformation was applied, from h and from z (SimCLR, table 3)",
    settings,
    draw,
    layers=("h", "z"),
    tasks={
        "color or grey": Task(_grey, 2),
        "rotation": Task(_rotated, 4),
        "original or noisy": Task(_noisy, 2),
        "original or Sobel": Task(_edges, 2),
    },
)
