"""Reports for people: curves of a run, sheets of views, and the HTML page of one run or several.

curves: loss and accuracies by epoch. view_sheet: images next to their views. page: the HTML page,
its text in template, verdict and sections, its charts in charts. samples and analysis: what an
encoder makes of some images. pictures: images inside a page. preview_sheet: what a model will see.
"""

from simclr_tf.report.curves import draw_curve
from simclr_tf.report.page import RunPage, render, write_page, write_report
from simclr_tf.report.preview_sheet import Sheet, draw_preview
from simclr_tf.report.samples import Samples, collect_samples
from simclr_tf.report.view_sheet import draw_views

__all__ = [
    "RunPage",
    "Samples",
    "Sheet",
    "collect_samples",
    "draw_curve",
    "draw_preview",
    "draw_views",
    "render",
    "write_page",
    "write_report",
]
