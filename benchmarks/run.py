"""Runs all benchmarks, prints their tables, and writes a JSON file with a machine description.

    python benchmarks/run.py [--only=views,loss] [--repeats=5] [--json=benchmarks.json]

The module of a table documents what it compares. All figures of a table come from one run, timed
alternately. All tables take about half an hour on two cores. On a GPU those of accelerator.py are
added, as "device_views" and so on.
"""

import json
import pathlib

from absl import app, flags

import accelerator
import convolution
import input as input_benchmark
import loss
import measure
import serving
import step
import views
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf import devices  # noqa: E402 - after TensorFlow's start-up lines


def in_best_precision(function, *arguments):
    """Calls a function under the precision policy of `--precision=auto`."""
    tf.keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
    try:
        return function(*arguments)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


# Name: (title, columns, repeats -> rows)
TABLES = {
    "views": ("Views", views.COLUMNS, views.run),
    "input": ("Input", input_benchmark.COLUMNS, input_benchmark.run),
    "loss": ("NT-Xent", loss.COLUMNS, loss.run),
    "convolution": ("Convolutions in training", convolution.COLUMNS, convolution.run),
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
    "step_small": (
        "Encoders for small images, forward and backward",
        step.SMALL_COLUMNS,
        lambda repeats: in_best_precision(step.run_small, repeats),
    ),
    "serving": ("Requests to the exported encoder", serving.COLUMNS, serving.run),
    "cache": ("Gradient caching", step.CACHE_COLUMNS, lambda repeats: step.run_cache(1)),
}

if not devices.on_cpu():
    for _name, (_title, _run, _columns) in accelerator.TABLES.items():
        TABLES[f"device_{_name}"] = (f"{_title}, on the device", _columns, _run)


def main(_):
    """Runs the selected tables."""
    options = flags.FLAGS
    unknown = sorted({*options.only} - {*TABLES})
    if unknown:
        raise app.UsageError(f"--only takes {', '.join(TABLES)}; got {', '.join(unknown)}.")
    results = {"machine": measure.machine()}
    print("  ".join(f"{key}: {value}" for key, value in results["machine"].items()))
    for name in options.only or TABLES:
        title, columns, run = TABLES[name]
        results[name] = run(options.repeats)
        measure.show(title, columns, results[name])
    if options.json:
        text = json.dumps(results, indent=1) + "\n"
        pathlib.Path(options.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    flags.DEFINE_list("only", [], "Tables to run; default: all.")
    flags.DEFINE_integer("repeats", 5, "Timed calls of each implementation.", 1)
    flags.DEFINE_string("json", None, "JSON file to write.")
    app.run(main)
