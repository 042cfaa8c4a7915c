"""Compares two checkouts, or two stacks: the same workloads in fresh processes that alternate.

    python benchmarks/compare.py --before=DIR [--after=DIR] [--only=loss,views] [--turns=5]
    python benchmarks/compare.py --before_python=ENV2/bin/python --after_python=ENV3/bin/python

Each turn runs every workload once with each checkout on the path and takes the median of its calls.
The table shows the median over the turns, and the median of the ratios of the turns: the speed of a
shared machine drifts, and both processes of a turn see the same hour. The CPU time, over all cores,
does not count the time in which other programs had the cores.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent.parent

COMMON = """
import json, os, resource, time
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import tensorflow as tf
import simclr_tf

rng = np.random.default_rng(0)

def measure(call, calls, warm_up=2):
    for _ in range(warm_up):
        call()
    clocks = time.perf_counter, time.process_time
    taken = []
    for _ in range(calls):
        start = [clock() for clock in clocks]
        call()
        taken.append([clock() - begin for clock, begin in zip(clocks, start)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, cpu = np.median(taken, axis=0)
    print(json.dumps({"seconds": float(seconds), "cpu": float(cpu), "peak_mb": peak}))
"""

LOSS = """
z_a, z_b = (tf.constant(rng.normal(size=[{images}, 128]).astype("f")) for _ in range(2))

@tf.function
def value_and_gradient(z_a, z_b):
    with tf.GradientTape() as tape:
        tape.watch([z_a, z_b])
        loss = simclr_tf.nt_xent(z_a, z_b, 0.1)
    return loss, tape.gradient(loss, [z_a, z_b])

measure(lambda: value_and_gradient(z_a, z_b)[0].numpy(), {calls})
"""

VIEWS = """
images = tf.constant(rng.integers(0, 256, [{batch}, {side}, {side}, 3], np.uint8))
view = simclr_tf.RandomView.for_size({size})
draw = tf.function(lambda seed: tf.reduce_sum(view(images, seed)))
seeds = iter(range(10**6))
measure(lambda: draw(tf.constant([next(seeds), 0])).numpy(), {calls})
"""

STEP = """
tf.keras.mixed_precision.set_global_policy("{precision}")
model = simclr_tf.SimCLR(
    simclr_tf.ResNet(18, width={width}), temperature=0.2, seed=0, micro_batch_size={micro}
)
model.compile(optimizer=simclr_tf.LARS(0.1))
images = rng.integers(0, 256, [{batch}, 32, 32, 3], np.uint8)
data = tf.data.Dataset.from_tensors(images).repeat()
model.fit(data, steps_per_epoch=2, verbose=0)
measure(lambda: model.fit(data, steps_per_epoch=4, verbose=0), {calls}, 1)
"""

QUARTER, HALF = {"width": 0.25, "precision": "float32"}, {"width": 0.5}
WORKLOADS = {
    "loss, 512 images": LOSS.format(images=512, calls=60),
    "loss, 4,096 images": LOSS.format(images=4096, calls=4),
    "views, 256 of 32 px": VIEWS.format(batch=256, side=32, size=32, calls=40),
    "views, 32 of 224 px": VIEWS.format(batch=32, side=336, size=224, calls=6),
    "step, 128 images": STEP.format(batch=128, micro=None, calls=4, **QUARTER),
    "step in micro-batches": STEP.format(batch=128, micro=64, calls=3, **QUARTER),
    "half-width, float32": STEP.format(batch=64, micro=None, calls=3, **HALF, precision="float32"),
    "half-width, bfloat16": STEP.format(
        batch=64, micro=None, calls=3, **HALF, precision="mixed_bfloat16"
    ),
}


def run(code, side):
    """Returns {"seconds", "cpu", "peak_mb"}; side: (interpreter, checkout on the path)."""
    python, checkout = side
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [python, "-c", COMMON + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Prints a row per workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=str(HERE), help="the checkout to compare with")
    parser.add_argument("--after", default=str(HERE), help="by default the one of this file")
    parser.add_argument("--before_python", default=sys.executable, help="an interpreter")
    parser.add_argument("--after_python", default=sys.executable, help="an interpreter")
    parser.add_argument("--only", default="", help="beginnings of names of workloads")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    chosen = {
        name: code
        for name, code in WORKLOADS.items()
        if name.startswith(tuple(options.only.split(",")))
    }
    print(
        f"{'':<24}{'before, s':>11}{'after, s':>10}{'ratio':>7}{'of CPU time':>13}"
        f"{'before, MB':>12}{'after, MB':>11}"
    )
    for name, code in chosen.items():
        turns = []
        for turn in range(options.turns):
            pair = [
                (os.path.abspath(options.before_python), options.before),
                (os.path.abspath(options.after_python), options.after),
            ]
            first, second = (run(code, side) for side in (pair if turn % 2 == 0 else pair[::-1]))
            turns.append((first, second) if turn % 2 == 0 else (second, first))
        seconds = [statistics.median(t[i]["seconds"] for t in turns) for i in (0, 1)]
        peaks = [statistics.median(t[i]["peak_mb"] for t in turns) for i in (0, 1)]
        ratio, of_cpu = (
            statistics.median(after[key] / before[key] for before, after in turns)
            for key in ("seconds", "cpu")
        )
        print(
            f"{name:<24}{seconds[0]:>11.4f}{seconds[1]:>10.4f}{ratio:>7.3f}{of_cpu:>13.3f}"
            f"{peaks[0]:>12,.0f}{peaks[1]:>11,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
