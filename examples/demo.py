"""See SimCLR learn in three minutes: pretrain on drawn shapes, then compare.

    python examples/demo.py [--run_dir=runs/demo]

The images have no labels while the encoder learns; the labels serve only to see, afterwards, what
nearest neighbours and a linear classifier make of raw pixels, of an encoder that has learnt
nothing, and of the trained one.
"""

import pathlib
import sys
import time

from simclr_tf import cli

RECIPE = pathlib.Path(__file__).parent / "recipes" / "shapes.cfg"


def run(run_dir, *extra):
    """Pretrains into run_dir and prints the table; extra flags go to `pretrain`."""
    started = time.time()
    steps = (
        ["pretrain", f"--flagfile={RECIPE}", f"--run_dir={run_dir}", *extra],
        ["evaluate", f"--run_dir={run_dir}", "--protocol=all", "--baselines"],
    )
    for arguments in steps:
        print(f"\n$ simclr-tf {' '.join(arguments)}", flush=True)
        code = cli.main(arguments)
        if code:
            return code
    print(
        f"\nIn {time.time() - started:.0f} s. The run is in {run_dir}: views.png shows what the "
        "encoder saw,\ncurve.png how it learnt, metrics.jsonl has the numbers, and export/1 is the "
        "encoder for TF Serving."
    )
    return 0


if __name__ == "__main__":
    words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
    sys.exit(run(words.get("run_dir", "runs/demo")))
