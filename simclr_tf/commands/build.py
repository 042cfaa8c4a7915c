"""What the commands share: the model that the options name, the data, the encoder of a run."""

from __future__ import annotations

import contextlib
import signal
import sys

import tensorflow as tf
from tensorflow import keras

from simclr_tf import data, devices, distribute, encoders, errors
from simclr_tf.augment import RandomView
from simclr_tf.heads import ProjectionHead
from simclr_tf.models.simclr import SimCLR
from simclr_tf.training import checkpoints, run_directory


def log(text):
    """Writes a line to stderr; the results of a command go to stdout."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def report_unreadable(*sources, directory=None):
    """Says in one line what tf.data wraps in many; lists what could not be read, come what may."""
    sources = [source for source in sources if source is not None]
    try:
        yield
    except tf.errors.OpError:
        for source in sources:
            source.check_corrupt()
        raise
    finally:
        if directory is not None:
            directory.write_corrupt([row for source in sources for row in source.corrupt])


@contextlib.contextmanager
def ended_by_sigterm():
    """While it lasts, SIGTERM is an exception, which leaves nothing half-written behind."""

    def stop(number, frame):
        raise errors.TryAgainError(
            "stopped by SIGTERM; nothing is written. Give the command again."
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare_process(options, strategy=None):
    """Seeds, determinism and precision of this process; returns the strategy.

    strategy: its name, in place of the options'.
    """
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribute.strategy_by_name(strategy or options.strategy, options.tpu)
    keras.mixed_precision.set_global_policy(devices.precision_policy(options.precision))
    return strategy


def load(options, split, image_size=None):
    """A split of the data set that the options name, a `data.Source`."""
    return data.load(
        options.dataset,
        split,
        data_dir=options.data_dir,
        image_size=image_size or options.image_size,
        source_size=options.source_size,
        max_corrupt_share=options.max_corrupt_share,
        cache_bytes=round(options.cache_gigabytes * 2**30),
    )


def build_encoder(options, image_size):
    """The encoder that the options name, built for square images of that side."""
    name = options.encoder
    if name == "resnet":
        name = f"resnet{options.resnet_depth}"
    return encoders.by_name(
        name, image_size, width=options.width, sk_ratio=options.sk_ratio, stem=options.stem
    )


def build_head(options):
    """The projection head that the options name; it is built with its first h."""
    return ProjectionHead(
        options.projection_hidden_dim, options.projection_dim, options.projection_layers
    )


def build_model(options, image_size):
    """The `SimCLR` that the options name, built for square images of that side."""
    blur = {"auto": "auto", "yes": True, "no": False}[options.blur]
    view = RandomView.for_size(
        image_size,
        options.color_jitter_strength,
        area=(options.min_crop_area, 1.0),
        drop_probability=options.color_drop_probability,
        blur=blur,
    )
    model = SimCLR(
        build_encoder(options, image_size),
        build_head(options),
        augment=view,
        temperature=options.temperature,
        micro_batch_size=options.micro_batch_size,
        seed=options.seed,
    )
    model.build((None, image_size, image_size, 3))
    return model


def parts_of_run(options, build):
    """Trained parts of a run's model, and the side of its images.

    Args:
      options: those of the run's `pretrain`.
      build: see `checkpoints.restore_submodels`.

    Raises:
      errors.UsageError: there is no run, or it has no checkpoint yet.
    """
    directory = run_directory.RunDirectory(options.run_dir)
    restored = checkpoints.restore_submodels(directory.checkpoints, build, log)
    if restored is None:
        raise errors.UsageError(
            f"--run_dir must hold a run with a checkpoint; {directory.path} has none yet. "
            "Let `simclr-tf pretrain` finish an epoch."
        )
    return restored


def encoder_of_run(options):
    """The trained encoder of a run and the side of its images; raises as `parts_of_run`."""
    parts, image_size = parts_of_run(
        options, lambda image_size: {"encoder": build_encoder(options, image_size)}
    )
    return parts["encoder"], image_size
