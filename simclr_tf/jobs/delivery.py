"""`simclr-tf embed` and `simclr-tf export`: what a trained encoder is for."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import types

import numpy as np

from simclr_tf import data, embeddings, evaluate, progress, run
from simclr_tf.export import export_encoder, export_tflite, load_exported
from simclr_tf.jobs.parts import (
    build_encoder,
    build_head,
    encoder_of_run,
    load,
    parts_of_run,
    prepare_process,
    reading,
    say,
)


def embed(options, trained=None):
    """Writes the embeddings of a data set with ids and, where there are some, labels.

    Read, embedded and written a batch at a time: neither the images nor the embeddings are ever in
    memory together.

    Args:
      options: attributes named as the flags of `simclr-tf embed`.
      trained: the options of the run's `pretrain`; None takes the encoder at options.saved_model.
    """
    encoder, source = _run_to_embed(options, trained) if trained else _export_to_embed(options)
    count = 0
    with reading(source), _ended_by_sigterm(), embeddings.Writer(options.output) as file:
        with progress.counted(source.num_examples, say) as done:
            for features in evaluate.stream_features(encoder, source.batches(options.batch_size)):
                file.write(features)
                done(len(features.h))
                count += len(features.h)
    say(
        f"wrote {count:,} embeddings of {features.h.shape[1]} numbers to {options.output}"
        + _left_out(source)
    )


def _run_to_embed(options, trained):
    """The encoder of a run, and the images for it, those of the run where nothing else is asked."""
    prepare_process(trained, strategy="one")
    encoder, image_size = encoder_of_run(trained)
    return encoder, _source_to_embed(options, trained, options.image_size or image_size)


def _export_to_embed(options):
    """An exported encoder and the images for it."""
    encoder = load_exported(options.saved_model)
    image_size = options.image_size or encoder.image_size
    if image_size is None:
        raise run.UsageError(
            f"{options.saved_model} does not say what size of images it takes. Give --image_size."
        )
    defaults = types.SimpleNamespace(train_split="train", source_size=None, data_dir=None)
    defaults.max_corrupt_share = 0.01
    return encoder, _source_to_embed(options, defaults, image_size)


def _source_to_embed(options, defaults, image_size):
    name, share = options.dataset or defaults.dataset, options.max_corrupt_share
    # What is in memory anyway is read fastest from there; a file is read once and not kept.
    in_memory = name == "shapes" or name.startswith("npz:")
    return data.load(
        name,
        options.split or defaults.train_split,
        data_dir=options.data_dir or defaults.data_dir,
        image_size=image_size,
        source_size=defaults.source_size,
        max_corrupt_share=defaults.max_corrupt_share if share is None else share,
        **({} if in_memory else {"cache_bytes": 0}),
    )


@contextlib.contextmanager
def _ended_by_sigterm():
    """While it lasts, SIGTERM is an exception, which leaves nothing half-written behind."""

    def stop(number, frame):
        raise run.TryAgainError("stopped by SIGTERM; nothing is written. Give the command again.")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _left_out(source):
    if not source.corrupt:
        return ""
    example_id, reason = source.corrupt[0]
    return f"; left out, since unreadable: {len(source.corrupt)}, such as {example_id} ({reason})"


def export(options, trained):
    """Writes the encoder of a run as a SavedModel or a TensorFlow Lite file."""
    if options.precision == "int8" and options.format != "tflite":
        raise run.UsageError("--precision=int8 is for --format=tflite; got --format=saved_model.")
    if pathlib.Path(options.output).exists():
        raise run.UsageError(f"--output must not exist; {options.output} does. Take another.")
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
    with _ended_by_sigterm():
        path = write(parts["encoder"], options.output, **arguments)
    say(f"wrote the encoder to {path}")


def _encoder_and_head(options, image_size):
    encoder, head = build_encoder(options, image_size), build_head(options)
    head.build(encoder.compute_output_shape((None, image_size, image_size, 3)))
    return {"encoder": encoder, "projection_head": head}


def _examples(trained, image_size, count):
    """Training images for the ranges of int8, uint8 [count, H, W, 3]."""
    trained.cache_gigabytes = 0.0  # for these few
    source = load(trained, trained.train_split, image_size)
    with reading(source):
        batches = [batch["image"].numpy() for batch in source.batches(64, limit=count)]
    return np.concatenate(batches)
