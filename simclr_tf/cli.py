"""The command line: `simclr-tf COMMAND --flags`. The only module that reads a flag.

TensorFlow is imported only once a command is to run, so help and mistakes are answered at once.
Exit codes: 0 done, 1 the command failed, 2 it was given wrongly, 75 the machine stopped it and the
same command goes on (SIGTERM, a worker that is gone), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import pathlib
import sys
import types

from absl import flags as absl_flags

from simclr_tf import errors

COMMANDS = {
    "pretrain": "learn an encoder from images; given again, it resumes",
    "evaluate": "kNN and linear accuracy of a run's encoder",
    "embed": "embeddings, labels and ids of a data set, as npz, Parquet or TFRecord",
    "export": "the encoder of a run as a SavedModel, or for TensorFlow Lite",
}
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"
# Flags that do not change what is learnt: they may differ when a run is resumed.
RESUMABLE_FLAGS = (
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
)


def _define_common(define):
    define.string("run_dir", None, "Directory of the run.")
    define.boolean("debug", False, "Show the whole traceback of an error.")


def _define_data(define):
    define.string(
        "dataset",
        "shapes",
        "shapes (drawn in code), folder:PATH, npz:PATH, tfrecord:GLOB, or any TFDS name.",
    )
    define.string("data_dir", None, "Where TFDS finds its data sets.")
    define.string("train_split", "train", "Split to train on, slices as in TFDS: train[:90%].")
    define.string("test_split", "test", "Labelled split for the kNN probe and `evaluate`.")
    define.integer(
        "image_size", None, "Side of the images in pixels; by default that of the data, or 224.", 1
    )
    define.integer(
        "source_size",
        None,
        "Longer side at which photographs are kept to crop views from; by default 1.5 x the image "
        "size. Larger: sharper small crops, more memory.",
        1,
    )
    define.float(
        "max_corrupt_share",
        0.01,
        "Fraction of unreadable images at which a run stops.",
        0.0,
        1.0,
    )
    define.float("cache_gigabytes", 2.0, "A data set up to this size is kept in memory.", 0.0)


def _define_model(define):
    define.string("encoder", "resnet", "resnet (see --resnet_depth), or keras_cv/NAME.")
    define.enum(
        "resnet_depth", "18", ["18", "34", "50", "101", "152", "200"], "Layers of the ResNet."
    )
    define.float("width", 1.0, "Width multiplier of the ResNet, above 0.", 1e-3)
    define.float("sk_ratio", 0.0, "Above 0: selective kernels (SimCLRv2: 0.0625).", 0.0)
    define.enum("stem", "auto", ["auto", "cifar", "imagenet"], "First layers of the ResNet.")
    define.integer("projection_dim", 128, "Length of z.", 1)
    define.integer("projection_hidden_dim", None, "Width of the head; by default that of h.", 1)
    define.integer("projection_layers", 2, "Layers of the head, 2 or 3.", 2, 3)
    define.float("temperature", 0.1, "Temperature of NT-Xent, above 0.", 1e-6)


def _define_views(define):
    define.float(
        "color_jitter_strength",
        None,
        "Strength of the colour jitter; by default 1.0, and 0.5 up to 64 pixels.",
        0.0,
    )
    define.float("color_drop_probability", 0.2, "Fraction of the views that are grey.", 0.0, 1.0)
    define.float("min_crop_area", 0.08, "Least area of a crop, as a share.", 1e-4, 1.0)
    define.enum("blur", "auto", ["auto", "yes", "no"], "Blur; auto: above 64 pixels.")
    define.string(
        "view_sizes",
        None,
        "Smaller views in the early epochs: side:end, ..., with ends as shares of the epochs; "
        "16:0.5,24:0.8,32:1 is 16 pixels for the first half, 32 for the last fifth.",
    )


def _define_training(define):
    define.integer("epochs", 100, "Passes over the data.", 1)
    define.integer("train_steps", None, "Steps to take; overrides --epochs.", 1)
    define.integer("batch_size", 512, "Images a step, over all devices.", 2)
    define.enum("optimizer", "lars", ["lars", "lamb", "sgd", "adamw"], "Optimizer.")
    define.float("learning_rate", 0.3, "Peak rate, before scaling.", 0.0)
    define.enum(
        "learning_rate_scaling",
        "linear",
        ["linear", "sqrt", "none"],
        "linear: rate x batch / 256; sqrt: rate x sqrt(batch); none.",
    )
    define.float("warmup_epochs", None, "By default a tenth of the epochs, 10 at most.", 0.0)
    define.float("weight_decay", 1e-6, "Weight decay; biases and norms take none.", 0.0)
    define.float("momentum", 0.9, "Momentum of lars and sgd.", 0.0, 0.9999)
    define.integer("micro_batch_size", None, "Embed the views in pieces of so many.", 1)
    define.integer(
        "steps_per_execution",
        0,
        "Steps that the device takes before Python hears of it; 0 chooses: 1 on a processor.",
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
    define.integer(
        "probe_every_epochs", 0, "kNN probe every so many epochs; 0: ten in a run; -1: never.", -1
    )
    define.integer("probe_examples", 5000, "Examples of each split that the probe uses.", 1)


def _define_evaluate(define):
    define.enum("protocol", "knn", ["knn", "linear", "all"], "Which accuracy.")
    define.boolean("baselines", False, "Also raw pixels and a random encoder.")
    define.string("data_dir", None, "By default the run's.")
    define.string("train_split", None, "By default the run's.")
    define.string("test_split", None, "By default the run's.")
    define.integer("knn_k", 200, "Neighbours of the weighted kNN.", 1)
    define.float("knn_temperature", 0.1, "Temperature of its weights.", 1e-6)
    define.integer("batch_size", 256, "Images at a time.", 1)


def _define_embed(define):
    define.string("output", None, "File to write: .npz, .parquet or .tfrecord.")
    define.string(
        "saved_model",
        None,
        "Instead of --run_dir: an exported SavedModel, or a directory of numbered ones.",
    )
    define.string("dataset", None, "As for pretrain; by default the run's.")
    define.string("data_dir", None, "By default the run's.")
    define.string("split", None, "By default the run's --train_split, or train.")
    define.integer("image_size", None, "Side of the images in pixels; by default the encoder's.", 1)
    define.float(
        "max_corrupt_share",
        None,
        "Fraction of unreadable images at which it stops; by default the run's, or 0.01.",
        0.0,
        1.0,
    )
    define.integer("batch_size", 256, "Images at a time.", 1)


def _define_export(define):
    define.string(
        "output", None, "What to write, encoder/1 or encoder.tflite, say; it must not exist."
    )
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
        "Of the signatures' weights and arithmetic; int8 is for tflite, with ranges taken from "
        "training images.",
    )
    define.string(
        "layer",
        "h",
        "What is given: h; group1 to group4 or a block such as group3_block2, averaged over the "
        "image; head1, ..., or z, of the projection head.",
    )
    define.boolean("normalize", False, "Scale each embedding to length 1.")
    define.string("data_dir", None, "For int8: where TFDS finds its data sets; the run's.")
    define.integer("examples", 200, "For int8: training images to take the ranges from.", 1)


_GROUPS = {
    "pretrain": (_define_common, _define_data, _define_model, _define_views, _define_training),
    "evaluate": (_define_common, _define_evaluate),
    "embed": (_define_common, _define_embed),
    "export": (_define_common, _define_export),
}
_REQUIRED = {
    "pretrain": ["run_dir"],
    "evaluate": ["run_dir"],
    "embed": ["output"],
    "export": ["run_dir", "output"],
}


def _flag_values(command):
    """The flags of one command, unparsed."""
    values = absl_flags.FlagValues()

    def string(name, default, text):
        absl_flags.DEFINE_string(name, default, text, flag_values=values)

    def boolean(name, default, text):
        absl_flags.DEFINE_boolean(name, default, text, flag_values=values)

    def enum(name, default, choices, text):
        absl_flags.DEFINE_enum(name, default, choices, text, flag_values=values)

    def number(kind):
        def define(name, default, text, low=None, high=None):
            kind(name, default, text, lower_bound=low, upper_bound=high, flag_values=values)

        return define

    define = types.SimpleNamespace(
        string=string,
        boolean=boolean,
        enum=enum,
        integer=number(absl_flags.DEFINE_integer),
        float=number(absl_flags.DEFINE_float),
    )
    for group in _GROUPS[command]:
        group(define)
    # `--flagfile` is expanded by absl itself; declared so that --help lists it.
    string("flagfile", "", "Read flags from this file, one a line; a recipe or RUN_DIR/flags.cfg.")
    return values


def parse(argv):
    """Command and flags of an argument list (without the program's name).

    Returns:
      (command, values): values is an `absl.flags.FlagValues`, parsed.

    Raises:
      errors.UsageError: an unknown command or flag, a value out of range, a flag missing.
    """
    if not argv or argv[0] not in COMMANDS:
        given = f"got {argv[0]!r}" if argv else "got none"
        raise errors.UsageError(f"COMMAND must be one of {', '.join(COMMANDS)}; {given}.")
    command = argv[0]
    values = _flag_values(command)
    try:
        rest = values([command, *argv[1:]])[1:]
    except absl_flags.Error as error:
        reason = " ".join(str(error).split())
        raise errors.UsageError(f"{reason}. See simclr-tf {command} --help.") from None
    if rest:
        raise errors.UsageError(f"{command} takes flags only; got {rest[0]!r}.")
    for name in _REQUIRED[command]:
        if not values[name].value:
            raise errors.UsageError(f"{command} needs --{name}.")
    if command == "embed":
        _check_embed(values)
    return command, values


def _check_embed(values):
    if bool(values.run_dir) == bool(values.saved_model):
        given = "both" if values.run_dir else "neither"
        raise errors.UsageError(f"embed needs either --run_dir or --saved_model; got {given}.")
    if values.saved_model and not values.dataset:
        raise errors.UsageError("embed needs --dataset where it has no --run_dir to take it from.")
    from simclr_tf import embeddings  # NumPy comes with it

    embeddings.check_path(values.output)


def options_of(values):
    """Flag values as plain attributes, the textual ones taken apart."""
    options = types.SimpleNamespace(**values.flag_values_dict())
    if hasattr(options, "view_sizes") and options.view_sizes:
        options.view_sizes = _view_sizes(options.view_sizes)
    return options


def _view_sizes(text):
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return [(int(size), float(end)) for size, end in pairs]
    except ValueError:
        raise errors.UsageError(
            f"--view_sizes must be side:end, ... as in 16:0.5,24:0.8,32:1; got {text!r}."
        ) from None


def flag_texts(values):
    """Flag name to its text, for flags.cfg; flags without a value are left out."""
    return {
        name: str(values[name].value)
        for name in values
        if name != "flagfile" and values[name].value is not None
    }


def _options_of_run(run_dir):
    """The `pretrain` options of a run, from its flags.cfg."""
    path = pathlib.Path(run_dir) / "flags.cfg"
    if not path.exists():
        raise errors.UsageError(
            f"--run_dir must be the directory of a run; {run_dir} has no flags.cfg. "
            "Make one with `simclr-tf pretrain`."
        )
    _, values = parse(["pretrain", f"--flagfile={path}"])
    options = options_of(values)
    options.run_dir = run_dir  # the directory may have been moved
    return options


def _execute(command, values):
    options = options_of(values)
    of_run = command != "pretrain" and options.run_dir  # embed can do without
    trained = _options_of_run(options.run_dir) if of_run else None
    if getattr(options, "data_dir", None) and trained:
        trained.data_dir = options.data_dir
    from simclr_tf import _quiet

    _quiet.import_tensorflow()
    # XLA and the kernels speak up when they are first used, too.
    with _quiet.native_noise_hidden():
        _run_job(command, values, options, trained)


def _run_job(command, values, options, trained):
    if command == "pretrain":
        from simclr_tf.commands.pretrain import pretrain

        directory = pretrain(options, flag_texts(values), RESUMABLE_FLAGS)
        print(f"run: {directory.path}\nviews: {directory.views}\nencoder: {directory.export}")
    elif command == "evaluate":
        from simclr_tf.commands.evaluate import evaluate_run

        evaluate_run(options, trained)
    elif command == "embed":
        from simclr_tf.commands.embed import embed

        embed(options, trained)
    else:
        from simclr_tf.commands.export import export

        export(options, trained)


def _help(argv):
    """Prints help; argv holds --help or is empty."""
    command = next((word for word in argv if word in COMMANDS), None)
    if command:
        print(f"simclr-tf {command}: {COMMANDS[command]}\n")
        print(_flag_values(command).get_help())
        return
    print("Learn an image encoder without labels (SimCLR).\n\nusage: simclr-tf COMMAND --flags\n")
    for name, text in COMMANDS.items():
        print(f"  {name:<10} {text}")
    print("\n`simclr-tf COMMAND --help` lists the flags of a command.")


def main(argv=None):
    """Runs a command line and returns its exit code; argv is without the program's name."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"-h", "--help", "-help", "help"} & set(argv):
        _help(argv)
        return 0 if argv else 2
    debug = "--debug" in argv or "--debug=true" in argv
    try:
        _execute(*parse(argv))
    except KeyboardInterrupt:
        return 130
    except errors.UsageError as error:
        if debug:
            raise
        return _fail(error, 2)
    except errors.TryAgainError as error:
        return _fail(error, TRY_AGAIN)
    except (ValueError, OSError, RuntimeError) as error:
        if debug or not _is_for_user(error):
            raise
        return _fail(error, 1)
    return 0


def _is_for_user(error):
    """Whether an exception is ours to say in one line; TensorFlow's own keep their traceback."""
    return type(error).__module__.split(".")[0] in ("builtins", "simclr_tf")


def _fail(error, code):
    print(f"simclr-tf: {' '.join(str(error).split())}", file=sys.stderr)
    return code
