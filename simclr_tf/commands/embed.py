"""`simclr-tf embed`: writes the embeddings of a data set to a file."""

from __future__ import annotations

import shutil
import sys
import types

from simclr_tf import data, embeddings, errors, evaluate
from simclr_tf.commands.build import (
    encoder_of_run,
    ended_by_sigterm,
    prepare_process,
    report_unreadable,
    say,
)
from simclr_tf.export import load_exported

_LOG_EVERY_SECONDS = 30.0


def embed(options, trained=None):
    """Writes the embeddings of a data set with ids and, if there are any, labels.

    Images are read, embedded and written one batch at a time, so memory holds one batch.

    Args:
      options: attributes named as the flags of `simclr-tf embed`.
      trained: the options of the run's `pretrain`; None takes the encoder at options.saved_model.
    """
    encoder, source = _run_to_embed(options, trained) if trained else _export_to_embed(options)
    count = 0
    with report_unreadable(source), ended_by_sigterm(), embeddings.Writer(options.output) as file:
        with progress_bar(source.num_examples, say) as bar:
            for features in evaluate.stream_features(encoder, source.batches(options.batch_size)):
                file.write(features)
                bar.update(len(features.h))
                count += len(features.h)
    say(
        f"wrote {count:,} embeddings of {features.h.shape[1]} numbers to {options.output}"
        + _left_out(source)
    )


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


def _run_to_embed(options, trained):
    """Returns the encoder of a run and the images, by default those of the run."""
    prepare_process(trained, strategy="one")
    encoder, image_size = encoder_of_run(trained)
    return encoder, _source_to_embed(options, trained, options.image_size or image_size)


def _export_to_embed(options):
    """Returns an exported encoder and the images for it."""
    encoder = load_exported(options.saved_model)
    image_size = options.image_size or encoder.image_size
    if image_size is None:
        raise errors.UsageError(
            f"{options.saved_model} does not state the image size. Give --image_size."
        )
    defaults = types.SimpleNamespace(train_split="train", source_size=None, data_dir=None)
    defaults.max_corrupt_share = 0.01
    return encoder, _source_to_embed(options, defaults, image_size)


def _source_to_embed(options, defaults, image_size):
    name, share = options.dataset or defaults.dataset, options.max_corrupt_share
    # A data set in memory is read fastest from there; files are read once and not cached.
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
    return f"; left out as unreadable: {len(source.corrupt)}, such as {example_id} ({reason})"
