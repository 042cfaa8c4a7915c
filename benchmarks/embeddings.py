"""Seconds, peak memory and size of a file of many embeddings, in each format.

    python benchmarks/embeddings.py --rows=1000000 [--dim=512] [--folder=DIR]

The embeddings are random numbers: little but writing costs anything. Each file is written by a
process of its own and removed; the memory is that of the whole process, TensorFlow included.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import measure
import numpy as np

FORMATS = ("npz", "parquet", "tfrecord")
BATCH_ROWS = 256


def batches(rows, dim):
    """`Features` of so many embeddings in all, labelled and named."""
    from simclr_tf.evaluate import Features

    rng = np.random.default_rng(0)
    for start in range(0, rows, BATCH_ROWS):
        index = np.arange(start, min(start + BATCH_ROWS, rows))
        ids = np.array([f"class/image_{i:08d}.jpg" for i in index])
        yield Features(rng.random([len(index), dim], np.float32), index % 10, ids)


def write(path, rows, dim):
    """Writes a file and returns what it took."""
    from simclr_tf import _quiet

    _quiet.import_tensorflow()
    from simclr_tf import embeddings

    start = time.perf_counter()
    with embeddings.Writer(path) as file:
        for features in batches(rows, dim):
            file.write(features)
    return {
        "seconds": time.perf_counter() - start,
        "peak_megabytes": measure.peak_bytes() / 1e6,
        "file_megabytes": pathlib.Path(path).stat().st_size / 1e6,
    }


def main(rows, dim, folder):
    """Prints the table: few rows and many, in each format."""
    table = []
    for kind in FORMATS:
        for count in (2000, rows):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                place = pathlib.Path(scratch) / f"h.{kind}"
                found = measure.in_fresh_process("embeddings.py", "--write", place, count, dim)
            table.append({"format": kind, "rows": count, **found})
    columns = {
        "format": ("format", ""),
        "rows": ("rows", ",d"),
        "seconds": ("seconds", ".1f"),
        "peak_megabytes": ("peak MB", ".0f"),
        "file_megabytes": ("file MB", ".0f"),
    }
    measure.show(f"embeddings of {dim} numbers", columns, table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        print(json.dumps(write(sys.argv[2], *map(int, sys.argv[3:]))))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--folder", help="where there is room")
    main(**vars(parser.parse_args()))
