"""Pretrains on drawn shapes in a minute or two, then compares encoders.

    python examples/demo.py [--run_dir=runs/demo]

Pretraining uses no labels. The labels are used afterwards, to compare the accuracies of nearest
neighbours and of a linear classifier on raw pixels, on the features of an encoder with random
weights, and on those of the trained encoder.
"""

import argparse
import pathlib
import sys
import time

from simclr_tf import cli

RECIPE = pathlib.Path(__file__).parent / "recipes" / "demo.cfg"


def run(run_dir, *extra):
    """Pretrains into run_dir and prints the table; extra flags are passed to `pretrain`."""
    start = time.time()
    commands = (
        ["pretrain", f"--flagfile={RECIPE}", f"--run_dir={run_dir}", *extra],
        ["evaluate", f"--run_dir={run_dir}", "--protocol=all", "--baselines"],
    )
    for arguments in commands:
        print(f"\n$ simclr-tf {' '.join(arguments)}", flush=True)
        code = cli.main(arguments)
        if code:
            return code
    print(
        f"\nFinished in {time.time() - start:.0f} s. {run_dir} has report.html (curves, views and "
        "flags),\nmetrics.jsonl, and the encoder as a SavedModel for TF Serving in export/1."
    )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", default="runs/demo", help="directory of the run")
    sys.exit(run(parser.parse_args().run_dir))
