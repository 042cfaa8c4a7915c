"""`simclr-tf export`: writes the encoder of a run as a SavedModel or a TensorFlow Lite file."""

from __future__ import annotations

import pathlib

import numpy as np

from simclr_tf import errors
from simclr_tf.commands.build import (
    build_encoder,
    build_head,
    ended_by_sigterm,
    load,
    log,
    parts_of_run,
    prepare_process,
    report_unreadable,
)
from simclr_tf.export import export_encoder, export_tflite


def export(options, trained):
    """Writes the encoder of a run as a SavedModel or a TensorFlow Lite file."""
    if options.precision == "int8" and options.format != "tflite":
        raise errors.UsageError(
            "--precision=int8 is for --format=tflite; got --format=saved_model."
        )
    if pathlib.Path(options.output).exists():
        raise errors.UsageError(f"--output must not exist; {options.output} does. Take another.")
    prepare_process(trained, strategy="one")
    parts, image_size = parts_of_run(trained, lambda side: _encoder_and_head(trained, side))
    arguments = {
        "image_shape": (image_size, image_size, 3),
        "normalize": options.normalize,
        "layer": options.layer,
        "head": parts["projection_head"],
        "precision": options.precision,
    }
    if options.precision == "int8":
        arguments["examples"] = _examples(trained, image_size, options.examples)
    write = export_tflite if options.format == "tflite" else export_encoder
    with ended_by_sigterm():
        path = write(parts["encoder"], options.output, **arguments)
    log(f"wrote the encoder to {path}")


def _encoder_and_head(options, image_size):
    encoder, head = build_encoder(options, image_size), build_head(options)
    head.build(encoder.compute_output_shape((None, image_size, image_size, 3)))
    return {"encoder": encoder, "projection_head": head}


def _examples(trained, image_size, count):
    """Training images for the ranges of int8, uint8 [count, H, W, 3]."""
    trained.cache_gigabytes = 0.0  # for these few
    source = load(trained, trained.train_split, image_size)
    with report_unreadable(source):
        batches = [batch["image"].numpy() for batch in source.batches(64, limit=count)]
    return np.concatenate(batches)
