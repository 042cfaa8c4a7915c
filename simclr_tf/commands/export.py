"""`simclr-tf export`: writes the encoder of a run as a SavedModel or a TensorFlow Lite file."""

from __future__ import annotations

import numpy as np

from simclr_tf import _quiet, encoders
from simclr_tf.commands.build import (
    DataOptions,
    build_encoder_and_head,
    ended_by_sigterm,
    load,
    log,
    prepare_process,
    report_unreadable,
    submodels_of_run,
    whitening_of_run,
)
from simclr_tf.errors import UsageError, storage_errors
from simclr_tf.export import export_encoder, export_tflite


def export(options, invocation):
    """Writes the encoder of a run as a SavedModel or a TensorFlow Lite file.

    Args:
      options: attributes named as the flags of `simclr-tf export`.
      invocation: `trained`, the options of the run's `pretrain`.
    """
    trained = invocation.trained
    prepare_process(trained, strategy="one")
    restored = submodels_of_run(trained, lambda side: build_encoder_and_head(trained, side))
    submodels, image_size = restored.submodels, restored.image_size
    encoder, layer = _encoder_and_layer(options, trained, submodels["encoder"])
    arguments = {
        "image_shape": (image_size, image_size, 3),
        "normalize": options.normalize,
        "layer": layer,
        "head": submodels["projection_head"],
        "precision": options.precision,
    }
    if options.precision == "int8":
        arguments["examples"] = _examples(options, trained, image_size)
    write = export_tflite if options.format == "tflite" else export_encoder
    noise_hidden = _quiet.native_noise_hidden(_quiet.CONVERTER_NOISE)
    with ended_by_sigterm(), noise_hidden, storage_errors(options.output):
        path = write(encoder, options.output, **arguments)
    log(f"wrote the encoder to {path}")


def _encoder_and_layer(options, trained, encoder):
    """The encoder, whitened where it is to be, and the layer of it that is exported."""
    whitening = whitening_of_run(trained)
    if options.layer == "whitened" and whitening is None:
        raise UsageError(
            "--layer=whitened needs a run of `simclr-tf pretrain --whitening` that has ended; "
            f"{trained.run_dir} has no whitening. Pass --layer=h."
        )
    if whitening is None or options.layer not in (None, "whitened"):
        return encoder, options.layer or "h"
    return encoders.whitened(encoder, whitening), "h"


def _examples(options, trained, image_size):
    """Training images to measure the ranges of int8 on, uint8 [options.examples, H, W, 3]."""
    images = DataOptions.of(options, trained)
    source = load(images, images.train_split, "the run's --train_split", image_size, cache_bytes=0)
    with report_unreadable(source):
        batches = source.batches(64, limit=options.examples)
        return np.concatenate([batch["image"].numpy() for batch in batches])
