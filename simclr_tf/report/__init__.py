"""Reports: curves, sheets of views and the HTML page of a run."""

from simclr_tf.report.page import draw_curve, draw_views, write_report

__all__ = ["draw_curve", "draw_views", "write_report"]
