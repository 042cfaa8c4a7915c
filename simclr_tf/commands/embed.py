"""`simclr-tf embed`: writes the embeddings of a data set to a file."""

from __future__ import annotations

from simclr_tf import embeddings, evaluate
from simclr_tf.commands import progress
from simclr_tf.commands.build import (
    DataOptions,
    ended_by_sigterm,
    load,
    load_encoder,
    log,
    report_os_errors,
    report_unreadable,
)


def embed(options, invocation):
    """Writes the embeddings of a data set with ids and, where there are some, labels.

    Reads, embeds and writes one batch at a time, in bounded memory.

    Args:
      options: attributes named as the flags of `simclr-tf embed`.
      invocation: `trained`, the options of the run's `pretrain`, or None without a run.
    """
    loaded = load_encoder(options, invocation.trained)
    source = _load_source(options, invocation.trained, loaded.image_size)
    with report_os_errors("written", options.output):
        count, dimension = _write(options, loaded.encoder, source)
    log(
        f"wrote {count:,} embeddings of {dimension} numbers to {options.output}" + _left_out(source)
    )


def _write(options, encoder, source):
    """Number of embeddings written, and of numbers in each."""
    count = 0
    with report_unreadable(source), ended_by_sigterm(), embeddings.Writer(options.output) as file:
        with progress.counted(source.num_examples, log) as done:
            for features in evaluate.stream_features(encoder, source.batches(options.batch_size)):
                file.write(features)
                done(len(features.h))
                count += len(features.h)
    return count, features.h.shape[1]


def _load_source(options, trained, image_size):
    images = DataOptions.of(options, trained)
    # Images in memory are fastest read from a cache; those in files are read once and not kept.
    in_memory = images.dataset == "shapes" or images.dataset.startswith("npz:")
    cache = {} if in_memory else {"cache_bytes": 0}
    return load(images, options.split or images.train_split, image_size, **cache)


def _left_out(source):
    if not source.corrupt:
        return ""
    example_id, reason = source.corrupt[0]
    return f"; left out, since unreadable: {len(source.corrupt)}, such as {example_id} ({reason})"
