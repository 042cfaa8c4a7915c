"""The verdict on a run in three lines, and what a person should look at, from its metrics."""

from __future__ import annotations

import math

_NEAR_CHANCE = 0.05  # of the loss, as in `training.monitor.Alarms`
_FALL = 0.03  # of the kNN accuracy from its best, beyond the noise of a few thousand images
_MAX_WAIT = 0.2  # of the time
_MIN_RANK_FRACTION = 0.02  # of the width of h
_MIN_SIMILARITY_GAP = 0.05


def verdict(run):
    """Three lines: how far the run came, what the loss says, what h is worth.

    Args:
      run: a `page.RunPage`.

    Returns:
      list of str.
    """
    return [_progress(run), _loss(run), _quality(run)]


def _progress(run):
    if not run.rows:
        return f"The run is {run.state or 'new'}: no epoch has ended yet."
    done, planned = run.rows[-1]["epoch"], run.planned_epochs
    count = planned or done
    epochs = f"{count:,} epoch" if count == 1 else f"{count:,} epochs"
    if planned:
        epochs = f"{done:,} of {epochs}"
    state = {"finished": "Finished", "running": "Running", "failed": "Failed"}
    begin = state.get(run.state, "Stopped" if run.state else "So far")
    return f"{begin}: {epochs}, {run.rows[-1].get('step', 0):,} steps{_time(run)}."


def _time(run):
    """The time of the training steps in words, from the speed of each epoch."""
    seconds, step = 0.0, 0
    for row in run.rows:
        speed = row.get("images_per_second")
        if not speed or not run.batch_size or "step" not in row:
            return ""
        seconds += (row["step"] - step) * run.batch_size / speed
        step = row["step"]
    return f", {duration(seconds)} of training steps"


def duration(seconds):
    """A time in words, with the unit that suits it.

    Example:

    >>> simclr_tf.report.verdict.duration(90), simclr_tf.report.verdict.duration(7200)
    ('90 s', '2.0 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    if seconds < 2 * 3600 - 1:
        return f"{seconds / 60:.1f} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:.1f} days"


def _values(run, key):
    return [row[key] for row in run.rows if math.isfinite(row.get(key, math.nan))]


def _loss(run):
    losses = _values(run, "loss")
    if not losses:
        return "No loss was recorded."
    text = f"The loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
    if len(losses) == 1:
        text = f"The loss is {losses[0]:.3f}"
    if run.chance_loss is not None:
        text += f"; a model that has learnt nothing has {run.chance_loss:.3f}"
    return text + "."


def _quality(run):
    parts = []
    knn = _values(run, "knn_accuracy")
    if knn:
        best = f" (at best {max(knn):.1%})" if max(knn) - knn[-1] >= 5e-4 else ""
        parts.append(f"kNN accuracy is {knn[-1]:.1%}{best}")
    accuracy = _values(run, "accuracy")
    if accuracy and not knn:
        parts.append(f"training accuracy is {accuracy[-1]:.1%}")
    samples = run.samples
    if samples is not None and samples.accuracies:
        parts.append(
            f"on the {len(samples.shown.h):,} images of this page, neighbours by the encoder have "
            f"the right class in {samples.accuracies['encoder']:.1%}, by raw pixels in "
            f"{samples.accuracies['raw pixels']:.1%}"
        )
    if samples is not None and not parts:
        width = samples.train.h.shape[1]
        parts.append(
            f"the images have no labels; h uses about {samples.rank:.0f} of {width:,} dimensions"
        )
    if not parts:
        return "Nothing here measures the quality of h; `simclr-tf evaluate` does."
    text = "; ".join(parts)
    return f"{text[0].upper() if not text.startswith('kNN') else 'k'}{text[1:]}."


def warnings(run):
    """What a person should look at, a list of sentences; empty for a healthy run.

    Args:
      run: a `page.RunPage`.
    """
    return [
        *([f"the run ended with {run.error}."] if run.error else []),
        *_of_metrics(run),
        *_of_samples(run),
    ]


def _of_metrics(run):
    losses, knn, wait = (_values(run, key) for key in ("loss", "knn_accuracy", "data_wait"))
    if losses and run.chance_loss is not None and losses[-1] > run.chance_loss - _NEAR_CHANCE:
        supervised = run.flags.get("loss") == "supervised"
        first = "Raise the temperature, lower" if supervised else "Lower"
        yield (
            f"the loss, {losses[-1]:.3f}, is no better than chance ({run.chance_loss:.3f}). "
            f"{first} the learning rate, lengthen the warm-up, or look at the views."
        )
    if len(knn) > 2 and knn[-1] < max(knn) - _FALL:
        yield (
            f"kNN accuracy fell from {max(knn):.1%} to {knn[-1]:.1%}. Train for fewer epochs, or "
            "with stronger views."
        )
    if wait and wait[-1] > _MAX_WAIT:
        yield (
            f"{wait[-1]:.0%} of the time went into waiting for data. Raise --cache_gigabytes, or "
            "store smaller images."
        )


def _of_samples(run):
    samples = run.samples
    if samples is None:
        return
    if samples.accuracies and samples.accuracies["encoder"] <= samples.accuracies["raw pixels"]:
        yield "neighbours by the encoder are no better than by raw pixels. Train for longer."
    if samples.rank < max(2.0, _MIN_RANK_FRACTION * samples.train.h.shape[1]):
        yield (
            f"h uses about {samples.rank:.1f} of {samples.train.h.shape[1]:,} dimensions: it has "
            "collapsed, or nearly. Lower the learning rate, or use larger batches."
        )
    if samples.positive is not None:
        gap = float(samples.positive.mean() - samples.negative.mean())
        if gap < _MIN_SIMILARITY_GAP:
            yield (
                f"two views of an image are hardly more similar than views of different images "
                f"(by {gap:.3f}). Train for longer, or use weaker views."
            )
