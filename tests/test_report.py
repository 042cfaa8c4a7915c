"""Reports: the curve, the sheet of views and the page of a run."""

import html
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclr_tf import report
from simclr_tf.training.run_directory import RunDirectory

ROWS = [
    {"epoch": 1, "step": 10_000, "loss": 5.25, "contrastive_accuracy": 0.1, "images_per_second": 1},
    {"epoch": 2, "step": 20_000, "loss": 4.5, "contrastive_accuracy": 0.2, "knn_accuracy": 0.3},
]


def pixels(path):
    """RGB pixels of a picture, uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    "rows",
    [[], ROWS[:1], ROWS, [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "knn_accuracy": 0.5}]],
)
def test_a_curve_is_drawn_of_whatever_metrics_there_are(rows, tmp_path):
    """No epoch, one, rows without some metric, and a loss that is NaN."""
    report.draw_curve(rows, tmp_path / "curve.png", title="title")
    assert min(pixels(tmp_path / "curve.png").shape[:2]) > 300


def test_a_sheet_shows_the_image_then_its_views(tmp_path):
    """Without a zoom the pixels of images and views are those given, between white gaps."""
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3], np.uint8)
    views = [np.full([2, 8, 8, 3], grey, np.float32) for grey in (0.0, 0.4)]
    report.draw_views(images, views, tmp_path / "new" / "views.png", zoom=1)
    sheet = pixels(tmp_path / "new" / "views.png")
    assert sheet.shape == (2 * 12, 3 * 12 + 6, 3)
    np.testing.assert_allclose(sheet[14:22, 2:10].astype(int), images[1], atol=1)
    assert (sheet[2:10, 20:28] == 0).all() and (sheet[2:10, 32:40] == 102).all()
    assert (sheet[:2] == 255).all() and (sheet[:, 12:18] == 255).all()
    report.draw_views(images, views, tmp_path / "views.png")
    np.testing.assert_array_equal(pixels(tmp_path / "views.png")[::2, ::2], sheet)


def test_images_that_are_not_square_are_shown_whole(tmp_path):
    """Landscape: as wide as a view, white above and below; padding outside the extent is left out.

    Views of several sizes stand in cells of the largest.
    """
    images = np.zeros([1, 20, 20, 3], np.uint8)
    images[0, 4:] = 255
    views = [tf.zeros([1, 16, 16, 3]), tf.zeros([1, 8, 8, 3])]
    report.draw_views(images, views, tmp_path / "v.png", zoom=1, extents=[[4, 8]])
    sheet = pixels(tmp_path / "v.png")
    assert sheet.shape == (20, 3 * 20 + 6, 3)
    assert (sheet[6:14, 2:18] == 0).all()
    assert (sheet[:6] == 255)[:, :20].all() and (sheet[14:] == 255)[:, :20].all()
    small = sheet[:, 46:]
    assert (small[6:14, 6:14] == 0).all() and (small == 0).sum() == 3 * 8 * 8


@pytest.mark.parametrize("with_views", [True, False])
def test_a_page_needs_no_other_file(with_views, tmp_path):
    """Pictures are inside; flags are escaped; large numbers have no exponent."""
    directory = RunDirectory(tmp_path / "a run")
    directory.path.mkdir()
    if with_views:
        view = np.zeros([1, 8, 8, 3])
        report.draw_views(view, [view], directory.views)
    report.write_report(directory, ROWS, {"dataset": "folder:<b>", "seed": "0"})
    page = directory.report.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1 + with_views
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert f"--flagfile='{directory.flags}'" in html.unescape(page)
    assert "folder:&lt;b&gt;" in page
    cells = re.findall(r"<td>([^<]*)</td>", page)
    assert cells[:6] == ["1", "10,000", "5.25", "0.1", "1", ""]
    assert cells[6:12] == ["2", "20,000", "4.5", "0.2", "", "0.3"]
    assert sorted(path.name for path in directory.path.iterdir()) == sorted(
        ["curve.png", "report.html"] + ["views.png"] * with_views
    )


def test_a_page_of_a_run_without_epochs(tmp_path):
    """A run that has trained nothing yet has flags only."""
    report.write_report(RunDirectory(tmp_path), [], {"seed": "0"})
    assert "0 epochs." in (tmp_path / "report.html").read_text(encoding="utf-8")
