"""Reports for people: curves of a run, sheets of views, and the HTML page of a run.

curves: loss and accuracies by epoch. view_sheet: images next to their views. page: the HTML page.
"""

from simclr_tf.report.curves import draw_curve
from simclr_tf.report.page import write_report
from simclr_tf.report.view_sheet import draw_views

__all__ = ["draw_curve", "draw_views", "write_report"]
