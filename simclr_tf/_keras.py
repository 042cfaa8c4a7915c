"""Where Keras 2 and Keras 3 differ, and the only place that touches private or undocumented API.

Each function gives its reason.
"""

from __future__ import annotations


def scale_loss(optimizer, loss):
    """Returns the loss times the optimizer's loss scale (float16), or the loss itself.

    Keras 2 has `get_scaled_loss` on its loss-scale optimizer alone, Keras 3 has `scale_loss` on
    every optimizer.
    """
    if hasattr(optimizer, "get_scaled_loss"):
        return optimizer.get_scaled_loss(loss)
    return optimizer.scale_loss(loss) if hasattr(optimizer, "scale_loss") else loss


def unscale_gradients(optimizer, gradients):
    """Undoes `scale_loss` on gradients where `apply_gradients` does not do so itself.

    On Keras 3 it does.
    """
    if hasattr(optimizer, "get_unscaled_gradients"):
        return optimizer.get_unscaled_gradients(gradients)
    return gradients
