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
    for panel in (left, right):
        panel.xaxis.get_major_locator().set_params(integer=True)
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


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{{ name }}</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
td, th { padding: 0 1em 0 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; } code { background: #eee; }
</style>
<h1>{{ name }}</h1>
<p>{{ rows|length }} epochs{% if rows %}, {{ rows[-1].step }} steps{% endif %}.
Run again with <code>simclr-tf pretrain --flagfile={{ name }}/flags.cfg</code>.</p>
<h2>How it learnt</h2><img src="curve.png" alt="loss and accuracy by epoch">
<table><tr>{% for key in keys %}<th>{{ key.replace("_", " ") }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for key in keys %}
<td>{{ "%.4g" % row[key] if key in row else "" }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>What it saw</h2><img src="views.png" alt="images and views of them">
<h2>Its flags</h2>
<table>{% for flag, value in flags.items() %}
<tr><td>--{{ flag }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
"""


def write_report(directory, rows, flags):
    """Writes curve.png and report.html, a page on a run, into its directory.

    Args:
      directory: a `run.RunDirectory`, for its paths.
      rows: of metrics.jsonl.
      flags: dict of flag name to its text.
    """
    import jinja2

    draw_curve(rows, directory.curve)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = page.render(name=directory.path.name, rows=rows, keys=keys, flags=flags)
    directory.report.write_text(text, encoding="utf-8")
