"""The command line: `simclr-tf COMMAND --flags`. The only module that reads a flag.

TensorFlow is imported only when a command runs, so help and mistakes are answered at once.
Exit codes: 0 done; 2 a flag is wrong, or what it names (`_exit_code`); 75 the machine stopped the
command, which can be started again (SIGTERM, a worker that is gone); 130 stopped by Ctrl-C; 1 any
other failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable

from simclr_tf import _atomic, _flags, errors


@dataclasses.dataclass(frozen=True)
class Command:
    """All that the command line knows of a command.

    Attributes:
      name: the word after `simclr-tf`.
      help: one line.
      run: "module:function", imported when the command runs, so that help needs no TensorFlow.
        The function is called with `Options` and an `Invocation`.
      groups: functions that define flags, called with a `_flags.Define`.
      required: flags without which the command is refused.
      argument: the flag that the first word after the name stands for, where it is not a flag.
      exactly_one: flags of which exactly one must be given; none: no such rule.
      required_without_run: flags that are required where --run_dir is not given.
      run_flags: flags that name runs that exist, whose options are then passed. One other than
        --run_dir may also name something else than a run.
      takes_fine_tuned: whether that run may be one of `finetune` or `distill`.
      resumable: flags that do not change what is learnt and may differ when a run is resumed.
      check: called with the `Options` before TensorFlow is imported; raises `errors.UsageError`.

    Example:

    >>> simclr_tf.cli.COMMANDS["export"].required
    ('run_dir', 'output')
    """

    name: str
    help: str
    run: str
    groups: tuple
    required: tuple = ()
    argument: str | None = None
    exactly_one: tuple = ()
    required_without_run: tuple = ()
    run_flags: tuple = ("run_dir",)
    takes_fine_tuned: bool = True
    resumable: tuple = ()
    check: Callable | None = None


class Options:
    """The flags of a command as attributes, which cannot be changed; `replace` returns a copy.

    Example:

    >>> options = simclr_tf.cli.Options(epochs=3, seed=0)
    >>> options.replace(epochs=4).epochs, options.epochs
    (4, 3)
    """

    def __init__(self, **values):
        vars(self).update(values)

    def __setattr__(self, name, value):
        raise AttributeError(f"options cannot be changed; got {name} = {value!r}. Use replace().")

    def replace(self, **changes):
        """The same options with other values for some names."""
        return Options(**{**vars(self), **changes})


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What a command is called with besides its own options.

    Attributes:
      flags: dict of flag name to its text, for flags.cfg.
      resumable: names of flags that may change when a run is resumed.
      runs: the `Options` of the runs that the command reads, by flag, each with `command`, the name
        of the command that trained it.
      trained: those of the first of the command's `run_flags`; None where it names no run.
      defaults: dict of flag name to the text of its default; flags without one are left out.

    Example:

    >>> simclr_tf.cli.Invocation(flags={"epochs": "3"}, resumable=("debug",)).flags
    {'epochs': '3'}
    """

    flags: dict
    resumable: tuple
    trained: Options | None = None
    runs: dict = dataclasses.field(default_factory=dict)
    defaults: dict = dataclasses.field(default_factory=dict)


_SIDE = (1, 8192)  # of images; beyond that, a batch of them exceeds any memory
_COLOR_DROP_PROBABILITY = 0.2


def _define_common(define):
    define.string("run_dir", None, "Directory of the run.")
    define.boolean("debug", False, "Show the traceback of every error.")


def _define_data(define):
    define.string(
        "dataset",
        "shapes",
        "shapes (drawn in code), folder:PATH, npz:PATH, tfrecord:GLOB, or any TFDS name; or "
        "shapes_by_class, shapes_by_color and shapes_by_orientation, one drawing, three labels.",
    )
    define.string("data_dir", None, "Directory of the TFDS data sets.")
    define.string("train_split", "train", "Split to train on, slices as in TFDS: train[:90%].")
    define.string("test_split", "test", "Labelled split for the kNN probe and `evaluate`.")
    _define_images(define)


def _define_images(define):
    define.integer(
        "image_size",
        None,
        "Side of the images in pixels; by default that of the data, or 224.",
        *_SIDE,
    )
    define.integer(
        "source_size",
        None,
        "Longer side at which photographs are kept to crop views from; by default 1.5 x the image "
        "size. Larger: sharper small crops, more memory.",
        *_SIDE,
    )
    define.float(
        "max_corrupt_share",
        0.01,
        "Fraction of unreadable images above which a run stops.",
        0.0,
        1.0,
    )
    define.float("cache_gigabytes", 2.0, "A data set up to this size is kept in memory.", 0.0, 1e6)


def _define_network(define):
    define.string(
        "encoder",
        "resnet",
        "resnet (see --resnet_depth), keras_cv/NAME or keras_applications/NAME, such as "
        "keras_applications/efficientnetv2_b0; simclr_tf.encoders.names() lists all.",
    )
    define.enum(
        "resnet_depth", "18", ["18", "34", "50", "101", "152", "200"], "Layers of the ResNet."
    )
    define.float("width", 1.0, "Width multiplier of the ResNet, above 0.", 1e-3)
    define.float("sk_ratio", 0.0, "Above 0: selective kernels (SimCLRv2: 0.0625).", 0.0)
    define.enum("stem", "auto", ["auto", "cifar", "imagenet"], "First layers of the ResNet.")


def _define_model(define):
    _define_network(define)
    define.integer("projection_dim", 128, "Length of z; without a head that of h.", 1)
    define.integer(
        "projection_hidden_dim",
        None,
        "Width of the head's hidden layers; by default that of h.",
        1,
    )
    define.integer(
        "projection_layers",
        2,
        "Layers of the head: 2 or 3 with ReLU between them; 1: a linear head; 0: none, z is h.",
        0,
        3,
    )
    define.enum(
        "loss",
        "nt_xent",
        ["nt_xent", "decoupled", "supervised"],
        "decoupled: without the positive in the denominator, for small batches; supervised: all "
        "views of a class are positives.",
    )
    define.float("temperature", 0.1, "Temperature of the loss, above 0.", 1e-6)
    define.boolean(
        "normalize",
        True,
        "Cosine similarity in the loss; false: dot products, for which the paper has temperatures "
        "of 10 and 100.",
    )


def _define_method(define):
    define.enum(
        "method",
        "simclr",
        ["simclr", "moco", "looc"],
        "simclr; moco: a momentum encoder and a queue of earlier keys as negatives, for small "
        "batches; looc: h keeps what the augmentations --kept change.",
    )
    define.integer("queue_size", None, "moco: keys in the queue; by default 4096.", 0)
    define.float(
        "encoder_momentum",
        None,
        "moco: momentum of the average of the encoder's weights; by default 0.99.",
        0.0,
        0.999999,
    )
    define.boolean(
        "symmetric", None, "moco: whether both views are queries, not the first alone; by default."
    )
    define.boolean(
        "in_batch_negatives",
        None,
        "moco: the form of SimCLRv2, NT-Xent with the queue as further negatives.",
    )
    define.string(
        "kept",
        None,
        "looc: augmentations joined by commas, such as color,rotate90; also crop, flip, blur, and "
        "those of --augmentations; by default color.",
    )


def _define_init_from(define):
    define.string(
        "init_from",
        None,
        "Start a new run from the weights of a run, an exported SavedModel, or a SavedModel or "
        "checkpoint of the official SimCLR code; the step and the optimizer start anew.",
    )


def _define_views(define):
    define.float(
        "color_jitter_strength",
        None,
        "Strength of the colour jitter; by default 1.0, and 0.5 up to 64 pixels.",
        0.0,
    )
    define.float(
        "color_drop_probability",
        _COLOR_DROP_PROBABILITY,
        "Fraction of the views that are grey.",
        0.0,
        1.0,
    )
    define.float(
        "min_crop_area", 0.08, "Minimum area of a crop, as a fraction of the image.", 1e-4, 1.0
    )
    define.enum("blur", "auto", ["auto", "yes", "no"], "Blur; auto: above 64 pixels.")
    define.string(
        "augmentations",
        None,
        "In place of the paper's family: operators in their order, such as crop,flip,color_jitter; "
        "also color_drop, blur, cutout, gaussian_noise, rotate90, sobel and solarize. sobel:0.5 is "
        "applied with a probability of 0.5.",
    )
    define.enum(
        "transformed_views",
        "both",
        ["both", "one"],
        "one: both views are the same random crop, and the augmentations change the second alone, "
        "as in figure 5 of the paper.",
    )
    define.string(
        "view_sizes",
        None,
        "Smaller views in the early epochs: side:end, ..., ends as fractions of the epochs; "
        "16:0.5,24:0.8,32:1 is 16 pixels for the first half, 32 for the last fifth.",
    )


def _define_training(define):
    define.integer("epochs", 100, "Passes over the data.", 1)
    define.integer("train_steps", None, "Steps to take; overrides --epochs.", 1)
    define.integer("batch_size", 512, "Images per step, over all devices.", 2)
    define.enum("optimizer", "lars", ["lars", "lamb", "sgd", "adamw"], "Optimizer.")
    define.float("learning_rate", 0.3, "Peak rate, before scaling, above 0.", 1e-12)
    _define_learning_rate_scaling(define, "linear")
    define.float("warmup_epochs", None, "By default a tenth of the epochs, 10 at most.", 0.0)
    define.float("weight_decay", 1e-6, "Weight decay; biases and norms take none.", 0.0)
    define.float("momentum", 0.9, "Momentum of lars and sgd.", 0.0, 0.9999)
    define.integer("micro_batch_size", None, "Views per micro-batch; by default all at once.", 1)
    _define_execution(define)
    define.integer(
        "probe_every_epochs", 0, "Epochs between kNN probes; 0: ten in a run; -1: none.", -1
    )
    define.integer("probe_examples", 5000, "Examples of each split that the probe uses.", 1)


def _define_learning_rate_scaling(define, default):
    define.enum(
        "learning_rate_scaling",
        default,
        ["linear", "sqrt", "none"],
        "linear: rate x batch / 256; sqrt: rate x sqrt(batch); none.",
    )


def _define_execution(define):
    define.integer(
        "steps_per_execution",
        0,
        "Steps per Python call; 0 chooses by device: 1 on a CPU.",
        0,
    )
    define.integer(
        "checkpoint_every_steps",
        1000,
        "Steps between checkpoints within an epoch; each epoch ends with one anyway.",
        1,
    )
    define.integer("seed", 0, "Seed of weights, order and views.", 0, 2**31 - 1)
    define.boolean("deterministic", False, "Only bit-reproducible kernels; may be slower.")
    define.enum(
        "precision",
        "auto",
        ["auto", "float32", "bfloat16", "float16"],
        "auto: bfloat16 where the device computes in it.",
    )
    define.enum(
        "strategy",
        "auto",
        ["auto", "one", "mirrored", "multi_worker", "tpu"],
        "How to use the devices; auto: all GPUs of this machine.",
    )
    define.string("tpu", None, "Name or address of the TPU.")


def _define_finetune(define):
    define.string(
        "pretrained",
        None,
        "A run, an exported SavedModel, or a SavedModel or checkpoint of the official SimCLR code.",
    )
    define.string("dataset", None, "As for pretrain; by default that of the pretrained run.")
    define.string("data_dir", None, "By default that of the pretrained run.")
    define.string("train_split", None, "By default that of the pretrained run, or train.")
    define.string("test_split", None, "By default that of the pretrained run, or test.")
    _define_images(define)
    define.float(
        "label_fraction",
        None,
        "Fraction of the labels of each class to train on, such as 0.01; by default all.",
        1e-9,
        1.0,
    )
    define.integer("labels_per_class", None, "Instead: labels of each class to train on.", 1)
    define.boolean(
        "from_scratch", False, "Also train the same network without pretraining, to compare."
    )
    define.integer(
        "head_layer",
        0,
        "What the logits are on: 0: h; 1: the first hidden layer of the projection head.",
        0,
        2,
    )
    define.string(
        "train_from",
        None,
        "First block of the encoder to train, such as group3; by default all are trained.",
    )
    define.integer(
        "epochs",
        None,
        "By default 60 x 2**-log10(labels / 12,811), at least 30, as in the paper.",
        1,
    )
    define.integer(
        "batch_size", 256, "Largest number of images per step; it is made to divide the labels.", 1
    )
    define.enum("optimizer", "nesterov", ["nesterov", "lars", "adamw"], "Optimizer.")
    define.float("learning_rate", 0.0125, "Rate at the start, before scaling, above 0.", 1e-12)
    _define_learning_rate_scaling(define, "sqrt")
    define.float("weight_decay", 0.0, "Weight decay; biases and norms take none.", 0.0)
    define.float("label_smoothing", 0.0, "Label smoothing.", 0.0, 0.999)
    define.float(
        "min_crop_area", 0.08, "Minimum area of a crop, as a fraction of the image.", 1e-4, 1.0
    )
    _define_execution(define)


def _define_distill(define):
    define.string("teacher", None, "A run of finetune or distill, or the export of one.")
    define.string("dataset", None, "Its images need no labels; by default that of the teacher.")
    define.string("data_dir", None, "By default that of the teacher.")
    define.string("train_split", None, "By default that of the teacher, or train.")
    define.string("test_split", None, "By default that of the teacher, or test.")
    _define_images(define)
    define.float(
        "label_weight",
        0.0,
        "Weight of the cross-entropy with labels, in [0, 1]; the teacher's is 1 - it.",
        0.0,
        1.0,
    )
    define.float(
        "label_fraction",
        None,
        "Fraction of the labels of each class to use; by default all.",
        1e-9,
        1.0,
    )
    define.integer("labels_per_class", None, "Instead: labels of each class to use.", 1)
    define.float("distillation_temperature", 1.0, "Temperature of both probabilities.", 1e-6)
    define.integer("epochs", 100, "Passes over the images.", 1)
    define.integer("train_steps", None, "Steps to take; overrides --epochs.", 1)
    define.integer("batch_size", 256, "Images per step, over all devices.", 1)
    define.enum("optimizer", "nesterov", ["nesterov", "lars", "adamw"], "Optimizer.")
    define.float("learning_rate", 0.1, "Rate at the start, before scaling, above 0.", 1e-12)
    _define_learning_rate_scaling(define, "linear")
    define.float("weight_decay", 1e-4, "Weight decay; biases and norms take none.", 0.0)
    define.float(
        "min_crop_area", 0.08, "Minimum area of a crop, as a fraction of the image.", 1e-4, 1.0
    )
    _define_execution(define)


def _define_student(define):
    _define_network(define)
    _define_init_from(define)


def _define_encoder(define):
    define.string(
        "saved_model",
        None,
        "Instead of --run_dir: an exported SavedModel, or a directory of numbered ones.",
    )
    define.string(
        "official_weights",
        None,
        "Instead of --run_dir: a SavedModel or checkpoint of the official SimCLR code.",
    )
    define.string("dataset", None, "As for pretrain; by default the run's.")
    define.string("data_dir", None, "By default the run's.")
    define.integer(
        "image_size", None, "Side of the images in pixels; by default the encoder's.", *_SIDE
    )
    define.float(
        "max_corrupt_share",
        None,
        "Fraction of unreadable images at which it stops; by default the run's, or 0.01.",
        0.0,
        1.0,
    )
    define.integer("batch_size", 256, "Images at a time.", 1)


def _define_evaluate(define):
    define.string(
        "protocol",
        None,
        "By default knn, and for a fine-tuned model the accuracy of its own classifier. One or "
        "several of knn, linear (logistic regression on stored features) and linear_views "
        "(a linear layer on crops and flips, as the paper trains it), joined by commas; all: knn "
        "and linear.",
    )
    define.string(
        "output",
        None,
        "Directory for a table (CSV, Markdown, JSON) over the data sets of --dataset=a,b,c.",
    )
    define.string(
        "cache_dir",
        None,
        "Directory in which features are kept; by default OUTPUT/features with --output, else "
        "none is.",
    )
    define.string(
        "layer",
        "h",
        "Layer to score: h, head1, ..., z, or one as for export; several joined by commas; all: h "
        "and every layer of the projection head; spaces: of a run of looc, z with each space at "
        "length 1.",
    )
    define.boolean("baselines", False, "Also raw pixels and, for a run, a random encoder.")
    define.string("train_split", None, "By default the run's, or train.")
    define.string("test_split", None, "By default the run's, or test.")


def _define_protocols(define):
    define.integer(
        "knn_k", 200, "Neighbours of the weighted kNN; all images where there are fewer.", 1
    )
    define.float("knn_temperature", 0.1, "Temperature of its weights.", 1e-6)
    define.string(
        "knn_views",
        "1",
        "Views whose features kNN averages: 1, flip, or crops:N with N up to 10.",
    )
    define.boolean("knn_whiten", False, "kNN on ZCA-whitened features.")
    define.integer(
        "seeds", 1, "Repetitions of the linear protocols, for a 95 % confidence interval.", 1, 1000
    )
    define.integer("linear_views_epochs", 90, "Epochs of linear_views.", 1)
    define.integer("linear_views_batch_size", 256, "Images per step of linear_views.", 1)
    define.enum(
        "linear_views_optimizer", "nesterov", ["nesterov", "lars"], "Optimizer of linear_views."
    )
    define.float(
        "linear_views_learning_rate", 0.1, "Its peak rate, for a batch of 256, above 0.", 1e-12
    )


def _define_embed(define):
    define.string("output", None, "File to write: .npz, .parquet or .tfrecord; it must not exist.")
    define.string("split", None, "By default the run's --train_split, or train.")


def _define_export(define):
    define.string("output", None, "Path to write: encoder/1, or encoder.tflite; it must not exist.")
    define.enum(
        "format",
        "saved_model",
        ["saved_model", "tflite"],
        "saved_model: a directory for TF Serving, tensorflow-hub and Keras; tflite: a file.",
    )
    define.enum(
        "precision",
        "float32",
        ["float32", "float16", "int8"],
        "Precision of the signatures' weights and arithmetic; int8 is for tflite, with ranges "
        "measured on training images.",
    )
    define.string(
        "layer",
        "h",
        "Layer to export: h; group1 to group4 or a block such as group3_block2, averaged over the "
        "image; head1, ..., or z, of the projection head; spaces, of a run of looc.",
    )
    define.boolean("normalize", False, "Scale each embedding to length 1.")
    define.string(
        "data_dir", None, "For int8: directory of the TFDS data sets; by default the run's."
    )
    define.integer("examples", 200, "For int8: training images to measure the ranges on.", 1)


STUDIES = (
    *("batch_epochs", "composition", "head", "predict_transformation", "strength"),
    "temperature",
)


def _define_study(define):
    define.string("study", None, f"NAME, the first word: {', '.join(STUDIES)}.")
    define.string("out", None, "Directory of the study, with its runs, table and picture.")
    define.enum("protocol", "linear", ["linear", "knn"], "How the features of each run are scored.")
    define.boolean("debug", False, "Show the traceback of every error.")


def _define_runs_of_study(define):
    """Defines the flags of pretrain without defaults, which are the study's."""
    define = _WithoutDefaults(define)
    groups = (_define_data, _define_model, _define_method, _define_views, _define_training)
    for group in groups:
        group(define)


class _WithoutDefaults:
    """A `_flags.Define` whose flags have no value unless one is given."""

    def __init__(self, define):
        self._define = define

    def __getattr__(self, kind):
        def define(name, default, *rest):
            getattr(self._define, kind)(name, None, *rest)

        return define


def _check_study(options):
    if options.study not in STUDIES:
        got = f"got {options.study!r}" if options.study else "got none"
        raise errors.UsageError(
            f"NAME must be one of {', '.join(STUDIES)}; {got}. Write `simclr-tf study temperature "
            "--out=DIR`."
        )
    with errors.storage_errors(options.out):
        _atomic.check_path(os.path.join(options.out, "results.jsonl"))


def _check_run_dir(options):
    """Raises unless a new directory or a run that can be read can be at --run_dir."""
    path = pathlib.Path(options.run_dir)
    with errors.storage_errors(path):  # a name that is too long, a directory without access
        there = next(each for each in (path, *path.parents) if each.exists())
        flags = path / "flags.cfg"
        begun = flags.exists()
    if not there.is_dir():
        raise errors.UsageError(
            f"--run_dir must be a directory that can be written; {there} is a file. Pass another "
            "path."
        )
    if begun:
        _check_text(flags)


# Flags that belong to one method.
_METHOD_FLAGS = {
    "moco": ("queue_size", "encoder_momentum", "symmetric", "in_batch_negatives"),
    "looc": ("kept",),
}


def _check_pretrain(options):
    _check_run_dir(options)
    _check_method(options)
    _check_augmentations(options)


def _check_method(options):
    for method, names in _METHOD_FLAGS.items():
        given = [name for name in names if getattr(options, name) is not None]
        if given and options.method != method:
            raise errors.UsageError(
                f"--{given[0]} needs --method={method}; got --method={options.method}. Leave it "
                "out, or pass that method."
            )
    if options.method == "simclr":
        return
    if options.loss != "nt_xent":
        raise errors.UsageError(
            f"--method={options.method} has its own loss; got --loss={options.loss}. Leave it out, "
            "or use --method=simclr."
        )
    if not options.normalize:
        raise errors.UsageError(
            f"--method={options.method} has its own loss, of cosines; got --normalize=false. Leave "
            "it out, or use --method=simclr."
        )
    if options.micro_batch_size:
        raise errors.UsageError(
            f"--micro_batch_size needs --method=simclr; got --method={options.method}. Leave it "
            "out, and take a smaller --batch_size."
        )
    if options.method == "looc":
        _check_looc(options)


def _check_looc(options):
    if options.projection_layers < 2:
        raise errors.UsageError(
            f"--method=looc needs --projection_layers of 2 or 3; got {options.projection_layers}. "
            "Leave it out."
        )
    if options.transformed_views == "one":
        raise errors.UsageError(
            "--method=looc has views of its own; got --transformed_views=one. Leave it out."
        )
    if options.view_sizes and "rotate90" in (options.kept or ""):
        raise errors.UsageError(
            "--view_sizes is for the paper's family of views; got --kept=rotate90 too. Leave out "
            "one of the two."
        )


def _check_text(path):
    """Raises unless the flags of a run can be read."""
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise errors.UsageError(
            f"--run_dir must be the directory of a run; {path} cannot be read ({reason}). Restore "
            "it, or pass another directory."
        ) from error


def _check_augmentations(options):
    if options.augmentations and options.blur != "auto":
        raise errors.UsageError(
            f"--blur is for the paper's family; got --blur={options.blur} and --augmentations. "
            "Leave it out, and write blur or not among the --augmentations."
        )
    if options.augmentations and options.color_drop_probability != _COLOR_DROP_PROBABILITY:
        raise errors.UsageError(
            "--color_drop_probability is for the paper's family; got "
            f"{options.color_drop_probability:g} and --augmentations. Leave it out; color_drop "
            f"among the --augmentations has {_COLOR_DROP_PROBABILITY:g}."
        )
    if options.view_sizes and (options.augmentations or options.transformed_views == "one"):
        other = "--augmentations" if options.augmentations else "--transformed_views=one"
        raise errors.UsageError(
            f"--view_sizes is for the paper's family in both views; got {other} too. Leave out one "
            "of the two."
        )


PROTOCOLS = ("knn", "linear", "linear_views")


def _check_evaluate(options):
    words = (options.protocol or "knn").split(",")
    unknown = [word for word in words if word not in (*PROTOCOLS, "all")]
    if unknown:
        raise errors.UsageError(
            f"--protocol must be one or several of {', '.join(PROTOCOLS)}, or all; got "
            f"{unknown[0]!r}. Join several by commas: --protocol=knn,linear."
        )
    if not re.fullmatch(r"1|flip|crops:([1-9]|10)", options.knn_views):
        raise errors.UsageError(
            "--knn_views must be 1, flip or crops:N with N in [1, 10]; got "
            f"{options.knn_views!r}. Leave it out to use 1."
        )
    dataset = options.dataset or ""
    if options.output:
        with errors.storage_errors(options.output):
            _atomic.check_path(os.path.join(options.output, "table.json"))
    elif "," in dataset and not _is_path_with_comma(dataset):
        raise errors.UsageError(
            f"several data sets need --output, a directory for their table; got "
            f"--dataset={dataset} without. Pass --output=DIR."
        )


def _is_path_with_comma(dataset):
    kind, _, path = dataset.partition(":")
    return kind == "tfrecord" or os.path.exists(os.path.expanduser(path))


def _check_finetune(options):
    _check_run_dir(options)
    if options.label_fraction is not None and options.labels_per_class is not None:
        raise errors.UsageError(
            "--label_fraction and --labels_per_class exclude each other; got both. Leave out one."
        )


def _check_distill(options):
    _check_finetune(options)
    few = options.label_fraction is not None or options.labels_per_class is not None
    if few and not options.label_weight:
        raise errors.UsageError(
            "distill needs --label_weight above 0 to use labels; got 0. Try 0.5, or leave out "
            "--label_fraction and --labels_per_class."
        )


def _check_embed(options):
    from simclr_tf import embeddings  # imports NumPy, and TensorFlow only when it writes

    with errors.renamed_arguments(path="--output"):
        embeddings.check_path(options.output)
    _check_new(options.output)


# Of models in one file, and of archives.
_FILE_SUFFIXES = (
    *(".tflite", ".keras", ".h5", ".hdf5", ".pb", ".pbtxt", ".onnx", ".ckpt", ".npz", ".pt"),
    *(".pth", ".safetensors", ".zip", ".tar", ".gz", ".tgz"),
)


def _check_export(options):
    if options.precision == "int8" and options.format != "tflite":
        raise errors.UsageError(
            f"--precision=int8 is for --format=tflite; got --format={options.format}. Pass "
            "--format=tflite, or another precision."
        )
    name, suffix = os.path.splitext(options.output)
    suffix = suffix.lower()
    if options.format == "tflite" and suffix != ".tflite":
        raise errors.UsageError(
            f"--output must end in .tflite with --format=tflite; got {options.output!r}. Pass "
            f"--output={name}.tflite."
        )
    if options.format == "saved_model" and suffix in _FILE_SUFFIXES:
        way_out = "Drop the suffix"
        if suffix == ".tflite":
            way_out += ", or pass --format=tflite"
        raise errors.UsageError(
            f"--output must be a directory with --format=saved_model; got {options.output!r}, the "
            f"name of a file. {way_out}."
        )
    _check_new(options.output)


def _check_new(path):
    """Raises unless nothing is at a path yet, and something can be written there."""
    if os.path.lexists(path):
        raise errors.UsageError(
            f"--output must not exist; {path} does. Remove it, or choose another path."
        )
    with errors.storage_errors(path):
        _atomic.check_path(path)


_ENCODER_SOURCES = ("run_dir", "saved_model", "official_weights")

COMMANDS = {
    command.name: command
    for command in (
        Command(
            name="pretrain",
            help="learn an encoder from images; given again, it resumes",
            run="simclr_tf.commands.pretrain:pretrain",
            groups=(
                _define_common,
                _define_data,
                _define_model,
                _define_method,
                _define_init_from,
                _define_views,
                _define_training,
            ),
            required=("run_dir",),
            run_flags=("init_from",),
            check=_check_pretrain,
            resumable=(
                "run_dir",
                "data_dir",
                "cache_gigabytes",
                "checkpoint_every_steps",
                "steps_per_execution",
                "max_corrupt_share",
                "probe_every_epochs",
                "probe_examples",
                "test_split",
                "debug",
            ),
        ),
        Command(
            name="evaluate",
            help="kNN and linear accuracy of an encoder, on one data set or several",
            run="simclr_tf.commands.evaluate:evaluate_encoder",
            groups=(_define_common, _define_encoder, _define_evaluate, _define_protocols),
            exactly_one=_ENCODER_SOURCES,
            required_without_run=("dataset",),
            check=_check_evaluate,
        ),
        Command(
            name="finetune",
            help="train a pretrained encoder with few or many labels; given again, it resumes",
            run="simclr_tf.commands.finetune:finetune",
            groups=(_define_common, _define_finetune),
            required=("run_dir", "pretrained"),
            run_flags=("pretrained",),
            check=_check_finetune,
            resumable=(
                "run_dir",
                "data_dir",
                "cache_gigabytes",
                "checkpoint_every_steps",
                "steps_per_execution",
                "max_corrupt_share",
                "test_split",
                "from_scratch",
                "debug",
            ),
        ),
        Command(
            name="distill",
            help="train a student on a fine-tuned teacher's soft labels; given again, it resumes",
            run="simclr_tf.commands.distill:distill",
            groups=(_define_common, _define_distill, _define_student),
            required=("run_dir", "teacher"),
            run_flags=("teacher", "init_from"),
            check=_check_distill,
            resumable=(
                "run_dir",
                "data_dir",
                "cache_gigabytes",
                "checkpoint_every_steps",
                "steps_per_execution",
                "max_corrupt_share",
                "test_split",
                "debug",
            ),
        ),
        Command(
            name="embed",
            help="embeddings, labels and ids of a data set, as npz, Parquet or TFRecord",
            run="simclr_tf.commands.embed:embed",
            groups=(_define_common, _define_encoder, _define_embed),
            required=("output",),
            exactly_one=_ENCODER_SOURCES,
            required_without_run=("dataset",),
            check=_check_embed,
        ),
        Command(
            name="export",
            help="the encoder of a run as a SavedModel, or for TensorFlow Lite",
            run="simclr_tf.commands.export:export",
            groups=(_define_common, _define_export),
            required=("run_dir", "output"),
            takes_fine_tuned=False,
            check=_check_export,
        ),
        Command(
            name="study",
            help="an ablation of the paper (study NAME); given again, it continues",
            run="simclr_tf.commands.study:study",
            groups=(_define_study, _define_runs_of_study),
            argument="study",
            required=("out",),
            run_flags=(),
            check=_check_study,
            resumable=(
                "data_dir",
                "cache_gigabytes",
                "checkpoint_every_steps",
                "steps_per_execution",
                "max_corrupt_share",
                "probe_every_epochs",
            ),
        ),
    )
}


# Flags that are paths. Shells leave the "~" of --run_dir=~/runs as it is.
_PATHS = ("run_dir", "data_dir", "output", "saved_model", "official_weights", "cache_dir")
_PATHS += ("pretrained", "init_from", "teacher", "out")


def _flag_values(command):
    """The flags of a `Command`, unparsed."""
    define = _flags.Define()
    for group in command.groups:
        group(define)
    # Expanded before the others are parsed; declared so that --help lists it.
    define.string(
        "flagfile", None, "Read flags from this file, one a line; a recipe or RUN_DIR/flags.cfg."
    )
    return define.values


def parse(argv):
    """Command and flags of an argument list (without the program's name).

    Returns:
      (name of the command, values): values is an `absl.flags.FlagValues`, parsed.

    Raises:
      errors.UsageError: an unknown command or flag, a value out of range, a flag missing.

    Example:

    >>> command, values = simclr_tf.cli.parse(["pretrain", "--run_dir=runs/a", "--epochs=3"])
    >>> command, values.epochs, values.dataset
    ('pretrain', 3, 'shapes')
    """
    if not argv or argv[0] not in COMMANDS:
        given = f"got {argv[0]!r}" if argv else "got none"
        raise errors.UsageError(f"COMMAND must be one of {', '.join(COMMANDS)}; {given}.")
    command = COMMANDS[argv[0]]
    values, words = _flag_values(command), argv[1:]
    if command.argument and words and not words[0].startswith("-"):
        words = [f"--{command.argument}={words[0]}", *words[1:]]
    try:
        _flags.parse(values, command.name, words)
    except _flags.FlagError as error:
        raise errors.UsageError(str(error)) from None
    _check_given(command, values)
    return command.name, values


def _check_given(command, values):
    """Raises UsageError unless the flags that a command needs are there."""

    def given(names):
        return [f"--{name}" for name in names if values[name].value]

    for name in command.required:
        if not given([name]):
            raise errors.UsageError(f"{command.name} needs --{name}.")
    one_of = given(command.exactly_one)
    if command.exactly_one and len(one_of) != 1:
        names = ", ".join(f"--{name}" for name in command.exactly_one)
        raise errors.UsageError(
            f"{command.name} needs exactly one of {names}; got {' and '.join(one_of) or 'none'}."
        )
    for name in command.required_without_run:
        if not given([name]) and not given(["run_dir"]):
            raise errors.UsageError(f"{command.name} needs --{name} where it has no --run_dir.")


def options_of(values):
    """Flag values as `Options`; view sizes as a list of (side, end), "~" in paths expanded.

    Example:

    >>> _, values = simclr_tf.cli.parse(["pretrain", "--run_dir=a", "--view_sizes=16:0.5,32:1"])
    >>> simclr_tf.cli.options_of(values).view_sizes
    [(16, 0.5), (32, 1.0)]
    """
    options = values.flag_values_dict()
    for name in _PATHS:
        if options.get(name):
            options[name] = _path(options[name])
    if options.get("view_sizes"):
        options["view_sizes"] = _view_sizes(options["view_sizes"])
    return Options(**options)


def _path(text):
    """A path with "~" expanded and without slashes at its end."""
    return os.path.expanduser(text).rstrip("/") or "/"


def _view_sizes(text):
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return [(int(size), float(end)) for size, end in pairs]
    except ValueError:
        raise errors.UsageError(
            f"--view_sizes must be side:end, ... as in 16:0.5,24:0.8,32:1; got {text!r}."
        ) from None


def flag_texts(values):
    """Flag name to its text, for flags.cfg; flags without a value are left out.

    Example:

    >>> _, values = simclr_tf.cli.parse(["export", "--run_dir=runs/a", "--output=encoder/1"])
    >>> simclr_tf.cli.flag_texts(values)["layer"]
    'h'
    """
    return {
        name: str(values[name].value)
        for name in values
        if name != "flagfile" and values[name].value is not None
    }


def options_of_run(run_dir):
    """The options that a run was trained with, from its flags.cfg, with `command` for its command.

    Raises:
      errors.UsageError: there is no run.

    Example:

    >>> simclr_tf.training.RunDirectory(".").write_flags({"epochs": "7", "run_dir": "."})
    >>> simclr_tf.cli.options_of_run(".").epochs
    7
    """
    path = pathlib.Path(run_dir) / "flags.cfg"
    if not os.path.isfile(path):  # unlike that of pathlib, it raises nothing
        raise errors.UsageError(
            f"--run_dir must be the directory of a run; {run_dir} has no flags.cfg. "
            "Make one with `simclr-tf pretrain`."
        )
    _check_text(path)
    begin = re.match(r"# simclr-tf (\w+)\n", path.read_text(encoding="utf-8"))
    command = begin[1] if begin else "pretrain"
    try:
        _, values = parse([command, f"--flagfile={path}"])
    except errors.UsageError as error:
        raise errors.UsageError(
            f"--run_dir must be the directory of a run; {path} does not hold the flags of one: "
            f"{error}"
        ) from error
    # The directory may have been moved.
    return options_of(values).replace(run_dir=run_dir, command=command)


def _check_legacy_keras():
    """Raises unless the Keras that TF_USE_LEGACY_KERAS asks TensorFlow for is installed."""
    value = os.environ.get("TF_USE_LEGACY_KERAS")
    if value in ("1", "true", "True") and importlib.util.find_spec("tf_keras") is None:
        raise errors.UsageError(
            f"TF_USE_LEGACY_KERAS={value} needs tf-keras, which is not installed. Install the "
            "tf-keras of TensorFlow's version, or unset the variable."
        )


def _options_of_run_read(command, options, flag):
    """The `Options` of the run at a flag of a command, or None."""
    path = getattr(options, flag)
    if not path or (flag != "run_dir" and not os.path.isfile(f"{path}/flags.cfg")):
        return None
    trained = options_of_run(path)
    if trained.command != "pretrain" and not command.takes_fine_tuned:
        raise errors.UsageError(
            f"{command.name} takes a run of `simclr-tf pretrain`; {path} is a fine-tuned one, "
            f"whose export is {path}/export/1."
        )
    return trained


def _execute(command, values):
    """Runs a parsed command."""
    options = options_of(values)
    if command.check:
        command.check(options)
    runs = {flag: _options_of_run_read(command, options, flag) for flag in command.run_flags}
    trained = next(iter(runs.values()), None)
    defaults = flag_texts(_flag_values(command))
    invocation = Invocation(flag_texts(values), command.resumable, trained, runs, defaults)
    _check_legacy_keras()
    from simclr_tf import _quiet

    # TensorFlow logs while it is imported, and XLA and the kernels when they are first used.
    with _quiet.native_noise_hidden():
        _quiet.import_tensorflow()
        module, _, function = command.run.partition(":")
        getattr(importlib.import_module(module), function)(options, invocation)


def _help(argv):
    """Prints help; argv holds --help or is empty."""
    name = next((word for word in argv if word in COMMANDS), None)
    if name:
        print(f"simclr-tf {name}: {COMMANDS[name].help}\n")
        print(_flags.help_of(_flag_values(COMMANDS[name])))
        return
    print("Learn an image encoder without labels (SimCLR).\n\nusage: simclr-tf COMMAND --flags\n")
    for command in COMMANDS.values():
        print(f"  {command.name:<10} {command.help}")
    print("\n`simclr-tf COMMAND --help` lists the flags of a command.")


class _Terminated(BaseException):
    """SIGTERM came. Not an `Exception`: libraries catch these while they are imported."""


@contextlib.contextmanager
def _sigterm_raises():
    """Raises `_Terminated` at SIGTERM, except in blocks that have a handler of their own."""
    if threading.current_thread() is not threading.main_thread():  # Python allows it there only
        yield
        return

    def stop(number, frame):
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stops_at_sigterm(main):
    """Decorates `main`, so that it returns 75 after SIGTERM, from its first line on."""

    @functools.wraps(main)
    def stopping(argv=None):
        try:
            with _sigterm_raises():
                return main(argv)
        except _Terminated:
            print("simclr-tf: stopped by SIGTERM; start the same command again.", file=sys.stderr)
            return os.EX_TEMPFAIL

    return stopping


@_stops_at_sigterm
def main(argv=None):
    """Runs a command line and returns its exit code; argv is without the program's name.

    Only the package's own exceptions become one line; any other is a bug and is raised.

    Example:

    >>> simclr_tf.cli.main(["evaluate", "--saved_model=encoder/1"])
    2
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout is gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(argv):
    if not argv or {"-h", "--help", "-help", "help"} & set(argv):
        _help(argv)
        return 0 if argv else 2
    debug = "--debug" in argv or "--debug=true" in argv
    try:
        name, values = parse(argv)
        _execute(COMMANDS[name], values)
    except KeyboardInterrupt:
        return 130
    except errors.Error as error:
        if debug and not isinstance(error, errors.TryAgainError):
            raise
        _print_error(error, COMMANDS.get(argv[0]))
        return _exit_code(error)
    return 0


def _exit_code(error):
    """2 where the cause is a flag, or what it names (a path, a data set); else 75 or 1.

    Every argument that the commands pass to the library comes from a flag.
    """
    if isinstance(error, errors.TryAgainError):
        return os.EX_TEMPFAIL
    if isinstance(error, errors.StorageError):
        return 2 if error.wrong_path else 1
    return 2 if isinstance(error, errors.ArgumentError) else 1


def _print_error(error, command):
    line = " ".join(str(error).split())
    if command:
        line = name_flags(line, set(_flag_values(command)))
    print(f"simclr-tf: {line}", file=sys.stderr)


def name_flags(message, flags):
    """Writes `--` before the arguments in a message of the library that are flags of a command.

    Args:
      message: one line.
      flags: set of the names of the flags.

    Example:

    >>> simclr_tf.cli.name_flags("batch_size must be even; got 3.", {"batch_size"})
    '--batch_size must be even; got 3.'
    """
    return errors.rename_arguments(message, {name: f"--{name}" for name in flags})
