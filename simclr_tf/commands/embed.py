"""`simclr-tf embed`: writes the embeddings of a data set to a file."""

from __future__ import annotations

import types

from simclr_tf import data, embeddings, errors, evaluate
from simclr_tf.commands import progress
from simclr_tf.commands.build import (
    encoder_of_run,
    ended_by_sigterm,
    log,
    prepare_process,
    report_unreadable,
)
from simclr_tf.export import load_exported


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
    with report_unreadable(source), ended_by_sigterm(), embeddings.Writer(options.output) as file:
        with progress.counted(source.num_examples, log) as done:
            for features in evaluate.stream_features(encoder, source.batches(options.batch_size)):
                file.write(features)
                done(len(features.h))
                count += len(features.h)
    log(
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
        raise errors.UsageError(
            f"{options.saved_model} does not state what size of images it takes. Give --image_size."
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


def _left_out(source):
    if not source.corrupt:
        return ""
    example_id, reason = source.corrupt[0]
    return f"; left out, since unreadable: {len(source.corrupt)}, such as {example_id} ({reason})"
