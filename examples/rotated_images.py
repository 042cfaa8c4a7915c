"""Turns every image of a data set by a random multiple of 90 degrees, which is a further label.

    python examples/rotated_images.py --dataset=cifar10 --data_dir=DIR --output=OUT

Writes OUT/by_class.npz and OUT/by_turns.npz, which hold the same images and differ in the labels:
the class of an image, or the number of its quarter turns. `simclr-tf pretrain` reads either,
`simclr-tf evaluate` tells how well an encoder knows each of the two.
"""

import argparse
import pathlib

import numpy as np

from simclr_tf import data

SPLITS = ("train", "test")


def rotated(source, rng):
    """Returns the images of a source, turned; their classes; and their quarter turns."""
    batches = list(source.batches(1000))
    images = np.concatenate([batch["image"].numpy() for batch in batches])
    turns = rng.integers(0, 4, len(images))
    images = np.stack([np.rot90(image, count) for image, count in zip(images, turns)])
    return images, source.labels(), turns


def write(options):
    """Writes both files."""
    rng = np.random.default_rng(options.seed)
    by_class, by_turns = {}, {}
    for split in SPLITS:
        source = data.load(options.dataset, split, data_dir=options.data_dir)
        images, classes, turns = rotated(source, rng)
        by_class |= {f"x_{split}": images, f"y_{split}": classes}
        by_turns |= {f"x_{split}": images, f"y_{split}": turns}
    options.output.mkdir(parents=True, exist_ok=True)
    np.savez(options.output / "by_class.npz", **by_class)
    np.savez(options.output / "by_turns.npz", **by_turns)


def parse(arguments=None):
    """Returns the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10", help="of square images")
    parser.add_argument("--data_dir", help="directory of the TFDS data sets")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="directory to write to")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    write(parse())
