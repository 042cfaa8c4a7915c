"""NT-Xent over V views of N images, with N V constant: time and peak memory of value and gradient.

    python benchmarks/multi_view.py [--rows=4096] [--views=2,4,8] [--turns=5]

Every row of the table is measured in fresh processes, which alternate over the turns.
"""

import argparse
import json
import statistics
import subprocess
import sys

WORKER = """
import json, os, resource, time
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import tensorflow as tf
import simclr_tf

z = tf.constant(np.random.default_rng(0).normal(size=[{views}, {images}, 128]).astype("f"))

@tf.function
def value_and_gradient(z):
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = simclr_tf.nt_xent(z, temperature=0.1)
    return loss, tape.gradient(loss, z)

value_and_gradient(z)
seconds = []
for _ in range(5):
    start = time.perf_counter()
    value_and_gradient(z)[0].numpy()
    seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([float(np.median(seconds)), peak]))
"""


def run(views, rows):
    """Returns (seconds, peak MB) of one process."""
    code = WORKER.format(views=views, images=rows // views)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Prints a row per number of views."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096, help="N V")
    parser.add_argument("--views", default="2,4,8")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    numbers = [int(n) for n in options.views.split(",")]
    turns = [[run(views, options.rows) for views in numbers] for _ in range(options.turns)]
    print(f"{'views':>5}{'images':>8}{'seconds':>9}{'ratio':>7}{'peak MB':>9}")
    for i, views in enumerate(numbers):
        seconds, peak = (statistics.median(turn[i][k] for turn in turns) for k in (0, 1))
        ratio = statistics.median(turn[i][0] / turn[0][0] for turn in turns)
        print(f"{views:>5}{options.rows // views:>8,}{seconds:>9.4f}{ratio:>7.2f}{peak:>9,.0f}")


if __name__ == "__main__":
    main()
