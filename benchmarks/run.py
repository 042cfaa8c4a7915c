"""All benchmarks: tables on the terminal, and one JSON file with the machine described.

    python benchmarks/run.py [--only=views,loss] [--repeats=5] [--json=benchmarks.json]

What each table compares stands in the module of its name. All figures of a table come from one
run, contenders in turns. The whole takes about half an hour on two cores.
"""

import json
import pathlib

import convolution
import loss
import measure
import serving
import step
import views
from absl import app, flags

from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf import devices  # noqa: E402 - after TensorFlow's start-up lines


def in_best_precision(function, *arguments):
    """Calls it under the policy that `--precision=auto` takes."""
    tf.keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
    try:
        return function(*arguments)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


# Name: (title, columns, repeats -> rows)
TABLES = {
    "views": ("Views", views.COLUMNS, views.run),
    "loss": ("NT-Xent", loss.COLUMNS, loss.run),
    "convolution": ("Weight gradients, bfloat16", convolution.COLUMNS, convolution.run),
    "step": (
        "A training step, half width",
        step.STEP_COLUMNS,
        lambda repeats: in_best_precision(step.run_step, repeats, 0.5),
    ),
    "step_full": (
        "A training step, full width",
        step.STEP_COLUMNS,
        lambda repeats: in_best_precision(step.run_step, repeats, 1),
    ),
    "serving": ("Requests to the exported encoder", serving.COLUMNS, serving.run),
    "cache": ("Gradient caching", step.CACHE_COLUMNS, lambda repeats: step.run_cache(1)),
}


def main(_):
    """Runs the tables asked for."""
    options = flags.FLAGS
    unknown = sorted({*options.only} - {*TABLES})
    if unknown:
        raise app.UsageError(f"--only takes {', '.join(TABLES)}; got {', '.join(unknown)}.")
    found = {"machine": measure.machine()}
    print("  ".join(f"{key}: {value}" for key, value in found["machine"].items()))
    for name in options.only or TABLES:
        title, columns, run = TABLES[name]
        found[name] = run(options.repeats)
        measure.show(title, columns, found[name])
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    flags.DEFINE_list("only", [], "Tables to make; all by default.")
    flags.DEFINE_integer("repeats", 5, "Counted calls of each contender.", 1)
    flags.DEFINE_string("json", None, "Where the figures go, besides the terminal.")
    app.run(main)
