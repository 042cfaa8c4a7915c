"""`simclr-tf embed`: writes the embeddings of a data set to a file."""

from __future__ import annotations

import shutil
import sys

from simclr_tf import embeddings, evaluate
from simclr_tf.commands.build import (
    DataOptions,
    counted,
    ended_by_sigterm,
    load,
    load_encoder,
    log,
    report_unreadable,
)
from simclr_tf.commands.layers import Layers, needs_head
from simclr_tf.data.by_name import DRAWN
from simclr_tf.errors import storage_errors

_LOG_EVERY_SECONDS = 30.0


def embed(options, invocation):
    """Writes the embeddings of a data set with ids and, where there are some, labels.

    Reads, embeds and writes one batch at a time, in bounded memory.

    Args:
      options: attributes named as the flags of `simclr-tf embed`.
      invocation: `trained`, the options of the run's `pretrain`, or None without a run.
    """
    loaded = load_encoder(options, invocation.trained, needs_head(options.layer))
    layers = Layers(loaded, options.layer or ("h" if loaded.whitening is None else "whitened"))
    source = _load_source(options, invocation.trained, loaded.image_size)
    with storage_errors(options.output):
        count, dimension = _write(options, layers.encoder, source)
    whitened = " (whitened)" if layers.names == ["whitened"] else ""
    log(
        f"wrote {counted(count, 'embedding')} of {counted(dimension, 'number')}{whitened} to "
        f"{options.output}{_left_out(source)}"
    )


def _write(options, encoder, source):
    """Number of embeddings written, and of numbers in each."""
    count = 0
    with report_unreadable(source), ended_by_sigterm(), embeddings.Writer(options.output) as file:
        with progress_bar(source.num_examples, log) as bar:
            for features in evaluate.stream_features(encoder, source.batches(options.batch_size)):
                file.write(features)
                bar.update(len(features.h))
                count += len(features.h)
    return count, features.h.shape[1]


def progress_bar(total, log):
    """Returns a `tqdm.tqdm` of `total` images: a bar on a terminal, else a line every 30 s.

    Args:
      total: number of images.
      log: a function of a line of text, called where stdout is not a terminal.
    """
    from tqdm import tqdm

    if sys.stdout.isatty():
        # tqdm shows nothing on a terminal that reports a size of 0; the default here is 80 x 24.
        columns, lines = shutil.get_terminal_size()
        size = {"ncols": min(columns, 100), "nrows": lines}
        return tqdm(total=total, unit=" images", file=sys.stdout, **size)
    return tqdm(
        total=total,
        unit=" images",
        file=_LogFile(log),
        bar_format="{n_fmt} of {total_fmt} images, {rate_fmt}, {remaining} left",
        delay=_LOG_EVERY_SECONDS,
        mininterval=_LOG_EVERY_SECONDS,
        miniters=1,  # else tqdm guesses how many images pass between two lines
        smoothing=0,  # the rate since the start
        leave=False,
    )


class _LogFile:
    """A file that logs each line of a `tqdm.tqdm`."""

    def __init__(self, log):
        self._log = log

    def write(self, text):
        if text.strip():  # without the carriage returns and spaces that erase a bar
            self._log(text.strip())

    def flush(self):
        pass


def _load_source(options, trained, image_size):
    images = DataOptions.of(options, trained)
    # Images in memory are fastest read from a cache; those in files are read once and not kept.
    in_memory = images.dataset in DRAWN or images.dataset.startswith("npz:")
    cache = {} if in_memory else {"cache_bytes": 0}
    return load(images, options.split or images.train_split, "--split", image_size, **cache)


def _left_out(source):
    if not source.corrupt:
        return ""
    example_id, reason = source.corrupt[0]
    return f"; left out as unreadable: {len(source.corrupt)}, such as {example_id} ({reason})"
