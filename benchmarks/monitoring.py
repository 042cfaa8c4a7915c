"""The cost of watching a run: epochs of `fit` with and without the monitor's callbacks, in turns.

    python benchmarks/monitoring.py [--width=0.5] [--batch_size=128] [--turns=5]

Two models of the same encoder take the same steps. One has the callbacks of `simclr-tf pretrain`
that watch a run, `RunMonitor` and `DataWait`, and the norm of the gradient within its step. An
epoch has 30 steps, the fewest between two measurements of a run: longer epochs cost less.
"""

import argparse
import statistics
import time

import numpy as np

import measure
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()
keras = tf.keras

import simclr_tf  # noqa: E402 - after TensorFlow's start-up lines
from simclr_tf import devices, training  # noqa: E402

STEPS = 30
COLUMNS = {
    "what": ("", ""),
    "rate": ("images/s", ",.0f"),
    "ratio": ("time, ratio", ".3f"),
    "cpu": ("CPU time, ratio", ".3f"),
}


def epochs_of(width, images, batch_size, watched):
    """Returns a function that trains an epoch, and its seconds and CPU seconds."""
    model = simclr_tf.SimCLR(simclr_tf.ResNet(18, width=width), seed=0)
    model.compile(optimizer=simclr_tf.LARS(0.1))
    dataset = tf.data.Dataset.from_tensor_slices(images).repeat().batch(batch_size)
    callbacks = []
    if watched:
        wait = training.DataWait()
        dataset = wait.watch(dataset)
        callbacks = [wait, training.RunMonitor(images[:256], log=lambda line: None)]

    def epoch():
        clocks = time.perf_counter, time.process_time
        start = [clock() for clock in clocks]
        model.fit(dataset, steps_per_epoch=STEPS, verbose=0, callbacks=callbacks)
        return [clock() - begin for clock, begin in zip(clocks, start)]

    return epoch


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
    shape = [STEPS * args.batch_size, 32, 32, 3]
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    both = [epochs_of(args.width, images, args.batch_size, watched) for watched in (False, True)]
    for epoch in both:
        epoch()  # traced
    turns = []
    for turn in range(args.turns):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        taken = {which: both[which]() for which in order}
        turns.append((taken[0], taken[1]))
    rows = []
    for which, name in enumerate(("without", "watched")):
        seconds = statistics.median(turn[which][0] for turn in turns)
        ratios = [statistics.median(t[which][i] / t[0][i] for t in turns) for i in (0, 1)]
        rate = STEPS * args.batch_size / seconds
        rows.append({"what": name, "rate": rate, "ratio": ratios[0], "cpu": ratios[1]})
    measure.show(f"ResNet-18 x {args.width}, batch {args.batch_size}", COLUMNS, rows)


if __name__ == "__main__":
    main()
