"""Batch size and epochs (SimCLR, figure 9)."""

from __future__ import annotations

from simclr_tf.studies.figures import draw_points
from simclr_tf.studies.study import Setting, Study

_BATCH_SIZES, _EPOCHS = 5, 3


def settings(flags):
    """--batch_size and four halves of it, --epochs and two halves of it: every pair."""
    batch_sizes = _halves(int(flags["batch_size"]), _BATCH_SIZES, at_least=2)
    epochs = _halves(int(flags["epochs"]), _EPOCHS, at_least=1)
    return [_setting(str(e), str(b)) for e in epochs for b in batch_sizes]


def _halves(largest, count, at_least):
    """The largest number and up to count - 1 halves of it, rounded down, in ascending order."""
    return sorted({max(at_least, largest // 2**power) for power in range(count)})


def _setting(epochs, batch_size):
    values = {"epochs": epochs, "batch_size": batch_size}
    return Setting(f"epochs-{epochs}-batch-{batch_size}", values, values)


def draw(rows, scores, path, title):
    """Accuracy over the epochs, for each batch size."""
    labels = {"batch_size": "batch size"}
    draw_points(rows, path, "epochs", scores, "batch_size", title, labels)


BATCH_EPOCHS = Study(
    "Batch size and epochs (SimCLR, figure 9)",
    settings,
    draw,
    # 0.003 at a batch of 128, as in the other studies.
    budget={
        "batch_size": "512",
        "epochs": "16",
        "learning_rate": "0.000265",
        "learning_rate_scaling": "sqrt",
    },
)
