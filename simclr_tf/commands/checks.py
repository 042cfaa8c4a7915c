"""Checks of the options of a command before TensorFlow is imported.

Each raises `errors.UsageError` with one line that says what to do.
"""

from __future__ import annotations

import os
import pathlib
import re

from simclr_tf import _atomic, errors
from simclr_tf.commands import flags


def check_study(options):
    """Checks of `study`: its name, and a directory that can be written."""
    if options.study not in flags.STUDIES:
        got = f"got {options.study!r}" if options.study else "got none"
        raise errors.UsageError(
            f"NAME must be one of {', '.join(flags.STUDIES)}; {got}. Write `simclr-tf study "
            "temperature --out=DIR`."
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
        check_text(flags)


PROBES = ("knn", "linear")

# Flags that belong to one method.
_METHOD_FLAGS = {
    "moco": ("queue_size", "encoder_momentum", "symmetric", "in_batch_negatives"),
    "looc": ("kept",),
}


def check_pretrain(options):
    """Checks of `pretrain`: the run directory, the method, the views."""
    _check_run_dir(options)
    _check_method(options)
    _check_augmentations(options)
    _check_probes(options)
    _check_views(options)


def _check_probes(options):
    """Raises unless the probes are known, and their splits have a data set."""
    unknown = [word for word in options.probe_protocols.split(",") if word not in PROBES]
    if unknown:
        raise errors.UsageError(
            f"--probe_protocols must be {', '.join(PROBES)}, or both joined by a comma; got "
            f"{unknown[0]!r}. Leave it out to use knn."
        )
    for name in ("probe_train_split", "probe_test_split"):
        if getattr(options, name) and not options.probe_dataset:
            raise errors.UsageError(
                f"--{name} needs --probe_dataset; got it without. Pass --probe_dataset, or "
                "--test_split for that of the run."
            )


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
    if options.weight_average:
        raise errors.UsageError(
            f"--weight_average needs --method=simclr; got --method={options.method}. Leave it out."
        )
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


def check_text(path):
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
    of_the_family = {
        "color_drop": flags.COLOR_DROP_PROBABILITY,
        "color_jitter": flags.COLOR_JITTER_PROBABILITY,
    }
    for name, default in of_the_family.items():
        probability = getattr(options, f"{name}_probability")
        if options.augmentations and probability != default:
            raise errors.UsageError(
                f"--{name}_probability is for the paper's family; got {probability:g} and "
                f"--augmentations. Leave it out; {name} among the --augmentations has {default:g}."
            )
    if options.view_sizes and (options.augmentations or options.transformed_views == "one"):
        other = "--augmentations" if options.augmentations else "--transformed_views=one"
        raise errors.UsageError(
            f"--view_sizes is for the paper's family in both views; got {other} too. Leave out one "
            "of the two."
        )


def _check_views(options):
    if options.min_crop_area > options.max_crop_area:
        raise errors.UsageError(
            f"--min_crop_area must be at most --max_crop_area; got {options.min_crop_area:g} and "
            f"{options.max_crop_area:g}. Raise the latter, up to 1."
        )
    if not options.views:
        return
    other, way_out = None, "Leave out one of the two."
    if options.method == "looc":
        other = "--method=looc, which has views of its own"
    elif options.transformed_views == "one":
        other = "--transformed_views=one, which has two views of one crop"
    elif options.view_sizes:
        other = "--view_sizes, which is for two views of one size"
        way_out = "Leave out one of the two; --view_sizes=none leaves out those of a recipe."
    if other:
        raise errors.UsageError(
            f"--views gives the views and their sizes; got {other}, too. {way_out}"
        )
    crops = "crop" in re.split(r"\s*,\s*", (options.augmentations or "crop").strip())
    if not crops:
        raise errors.UsageError(
            f"--views needs crop among the --augmentations; got {options.augmentations!r}. Add it."
        )


PROTOCOLS = ("knn", "linear", "linear_views")


def check_evaluate(options):
    """Checks of `evaluate`: protocols, views and where the table goes."""
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


def check_finetune(options):
    """Checks of `finetune`: the run directory, and which labels."""
    _check_labels(options)
    if options.learning_rate_from_scratch is not None and not options.from_scratch:
        raise errors.UsageError(
            "--learning_rate_from_scratch needs --from_scratch; got it without. Leave it out, or "
            "pass both."
        )


def _check_labels(options):
    _check_run_dir(options)
    if options.label_fraction is not None and options.labels_per_class is not None:
        raise errors.UsageError(
            "--label_fraction and --labels_per_class exclude each other; got both. Leave out one."
        )


def check_distill(options):
    """Checks of `distill`: those of `finetune`, and the weight of the labels."""
    _check_labels(options)
    few = options.label_fraction is not None or options.labels_per_class is not None
    if few and not options.label_weight:
        raise errors.UsageError(
            "distill needs --label_weight above 0 to use labels; got 0. Try 0.5, or leave out "
            "--label_fraction and --labels_per_class."
        )


def check_embed(options):
    """Checks of `embed`: one layer, and a new file of a format that can be written."""
    if options.layer and ("," in options.layer or options.layer == "all"):
        raise errors.UsageError(
            f"--layer must be one layer; got {options.layer!r}. Write a file for each layer."
        )
    from simclr_tf import embeddings  # imports NumPy, and TensorFlow only when it writes

    with errors.renamed_arguments(path="--output"):
        embeddings.check_path(options.output)
    _check_new(options.output)


def check_preview(options):
    """Checks of `preview`: those of a run, and the files that it writes."""
    _check_method(options)
    _check_augmentations(options)
    _check_probes(options)
    _check_views(options)
    if not options.output.lower().endswith(".png"):
        raise errors.UsageError(
            f"--output must end in .png; got {options.output!r}. Pass --output={options.output}"
            ".png."
        )
    with errors.storage_errors(options.output):
        _atomic.check_path(options.output)
    if not options.write_recipe:
        return
    if len(data_set_names(options.dataset)) > 1:
        raise errors.UsageError(
            f"--write_recipe is for one data set; got --dataset={options.dataset}. Leave it out, "
            "or pass one."
        )
    if os.path.lexists(options.write_recipe):
        raise errors.UsageError(
            f"--write_recipe must not exist; {options.write_recipe} does. Remove it, or choose "
            "another path."
        )
    with errors.storage_errors(options.write_recipe):
        _atomic.check_path(options.write_recipe)


def data_set_names(text):
    """The data sets in the text of --dataset, joined by commas."""
    if _is_path_with_comma(text):
        return [text]
    return [name.strip() for name in text.split(",") if name.strip()]


def check_report(options):
    """Checks of `report`: an HTML file, which is required for several runs."""
    several = "," in options.run_dir and not os.path.exists(options.run_dir)
    if not options.output:
        if several:
            raise errors.UsageError(
                f"several runs need --output, a file for their page; got "
                f"--run_dir={options.run_dir} without. Pass --output=report.html."
            )
        return
    if not options.output.lower().endswith((".html", ".htm")):
        raise errors.UsageError(
            f"--output must end in .html; got {options.output!r}. Pass --output={options.output}"
            ".html."
        )
    with errors.storage_errors(options.output):
        _atomic.check_path(options.output)


# Of models in one file, and of archives.
_FILE_SUFFIXES = (
    *(".tflite", ".keras", ".h5", ".hdf5", ".pb", ".pbtxt", ".onnx", ".ckpt", ".npz", ".pt"),
    *(".pth", ".safetensors", ".zip", ".tar", ".gz", ".tgz"),
)


def check_export(options):
    """Checks of `export`: format, precision and a new path."""
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
