"""`simclr-tf preview`: what a model would see of a data set, and a plan and a recipe for a run."""

from __future__ import annotations

import resource
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _atomic, augment, devices, errors
from simclr_tf.commands.build import (
    build_augmentation,
    build_model,
    counted,
    drawn_families,
    load,
    log,
    prepare_process,
    report_unreadable,
)
from simclr_tf.commands.checks import data_set_names
from simclr_tf.commands.pretrain import build_optimizer, check_batch, check_schedules, steps_of
from simclr_tf.commands.recipe import (
    Facts,
    Setting,
    epochs_for,
    flag_file,
    image_size_for,
    recommend,
)
from simclr_tf.commands.views import parse_view_sizes
from simclr_tf.images import centre_square
from simclr_tf.report import Sheet, draw_preview
from simclr_tf.report.verdict import duration

_ROWS = 6  # images
_OWN_FLAGS = ("output", "write_recipe", "measure_steps", "debug", "flagfile")
_MEASURED_ON_CPU = 64  # images of a step; time and memory of a CPU grow with the batch
_LENGTHS = ("epochs", "train_steps")


def preview(options, invocation):
    """Draws the picture, prints plan and recipe for each data set, and writes the recipe.

    Args:
      options: attributes named as the flags of `simclr-tf preview`, which include those of
        `pretrain`.
      invocation: `flags`, dict of flag name to its text; `given`, names of the flags that the user
        chose, which the recipe keeps; `given_as_none`, names of those that it leaves out.

    Returns:
      dict of a data set's name to the settings of its recipe.

    Raises:
      errors.Error: with a message for the user.
    """
    given = {name: invocation.flags[name] for name in invocation.given if name not in _OWN_FLAGS}
    sheets, recipes = [], {}
    check_schedules(options)
    prepare_process(options, strategy="one")
    for name in data_set_names(options.dataset):
        chosen = {**given, "dataset": name}
        left_out = invocation.given_as_none
        sheet, recipe = _of_data_set(options.replace(dataset=name), chosen, left_out)
        sheets.append(sheet)
        recipes[name] = recipe
    with errors.storage_errors(options.output), _atomic.atomic_path(options.output) as path:
        draw_preview(sheets, path)
    print(f"picture: {options.output}")
    if options.write_recipe:
        text = flag_file(next(iter(recipes.values())))
        with errors.storage_errors(options.write_recipe):
            with _atomic.atomic_path(options.write_recipe) as path:
                path.write_text(text, encoding="utf-8")
        print(
            f"recipe: {options.write_recipe}\nnext: simclr-tf pretrain "
            f"--flagfile={options.write_recipe} --run_dir=runs/new"
        )
    return recipes


def _of_data_set(options, given, left_out):
    """(`Sheet`, settings) of a data set; prints its plan and its recipe."""
    source, accelerator = load(options, options.train_split, "--train_split"), not devices.on_cpu()
    settings, options = [], options
    if "image_size" not in given:
        common = None if source.whole_side else source.image_size
        size, reason = image_size_for(common, accelerator)
        settings.append(Setting("image_size", str(size), reason))
        if size != source.image_size:
            source = load(options, options.train_split, "--train_split", size)
    facts = Facts(source.num_examples, source.image_size, accelerator, _precision())
    settings += recommend(facts, given, left_out)
    chosen = [each for each in settings if each.flag not in given]  # the user's stand in it
    options = _with(options, chosen).replace(image_size=source.image_size)
    print(source.description)
    print(
        f"{counted(source.num_examples, 'image')} of {counted(source.image_size, 'pixel')}, "
        f"{len(source.corrupt)} unreadable"
    )
    keras.mixed_precision.set_global_policy(devices.precision_policy(options.precision))
    with report_unreadable(source):
        sheet = _sheet(options, source)
        plan = _measure(options, source)
    if not {*_LENGTHS} & {*given}:
        epochs, reason = epochs_for(plan.seconds_per_epoch, accelerator)
        settings.append(Setting("epochs", str(epochs), reason))
        options = options.replace(epochs=epochs)
    _print_plan(plan, options, source)
    _print_recipe(settings)
    return sheet, settings


def _precision():
    """What --precision=auto is on this device."""
    policy = devices.precision_policy("auto")
    names = {policy: name for name, policy in devices.PRECISIONS.items()}
    return names[policy]


def _with(options, settings):
    """The options with the values of a recipe, each as the type that the flag has."""
    changes = {}
    for flag, text, _ in settings:
        if text == str(getattr(options, flag)):
            continue
        changes[flag] = _TYPES.get(flag, str)(text)
    return options.replace(**changes)


# Of the flags that `recommend` sets.
_TYPES = {
    **dict.fromkeys(("batch_size", "image_size", "feature_dim", "projection_layers"), int),
    **dict.fromkeys(
        ("width", "learning_rate", "weight_decay", "temperature", "warmup_epochs"), float
    ),
    **dict.fromkeys(("min_crop_area", "color_jitter_strength", "color_drop_probability"), float),
    "view_sizes": parse_view_sizes,
    "whitening": lambda text: text == "true",
}


# -- the picture ---------------------------------------------------------------------------------


def _sheet(options, source):
    """Images of the training split, views of them, and each operator alone."""
    rows = min(_ROWS, source.num_examples)
    batch = next(iter(source.epochs(rows, seed=options.seed)))
    images, extent = (batch["image"], batch["extent"]) if source.whole_side else (batch, None)
    families = drawn_families(options, build_augmentation(options, source.image_size))
    families = [_not_compiled(each) for each in families]
    columns = {}
    sizes = options.view_sizes or ()
    for view in range(2 * max(1, len(sizes))):
        family = families[view // 2 if sizes else view % len(families)]
        drawn = family(images, seed=view, extent=extent)
        pixels = f"\n{drawn.shape[1]} pixels" if sizes else ""
        columns[f"view {view % 2 + 1}{pixels}"] = drawn.numpy()
    squares = _squares(images, extent, source.image_size)
    for operator in _operators(families[-1]):
        name, always = augment.name_of(operator), _always(operator)
        probability = getattr(operator, "probability", 1.0)
        heading = name if probability == 1.0 else f"{name}\np = {probability:g}"
        columns.setdefault(heading, always(squares, seed=options.seed).numpy())
    title = f"{source.name}, {source.split}: {source.image_size} pixels"
    return Sheet(title, squares.numpy(), columns)


def _squares(images, extent, size):
    """The centre squares of images, float32 [n, size, size, 3]."""
    if extent is None:
        return centre_square(images, size)
    parts = [
        centre_square(image[None, :height, :width], size)
        for image, (height, width) in zip(images, extent.numpy())
    ]
    return tf.concat(parts, axis=0)


def _not_compiled(view):
    """The same view without XLA, which would take longer to compile than to draw it once."""
    if type(view) is not augment.RandomView:
        return view
    return augment.RandomView(**{**view.get_config(), "jit_compile": False})


def _operators(family):
    """The operators of a family, in their order."""
    if isinstance(family, augment.RandomView):
        return family.chain()
    if isinstance(family, augment.SharedView):
        return _operators(family.family)
    if isinstance(family, augment.Compose):
        return [each for operator in family.operators for each in _operators(operator)]
    return [family]


def _always(operator):
    """The operator, applied to every image."""
    config = operator.get_config()
    if "probability" not in config:
        return operator
    return type(operator)(**{**config, "probability": 1.0})


# -- the plan ------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What a run would take.

    Attributes:
      encoder_parameters, head_parameters: numbers of trainable weights.
      steps_per_epoch: int.
      seconds_per_epoch: float; None: not measured.
      num_bytes: memory of a step of the whole batch; None: not measured.
      measured: how it was measured, in words.
    """

    encoder_parameters: int
    head_parameters: int
    steps_per_epoch: int
    seconds_per_epoch: float | None = None
    num_bytes: float | None = None
    measured: str = ""


def _measure(options, source):
    """Builds the model and measures a few steps of it; a `_Plan`."""
    check_batch(options)
    steps = steps_of(options, source)
    model = build_model(options, source.image_size)
    parameters = _parameters(model.encoder), _parameters(model.projection_head)
    if not options.measure_steps:
        return _Plan(*parameters, steps.per_epoch)
    batch = options.batch_size
    if devices.on_cpu() and not options.micro_batch_size:  # which divides the batch
        batch = min(batch, _MEASURED_ON_CPU)
    of_sizes = " with each size of view" if options.view_sizes else ""
    log(
        f"measuring {counted(options.measure_steps, 'step')} of {counted(batch, 'image')}{of_sizes}"
    )
    before, seconds, begin = _memory(), 0.0, 0.0
    # The mean over the run: each size counts by its fraction of the epochs.
    ends = [end for _, end in options.view_sizes] if options.view_sizes else [1.0]
    for family, end in zip(drawn_families(options, model.augment), ends):
        if options.view_sizes:
            model.augment = family
        model.compile(optimizer=build_optimizer(options, steps))
        seconds += (end - begin) * _seconds_of_step(model, options, source, batch)
        begin = end
    share = options.batch_size / batch
    scaled = f", of {batch} images, scaled to {options.batch_size}" if share != 1 else ""
    return _Plan(
        *parameters,
        steps.per_epoch,
        seconds * share * steps.per_epoch,
        before + (_memory() - before) * share,
        f"{counted(options.measure_steps, 'step')} measured{of_sizes}{scaled}",
    )


def _seconds_of_step(model, options, source, batch):
    """Trains a compiled model for --measure_steps steps, after one that is traced and compiled."""
    labels = {"labels": True} if options.loss == "supervised" else {}
    stream, clock = source.epochs(batch, options.seed, **labels), _Clock()
    count = options.measure_steps + 1
    model.fit(stream, steps_per_epoch=count, epochs=1, callbacks=[clock], shuffle=False, verbose=0)
    return (clock.times[-1] - clock.times[0]) / options.measure_steps


def _parameters(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)


class _Clock(keras.callbacks.Callback):
    """The times at which steps end."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        """Reads the loss, which waits for the device."""
        float(logs["loss"])
        self.times.append(time.perf_counter())


def _memory():
    """Bytes: the peak of the first GPU, or that of this process on a CPU."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _print_plan(plan, options, source):
    rows = [
        (
            "network",
            f"{counted(plan.encoder_parameters, 'parameter')}, "
            f"{plan.head_parameters:,} more in the projection head",
        ),
        (
            "epoch",
            f"{counted(plan.steps_per_epoch, 'step')} of {counted(options.batch_size, 'image')}",
        ),
    ]
    if plan.seconds_per_epoch is not None:
        steps = options.train_steps or options.epochs * plan.steps_per_epoch
        total = plan.seconds_per_epoch * steps / plan.steps_per_epoch
        whose = "this process" if devices.on_cpu() else "the GPU"
        rows += [
            ("time", f"{duration(plan.seconds_per_epoch)} an epoch ({plan.measured})"),
            ("memory", f"about {plan.num_bytes / 2**30:.1f} GB of {whose}"),
            ("run", f"{counted(steps, 'step')}, {duration(total)} of training steps"),
        ]
    _print_rows("plan", rows)


def _print_recipe(settings):
    _print_rows("recipe", [(f"--{flag}={value}", reason) for flag, value, reason in settings])


def _print_rows(title, rows):
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
