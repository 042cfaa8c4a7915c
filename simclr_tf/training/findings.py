"""Findings: what is wrong with a run, in a sentence each, with what to try.

Each is a function of the epochs so far and of what is known of the run. They need no labels; one
looks at the kNN accuracy where there is one. `RunMonitor` asks for them at the end of each epoch.
"""

from __future__ import annotations

import dataclasses
import math

from simclr_tf.errors import check_number

_AT_CHANCE = 0.05  # nats below the chance loss
_STEPS_AT_CHANCE = 50
_RISE = 0.3  # nats, and as a fraction of what was learnt
_FEW_NEGATIVES = 126  # those of a batch of 64
_MAX_DATA_WAIT = 0.2
_SMALL_IMAGE = 64  # pixels
_LARGE_STRIDE = 16  # of the last feature map
_MIN_VIEW_DIFFERENCE = 1 / 255
_MIN_FEATURE_RANK = 2.0
_MIN_SPREAD = 0.02
_SETTLED_STEPS = 100  # moving statistics of batch normalisation are near those of the batches
_MAX_DUPLICATES = 0.02
_PROBES = 4
_PROBE_RISE = 0.002
_PROBE_STEPS = 300


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What is known of a run besides its metrics; None where it is not known.

    Attributes:
      steps_per_epoch: int.
      chance_loss: the loss of a model that has learnt nothing.
      warm_up_epochs: epochs in which the loss may still be at chance.
      negatives: negatives of each view, int.
      view_difference: mean absolute difference of the views of an image, 0 to 1.
      largest_pixel: largest absolute value of float images.
      duplicates: share of the images that nearly equal another one.
      image_side, last_map_side: sides in pixels of the views and of the encoder's last feature map.
      supervised: whether labels make the positives, bool.

    Example:

    >>> simclr_tf.training.RunFacts(negatives=1022).chance_loss is None
    True
    """

    steps_per_epoch: int | None = None
    chance_loss: float | None = None
    warm_up_epochs: int = 1
    negatives: int | None = None
    view_difference: float | None = None
    largest_pixel: float | None = None
    duplicates: float | None = None
    image_side: int | None = None
    last_map_side: int | None = None
    supervised: bool = False

    def __post_init__(self):
        """Raises ArgumentError for a number that is not one."""
        bounds = {"chance_loss": 0, "view_difference": 0, "duplicates": 0, "largest_pixel": 0}
        for name, at_least in bounds.items():
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=at_least)


def find(rows, facts):
    """Returns the findings of a run, a dict of name to sentence; empty for a healthy run.

    Args:
      rows: list of dicts, the epochs so far as in metrics.jsonl, in their order; may be empty.
      facts: `RunFacts`.

    Example:

    >>> facts = simclr_tf.training.RunFacts(negatives=30)
    >>> simclr_tf.training.findings.find([], facts)
    {'few_negatives': 'a view has 30 negatives, and few make the task easy. Raise ...}
    """
    found = {name: check(rows, facts) for name, check in CHECKS.items()}
    return {name: sentence for name, sentence in found.items() if sentence}


def _loss_at_chance(rows, facts):
    if facts.chance_loss is None or not rows or rows[-1]["epoch"] <= facts.warm_up_epochs:
        return None
    row, better = rows[-1], facts.chance_loss - _AT_CHANCE
    since = row["step"] - max([r["step"] for r in rows if r["loss"] <= better], default=0)
    if since < _STEPS_AT_CHANCE or _rate_too_high(rows, facts):
        return None
    first = "Raise the temperature, lower" if facts.supervised else "Lower"
    return (
        f"after epoch {row['epoch']} the loss is {row['loss']:.3f}, no better than chance "
        f"({facts.chance_loss:.3f}), for {since:,} steps. {first} the learning rate, lengthen the "
        "warm-up, or look at the images that the model is trained on."
    )


def _views_identical(rows, facts):
    difference = facts.view_difference
    if difference is None or difference >= _MIN_VIEW_DIFFERENCE:
        return None
    return (
        f"the views of an image are the same: they differ by {difference * 255:.2g} of 255 levels "
        "on average. The augmentation does nothing; pass one that crops and changes colours."
    )


def _features_collapsed(rows, facts):
    row = rows[-1] if rows else {}
    if row.get("epoch", 0) <= facts.warm_up_epochs or row["step"] < _SETTLED_STEPS:
        return None
    rank, spread = row.get("feature_rank", math.inf), row.get("spread", math.inf)
    if rank >= _MIN_FEATURE_RANK and spread >= _MIN_SPREAD:
        return None
    what = f"the features have collapsed to rank {rank:.2g}"
    if rank >= _MIN_FEATURE_RANK:
        what = f"the projections have collapsed: their spread is {spread:.2g}, and 1 at best"
    return (
        f"after epoch {row['epoch']} {what}. Lower the learning rate, raise the temperature, and "
        "check that the encoder has normalisation layers."
    )


def _probe_flat(rows, facts):
    probes = [row for row in rows if "knn_accuracy" in row][-_PROBES:]
    if len(probes) < _PROBES or probes[-1] is not rows[-1]:
        return None
    first, last = probes[0], probes[-1]
    best = max(row["knn_accuracy"] for row in probes[1:])
    fall = first["loss"] - last["loss"]
    enough = max(0.05, 0.05 * abs(first["loss"]))
    if (
        last["step"] - first["step"] < _PROBE_STEPS
        or fall < enough
        or best > first["knn_accuracy"] + _PROBE_RISE
    ):
        return None
    return (
        f"from epoch {first['epoch']} to {last['epoch']} the loss fell by {fall:.3f} and the kNN "
        f"accuracy did not rise ({first['knn_accuracy']:.4f}, then {best:.4f} at best). The model "
        "may tell images apart by something that views leave as it is: use stronger colour jitter "
        "and smaller crops, and look at the views."
    )


def _rate_too_high(rows, facts):
    if len(rows) < 2:
        return None
    row, best = rows[-1], min(earlier["loss"] for earlier in rows[:-1])
    learnt = max(rows[0]["loss"], facts.chance_loss or 0.0) - best
    if row["loss"] < best + max(_RISE, _RISE * learnt):
        return None
    rate = f" ({row['learning_rate']:.3g})" if "learning_rate" in row else ""
    return (
        f"after epoch {row['epoch']} the loss is {row['loss']:.3f}, and was {best:.3f} before: the "
        f"learning rate{rate} may be too high. Lower it, or lengthen the warm-up."
    )


def _waiting_for_data(rows, facts):
    if not rows or rows[-1].get("data_wait", 0.0) <= _MAX_DATA_WAIT:
        return None
    return (
        f"in epoch {rows[-1]['epoch']} training waited for data {rows[-1]['data_wait']:.0%} of the "
        "time. Keep the data set in memory (cache_gigabytes), use smaller images, or more CPU "
        "cores."
    )


def _duplicates(rows, facts):
    if (facts.duplicates or 0.0) <= _MAX_DUPLICATES:
        return None
    return (
        f"{facts.duplicates:.0%} of the images that were looked at nearly equal another one, which "
        "is then its own negative. Remove duplicates from the data set."
    )


def _few_negatives(rows, facts):
    if facts.negatives is None or facts.negatives >= _FEW_NEGATIVES:
        return None
    return (
        f"a view has {facts.negatives} negatives, and few make the task easy. Raise the batch "
        "size, with micro-batches if memory is short, or take MoCo, or the decoupled loss."
    )


def _large_stem(rows, facts):
    side, last = facts.image_side, facts.last_map_side
    if side is None or last is None or side > _SMALL_IMAGE or side < _LARGE_STRIDE * last:
        return None
    return (
        f"images of {side} pixels leave the encoder a last feature map of {last} x {last}: its "
        'stem is made for larger ones. Use the stem for small images (ResNet(stem="cifar")), or '
        "larger images."
    )


def _pixel_range(rows, facts):
    if facts.largest_pixel is None or facts.largest_pixel <= 2.0:  # a resize may overshoot 1
        return None
    return (
        f"float images must lie in [0, 1], and reach {facts.largest_pixel:.4g}: they look like 0 "
        "to 255. Divide them by 255, or pass uint8."
    )


CHECKS = {
    "loss_at_chance": _loss_at_chance,
    "views_identical": _views_identical,
    "features_collapsed": _features_collapsed,
    "probe_flat": _probe_flat,
    "rate_too_high": _rate_too_high,
    "waiting_for_data": _waiting_for_data,
    "duplicates": _duplicates,
    "few_negatives": _few_negatives,
    "large_stem": _large_stem,
    "pixel_range": _pixel_range,
}
