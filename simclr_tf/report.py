"""What a person looks at: a sheet of views, the curve of a run. Pictures by matplotlib."""

from __future__ import annotations

import pathlib

import numpy as np


def draw_views(images, views, path, zoom=2):
    """A sheet: in each row one image and views of it.

    Args:
      images: [n, H, W, 3] uint8, or float in [0, 1].
      views: list of [n, S, S, 3] float32 in [0, 1], a column each.
      path: of the PNG.
      zoom: picture pixels a view pixel.
    """
    images = np.asarray(images)
    originals = images / 255.0 if images.dtype == np.uint8 else images
    columns = [_square(originals, np.asarray(views[0]).shape[1]), *map(np.asarray, views)]
    gap = 2
    padded = [
        np.pad(c, [(0, 0), (gap, gap), (gap, gap), (0, 0)], constant_values=1.0) for c in columns
    ]
    padded[0] = np.pad(padded[0], [(0, 0), (0, 0), (0, 3 * gap), (0, 0)], constant_values=1.0)
    sheet = np.concatenate([np.concatenate(list(c), axis=0) for c in padded], axis=1)
    sheet = np.kron(np.clip(sheet, 0.0, 1.0), np.ones([zoom, zoom, 1]))
    _save_image(sheet, path)


def _square(images, size):
    """Nearest-neighbour resize to [n, size, size, 3], enough for a picture."""
    rows = np.arange(size) * images.shape[1] // size
    columns = np.arange(size) * images.shape[2] // size
    return images[:, rows][:, :, columns]


def _save_image(pixels, path):
    from matplotlib import image

    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.imsave(path, pixels)


def draw_curve(rows, path, title=""):
    """Loss, contrastive accuracy and kNN accuracy of a run against its epochs.

    Args:
      rows: of metrics.jsonl, see `run.read_metrics`.
      path: of the picture; its ending says the format.
      title: above it.
    """
    from matplotlib.figure import Figure  # no display and no global state

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], color="tab:blue")
    left.set(xlabel="epoch", ylabel="NT-Xent loss")
    right.plot(
        epochs,
        [100 * row["contrastive_accuracy"] for row in rows],
        color="tab:grey",
        label="contrastive accuracy",
    )
    probed = [row for row in rows if "knn_accuracy" in row]
    right.plot(
        [row["epoch"] for row in probed],
        [100 * row["knn_accuracy"] for row in probed],
        "o-",
        color="tab:orange",
        label="kNN accuracy",
    )
    right.set(xlabel="epoch", ylabel="%", ylim=(0, 100))
    right.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
