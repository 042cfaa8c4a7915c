"""The clock and the files that the workers of learning.py share; needs NumPy alone.

Learning rates follow the fraction of the time that has passed, so that every recipe ends its
schedule when the time ends, however fast the machine is.
"""

import argparse
import math
import pathlib
import time

import numpy as np


def arguments():
    """Returns the arguments of a worker: data, out, minutes, points, seed, and flags (a list)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="npz file with x_train, y_train, x_test and y_test")
    parser.add_argument("out", help="directory for the features")
    parser.add_argument("minutes", type=float)
    parser.add_argument("points", type=int)
    parser.add_argument("seed", type=int)
    known, rest = parser.parse_known_args()
    known.flags = rest
    return known


def cosine(peak, progress, warmup=0.0):
    """Returns the learning rate of a warm-up and a cosine decay at a fraction of the time."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


class Clock:
    """Seconds of training, without those of the features.

    Args:
      options: what `arguments` returned.
      features: function that returns h of the training images and of the test images, [n, D] each.
    """

    def __init__(self, options, features):
        self._out, self._features = pathlib.Path(options.out), features
        self._budget, self._points = 60.0 * options.minutes, options.points
        self._written, self._paused, self._images = 0, 0.0, 0
        self._start = time.perf_counter()

    @property
    def seconds(self):
        """Seconds of training so far."""
        return time.perf_counter() - self._start - self._paused

    @property
    def progress(self):
        """The fraction of the time that has passed, at most 1."""
        return min(1.0, self.seconds / self._budget)

    @property
    def is_over(self):
        """Whether the features of the end are written."""
        return self._written >= self._points

    def count(self, images):
        """Counts the images of a step, and writes the features if a point is due."""
        self._images += images
        seconds = self.seconds
        due = int(self._points * seconds / self._budget)
        if due <= self._written:
            return
        before = time.perf_counter()
        train_h, test_h = self._features()
        path = self._out / f"point{min(due, self._points)}.npz"
        np.savez(path, train_h=train_h, test_h=test_h, seconds=seconds, images=self._images)
        print(f"{seconds:.0f} s, {self._images} images", flush=True)
        self._written = due
        self._paused += time.perf_counter() - before
