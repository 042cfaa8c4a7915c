"""Time, peak memory and file size of writing embeddings, in each format.

    python benchmarks/embeddings.py --rows=1000000 [--dim=512] [--folder=DIR]

The embeddings are random, so that nearly all time is spent on writing. Each file is written by a
separate process and removed; the memory is that of the whole process, TensorFlow included.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

import measure

FORMATS = ("npz", "parquet", "tfrecord")
BATCH_ROWS = 256


def batches(rows, dim):
    """Yields `Features` of random embeddings, with labels and ids, batch by batch."""
    from simclr_tf.evaluate import Features

    rng = np.random.default_rng(0)
    for start in range(0, rows, BATCH_ROWS):
        index = np.arange(start, min(start + BATCH_ROWS, rows))
        ids = np.array([f"class/image_{i:08d}.jpg" for i in index])
        yield Features(rng.random([len(index), dim], np.float32), index % 10, ids)


def write(path, rows, dim):
    """Writes a file and returns its time, peak memory and size."""
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
    """Prints the table: each format with 2,000 rows and with `rows`."""
    table = []
    for kind in FORMATS:
        for count in (2000, rows):
            with tempfile.TemporaryDirectory(dir=folder) as directory:
                path = pathlib.Path(directory) / f"h.{kind}"
                result = measure.in_fresh_process("embeddings.py", "--write", path, count, dim)
            table.append({"format": kind, "rows": count, **result})
    columns = {
        "format": ("format", ""),
        "rows": ("rows", ",d"),
        "seconds": ("seconds", ".1f"),
        "peak_megabytes": ("peak MB", ".0f"),
        "file_megabytes": ("file MB", ".0f"),
    }
    measure.show(f"Embeddings of {dim} dimensions", columns, table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        print(json.dumps(write(sys.argv[2], *map(int, sys.argv[3:]))))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="number of embeddings")
    parser.add_argument("--dim", type=int, default=512, help="dimensions of an embedding")
    parser.add_argument("--folder", help="directory of the temporary files")
    main(**vars(parser.parse_args()))
