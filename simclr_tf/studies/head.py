"""The projection head: none, linear or nonlinear, by output dimension; h against z (figure 8)."""

from __future__ import annotations

from simclr_tf.studies.figures import draw_points
from simclr_tf.studies.study import Setting, Study

_LAYERS = {"linear": "1", "nonlinear": "2"}
_SMALLEST = 32


def settings(flags):
    """No head; both others with 32, 64, ... outputs, up to --projection_dim."""
    dims = [_SMALLEST]
    while 2 * dims[-1] <= int(flags["projection_dim"]):
        dims.append(2 * dims[-1])
    return [
        Setting("none", {"projection_layers": "0"}, {"head": "none", "output_dim": "h"}),
        *[_setting(head, str(dim)) for head in _LAYERS for dim in dims],
    ]


def _setting(head, dim):
    return Setting(
        f"{head}-{dim}",
        {"projection_layers": _LAYERS[head], "projection_dim": dim},
        {"head": head, "output_dim": dim},
    )


def draw(rows, scores, path, title):
    """A panel for h and one for z: accuracy over the output dimension, for each kind of head."""
    labels = {"output_dim": "output dimension of the head (h: that of h)"}
    labels.update({score: f"on {score.rpartition('_')[2]}" for score in scores})
    draw_points(rows, path, "output_dim", scores, "head", title, labels)


HEAD = Study(
    "Projection head, by output dimension; h against z (SimCLR, figure 8)",
    settings,
    draw,
    budget={"projection_dim": "256"},
    layers=("h", "z"),
)
