"""`simclr-tf replay`: computes the step of a run again whose loss was not finite."""

from __future__ import annotations

import json
import math

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras, errors
from simclr_tf.commands.build import build_model, log, prepare_process
from simclr_tf.images import unpack
from simclr_tf.training import RunDirectory, ViewSizes
from simclr_tf.training.nonfinite import read_step


def replay(options, invocation):
    """Computes the step again and prints where it is not finite, last as a JSON line.

    Args:
      options: attributes named as the flags of `simclr-tf replay`.
      invocation: `trained`, the options of the run's `pretrain`.

    Raises:
      errors.UsageError: the run has no such step.
    """
    trained, path = invocation.trained, RunDirectory(options.run_dir).nonfinite_step
    if not path.is_dir():
        raise errors.UsageError(
            f"--run_dir must hold a run whose loss was not finite; there is no {path}. Pass the "
            "run that ended so."
        )
    prepare_process(trained, strategy="one")
    step, about = read_step(path)
    model = _model(trained, step, about["image_size"])
    log(
        f"step {about['step']} of epoch {about['epoch']}, after {step.optimizer_step:,} updates; "
        f"its loss was {about['loss']}."
    )
    batch = step.batch
    if isinstance(batch, dict):
        batch = batch["image"] if set(batch) == {"image"} else batch
    batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
    result = _take(model, batch)
    for line in result.pop("lines"):
        log(line)
    print(json.dumps(result))


def _model(trained, step, image_size):
    """The model with the weights and at the step that were kept."""
    model = build_model(trained, image_size)
    model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    for variable, value in zip(_keras.tf_variables(model.weights), step.weights):
        variable.assign(value)
    _keras.tf_variables([model.optimizer.iterations])[0].assign(step.optimizer_step)
    if trained.view_sizes:
        sizes = ViewSizes(trained.view_sizes, model.augment, trained.epochs)
        sizes.set_model(model)
        sizes.on_epoch_begin(step.epoch)
    return model


def _take(model, batch):
    """Takes the step; returns a dict of its loss, the first part that is not finite, and lines."""
    images = tf.nest.flatten(unpack(batch).images)[0]
    views = model.views(batch, model._step_seed(model.optimizer.iterations))
    parts = [("image", images), *((f"view {v}", view) for v, view in enumerate(views, 1))]
    # Copies: the step changes moving statistics.
    parts += [(f"weight {_keras.variable_name(w)}", w.numpy().copy()) for w in model.weights]
    h, z = model.embed_views(views)  # in inference mode
    parts += [("h in inference mode", h), ("z in inference mode", z)]
    lines = [_describe(name, part) for name, part in parts if not name.startswith("weight")]
    lines.insert(1 + len(views), _largest_weight(parts))
    gradients = []
    model._descend = gradients.extend  # in place of the update
    model.reset_metrics()
    model.train_step(batch)
    loss = float(next(m for m in model.metrics if m.name == "loss").result())
    parts.append(("loss", np.array(loss)))
    lines.append(f"loss: {loss:.6g}")
    named = zip(model.trainable_variables, gradients)
    parts += [(f"gradient of {_keras.variable_name(v)}", g) for v, g in named if g is not None]
    first = next((name for name, part in parts if not _is_finite(part)), None)
    lines.append(f"first that is not finite: {first}" if first else "all is finite this time.")
    return {
        "loss": loss if math.isfinite(loss) else str(loss),
        "first_not_finite": first,
        "lines": lines,
    }


def _is_finite(part):
    part = np.asarray(part)
    return part.dtype.kind in "iub" or bool(np.isfinite(part.astype(np.float32)).all())


def _describe(name, part):
    part = np.asarray(part).astype(np.float64)
    finite = part[np.isfinite(part)]
    low, high = (finite.min(), finite.max()) if finite.size else (math.nan, math.nan)
    lost = part.size - finite.size
    more = f", {lost:,} of {part.size:,} not finite" if lost else ""
    return f"{name}: {low:.4g} to {high:.4g}{more}"


def _largest_weight(parts):
    sizes = [(float(np.abs(np.asarray(p)).max()), n) for n, p in parts if n.startswith("weight ")]
    size, name = max(sizes)
    return f"largest {name}: {size:.4g}"
