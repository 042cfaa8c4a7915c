"""Builds what the options of a command name: the process, the data, the model, an encoder."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import signal
import sys
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow import keras

from simclr_tf import augment, data, devices, distribute, encoders, errors, losses, pretrained
from simclr_tf.augment.random_view import SMALL_SIZE, default_strength
from simclr_tf.export import load_exported
from simclr_tf.heads import LinearHead, NoHead, ProjectionHead, SpaceHeads
from simclr_tf.models import LooC, MoCo, SimCLR
from simclr_tf.training import RunDirectory, Steps, ViewSizes
from simclr_tf.training.checkpoints import restore_submodels


def log(text):
    """Writes a line to stderr; the results of a command go to stdout."""
    print(text, file=sys.stderr, flush=True)


def counted(number, noun):
    """A number and its noun: "1 epoch", "2,000 epochs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@contextlib.contextmanager
def report_unreadable(*sources, directory=None):
    """Re-raises data errors without tf.data's wrapping; always records unreadable files.

    Args:
      sources: the `data.Source`s that are read in the block; None stands for no source.
      directory: the `RunDirectory` whose corrupt.txt lists the files; None: no list.
    """
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
    """Raises an exception at SIGTERM inside the block, so that nothing half-written is left."""

    def stop(number, frame):
        raise errors.TryAgainError(
            "stopped by SIGTERM; nothing is written. Start the same command again."
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare_process(options, strategy=None):
    """Sets seeds, determinism and precision of this process; returns the strategy.

    Args:
      options: those of `simclr-tf pretrain`.
      strategy: name of the strategy; None: the one in the options.
    """
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribute.strategy_by_name(strategy or options.strategy, options.tpu)
    keras.mixed_precision.set_global_policy(devices.precision_policy(options.precision))
    return strategy


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The options that select the images to read, with defaults for use without a run."""

    dataset: str
    data_dir: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    source_size: int | None = None
    max_corrupt_share: float = 0.01
    cache_gigabytes: float = 2.0
    index_cache: str | None = None
    strategy: str | None = None

    @classmethod
    def of(cls, options, trained=None):
        """The command's own options where given, else those of the run, else the defaults."""
        found = {}
        for field in dataclasses.fields(cls):
            for each in (trained, options):
                value = getattr(each, field.name, None)
                if value is not None:
                    found[field.name] = value
        own = {"index_cache": _index_cache(options), "strategy": getattr(options, "strategy", None)}
        return cls(**{**found, **own})


def _index_cache(options):
    """Where headers are kept: as the options say, or in the run directory of one that trains."""
    given, run_dir = (getattr(options, name, None) for name in ("index_cache", "run_dir"))
    if given or not run_dir or not hasattr(options, "index_cache"):
        return given
    return os.path.join(os.path.expanduser(run_dir), "index")


def load(options, split, flag, image_size=None, dataset_flag="--dataset", **arguments):
    """A split of the data set that the options name, a `data.Source`.

    Args:
      options: those of `simclr-tf pretrain`, or `DataOptions`.
      split: name of the split, which may be sliced as in TFDS.
      flag: the flag that selects the split, such as "--train_split", for messages.
      image_size: side of the images in pixels; None: the one in the options.
      dataset_flag: the flag that `options.dataset` is from.
      **arguments: of `data.load`, instead of those that the options hold.
    """
    arguments = {
        "data_dir": options.data_dir,
        "image_size": image_size or options.image_size,
        "source_size": options.source_size,
        "max_corrupt_share": options.max_corrupt_share,
        "cache_bytes": round(options.cache_gigabytes * 2**30),
        "index_cache": _index_cache(options),
        "cache_on_demand": getattr(options, "strategy", None) == "multi_worker",
        **arguments,
    }
    with (
        errors.storage_errors(options.dataset, "read"),
        errors.renamed_arguments(name=dataset_flag, split=flag, index_cache="--index_cache"),
    ):
        return data.load(options.dataset, split, **arguments)


def build_encoder(options, image_size):
    """The encoder that the options name, built for square images of `image_size` pixels."""
    name = options.encoder
    if name == "resnet":
        name = f"resnet{options.resnet_depth}"
    return encoders.by_name(
        name,
        image_size,
        width=options.width,
        sk_ratio=options.sk_ratio,
        stem=options.stem,
        feature_dim=options.feature_dim,
    )


def build_head(options):
    """The projection head that the options name; its first call builds it."""
    if options.method == "looc":
        return SpaceHeads(
            len(_kept(options)) + 1,
            options.projection_hidden_dim,
            options.projection_dim,
            options.projection_layers,
        )
    if options.projection_layers == 0:
        return NoHead()
    if options.projection_layers == 1:
        return LinearHead(options.projection_dim)
    return ProjectionHead(
        options.projection_hidden_dim, options.projection_dim, options.projection_layers
    )


def build_augmentation(options, image_size):
    """The augmentation that the options name, for images of `image_size` pixels.

    Returns:
      An `augment.Operator` for both views; or a list with one for each view: of --views, or of
      --transformed_views=one, of which the first only crops.
    """
    area = options.min_crop_area, options.max_crop_area
    if options.views:
        largest = max(group.size for group in options.views)
        families = []
        for group in options.views:
            family = _family(options, group.size, group.area or area, largest)
            families += group.count * [family]
        return families
    view = _family(options, image_size, area, image_size)
    if options.transformed_views == "both":
        return view
    crop = augment.RandomCropResize(image_size, area)
    chain = augment.Compose([crop, view])
    return [augment.Compose([crop]), augment.SharedView(chain, ["crop"])]


def drawn_families(options, augmentation):
    """What a picture of views shows: a list of operators, one for each view that differs.

    Args:
      options: the flags.
      augmentation: what `build_augmentation` returned for them.
    """
    if options.view_sizes:
        sizes = ViewSizes(options.view_sizes, augmentation)
        return [sizes.view_of(size) for size, _ in options.view_sizes]
    return augmentation if isinstance(augmentation, (tuple, list)) else [augmentation]


def _family(options, size, area, largest):
    """The family of views of `size` pixels; `largest` has the default strength and blur."""
    strength = options.color_jitter_strength
    if strength is None:
        strength = default_strength(largest)
    if options.augmentations:
        crops = "crop" in re.split(r"\s*,\s*", options.augmentations.strip())
        return augment.by_name(
            options.augmentations, size, strength, **({"area": area} if crops else {})
        )
    blur = {} if size == largest else {"blur": largest > SMALL_SIZE}
    blur = {"auto": blur, "yes": {"blur": True}, "no": {"blur": False}}[options.blur]
    return augment.family_with(
        _kept(options),
        size,
        strength=strength,
        area=area,
        jitter_probability=options.color_jitter_probability,
        drop_probability=options.color_drop_probability,
        **blur,
    )


def build_encoder_and_head(options, image_size):
    """The encoder and the head that the options name, built: a dict for `submodels_of_run`."""
    encoder, head = build_encoder(options, image_size), build_head(options)
    head.build(encoder.compute_output_shape((None, image_size, image_size, 3)))
    return {"encoder": encoder, "projection_head": head}


def build_model(options, image_size):
    """The model that the options name, built for square images of `image_size` pixels."""
    method, arguments = _method(options)
    model = method(
        build_encoder(options, image_size),
        projection_head=build_head(options),
        augment=build_augmentation(options, image_size),
        temperature=options.temperature,
        seed=options.seed,
        **arguments,
    )
    model.build((None, image_size, image_size, 3))
    return model


def _kept(options):
    """The augmentations that LooC keeps, a list; empty for another method."""
    if options.method != "looc":
        return []
    return [name.strip() for name in (options.kept or "color").split(",")]


def _method(options):
    """The class of --method, and the arguments that only this class takes."""
    if options.method == "looc":
        return LooC, {"kept": _kept(options)}
    if options.method == "simclr":
        objective = losses.by_name(options.loss, options.temperature, options.normalize)
        return SimCLR, {
            "micro_batch_size": options.micro_batch_size,
            "objective": objective,
            "weight_average": options.weight_average or None,
        }
    given = {
        "momentum": options.encoder_momentum,
        "queue_size": options.queue_size,
        "symmetric": options.symmetric,
        "in_batch_negatives": options.in_batch_negatives,
    }
    return MoCo, {name: value for name, value in given.items() if value is not None}


def number_of_negatives(options, model):
    """Negatives of each view, int; of `looc`, in the all-invariant space."""
    images = options.batch_size
    negatives = views_per_image(options) * (images - 1)
    if options.method == "moco":
        return model.queue_size + (negatives if model.in_batch_negatives else 0)
    if options.method == "looc":
        return (len(model.kept) + 2) * (images - 1)
    return negatives


def chance_loss(options, model):
    """The loss of an encoder that maps all images to the same vector."""
    negatives = number_of_negatives(options, model)
    if options.method == "looc":
        keys = len(model.kept) + 1
        return math.log(1 + negatives) + (keys - 1) / keys * math.log(keys + negatives)
    return math.log(negatives + (options.loss != "decoupled"))


def views_per_image(options):
    """V, the number of views of an image in a step of SimCLR or MoCo."""
    return sum(group.count for group in options.views) if options.views else 2


# Attributes of a `SimCLR` with a weight average that hold the averages of others.
_AVERAGES = {"encoder": "averaged_encoder", "projection_head": "averaged_head"}


def submodels_of_run(options, build):
    """Trained submodels of a run, a `RestoredSubmodels`; logs a line if the run is not finished.

    Of a run with --weight_average they are the averages.

    Args:
      options: those of the run's `pretrain`.
      build: see `checkpoints.restore_submodels`.

    Raises:
      errors.UsageError: the run has no checkpoint yet.
    """
    directory = RunDirectory(options.run_dir)
    names = _AVERAGES if options.weight_average else {}

    def build_by_attribute(image_size):
        return {names.get(name, name): each for name, each in build(image_size).items()}

    restored = restore_submodels(directory.checkpoints, build_by_attribute, log)
    if restored is None:
        raise errors.UsageError(
            f"--run_dir must hold a run with a checkpoint; {directory.path} has none yet. "
            "Let `simclr-tf pretrain` finish an epoch."
        )
    epoch, planned = restored.position[0], planned_epochs(options)
    if planned and epoch < planned:
        log(f"the run has {epoch:,} of {planned:,} epochs.")
    given = {attribute: name for name, attribute in names.items()}
    submodels = {given.get(name, name): each for name, each in restored.submodels.items()}
    return restored._replace(submodels=submodels)


def planned_epochs(options):
    """Epochs that a run is to have, int; None where --train_steps is set and they are not known.

    Args:
      options: those of the run's `pretrain`.
    """
    if not options.train_steps:
        return options.epochs
    examples = RunDirectory(options.run_dir).training_examples()
    return examples and Steps(examples // options.batch_size, options.train_steps).epochs


class LoadedEncoder(NamedTuple):
    """A trained encoder and where it is from.

    Attributes:
      encoder: maps images [B, H, W, 3], float32 in [0, 1], to h [B, D].
      image_size: side in pixels of the square images that it gets.
      source: the flag that named it: "run_dir", "saved_model" or "official_weights".
      path: the value of that flag.
      progress: {"epoch": epochs done, "planned_epochs": see `planned_epochs`} of a run; else {}.
      projection_head: a built `ProjectionHead`; None where it was not asked for or is not there.
      whitening: the `encoders.Whitening` of h that a run with --whitening has measured, else None.
    """

    encoder: Any
    image_size: int
    source: str
    path: str
    progress: dict
    projection_head: Any = None
    whitening: Any = None


def load_encoder(options, trained=None, projection_head=False):
    """The encoder of --run_dir, --saved_model or --official_weights, whichever is given.

    Also sets seeds and precision of this process: those of the run, else 0 and float32.

    Args:
      options: attributes saved_model, official_weights and image_size (None: the encoder's own).
      trained: the options of the run, in place of the other two; of one of a classifier its export
        is loaded.
      projection_head: whether to load it too; an exported SavedModel has none.

    Returns:
      A `LoadedEncoder`.

    Raises:
      errors.UsageError: no checkpoint yet; an export that does not state its image size.
      errors.ArgumentError: no SavedModel or weights there.
    """
    whitening = None
    if trained and trained.command != "pretrain":
        progress, found = {}, _fine_tuned(trained)
    elif trained:
        prepare_process(trained, strategy="one")
        restored = submodels_of_run(
            trained, lambda side: _submodels(trained, side, projection_head)
        )
        progress = {"epoch": restored.position[0], "planned_epochs": planned_epochs(trained)}
        encoder, head = (restored.submodels.get(name) for name in ("encoder", "projection_head"))
        found = encoder, restored.image_size, "run_dir", trained.run_dir, head
        whitening = whitening_of_run(trained)
    else:
        progress = {}
        keras.utils.set_random_seed(0)
        keras.mixed_precision.set_global_policy("float32")
        source = "saved_model" if options.saved_model else "official_weights"
        with errors.renamed_arguments(path=f"--{source}"):
            found = (
                _exported(options) if options.saved_model else _official(options, projection_head)
            )
    encoder, image_size, source, path, head = found
    size = options.image_size or image_size
    return LoadedEncoder(encoder, size, source, str(path), progress, head, whitening)


def whitening_of_run(trained):
    """The `encoders.Whitening` that a run has measured after its last epoch; None without one.

    Args:
      trained: the options of the run's `pretrain`.
    """
    path = RunDirectory(trained.run_dir).whitening
    with errors.renamed_arguments(path="--run_dir"):
        return encoders.Whitening.load(path) if path.exists() else None


def _fine_tuned(trained):
    """The export of a run of `finetune` or `distill`, as an encoder."""
    keras.utils.set_random_seed(0)
    path = RunDirectory(trained.run_dir).export
    if not path.exists():
        raise errors.UsageError(
            f"--run_dir must hold a run that has ended; {path} is not there yet. Start the same "
            f"`simclr-tf {trained.command}` again."
        )
    encoder = load_exported(path)
    return encoder, encoder.image_size, "run_dir", trained.run_dir, None


def _submodels(options, image_size, projection_head):
    if projection_head:
        return build_encoder_and_head(options, image_size)
    return {"encoder": build_encoder(options, image_size)}


def _exported(options):
    encoder = load_exported(options.saved_model)
    if not (options.image_size or encoder.image_size):
        raise errors.UsageError(
            f"{options.saved_model} does not state the size of its images. Pass --image_size."
        )
    return encoder, encoder.image_size, "saved_model", options.saved_model, None


def _official(options, projection_head):
    path = options.official_weights
    found = pretrained.from_official(path, options.image_size, projection_head)
    size = found.encoder.built_shape[1]
    return found.encoder, size, "official_weights", path, found.projection_head
