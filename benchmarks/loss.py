"""NT-Xent and its gradient: time and memory, compared with other implementations.

    python benchmarks/loss.py [images ...] [--repeats=5]

The implementations are that of this package; "plain", the whole matrix of logits at once; KerasCV;
and, where they are installed, the official code and lightly. "three products" is a lower bound: the
matrix products of value and gradient alone. With `--one NAME IMAGES` one implementation runs once
and its peak memory is printed.
"""

import argparse
import functools
import json
import os
import time

import measure
import official
import torch_lightly
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf import losses  # noqa: E402 - after TensorFlow's start-up lines
from simclr_tf.losses import log_sum_exp  # noqa: E402 - after TensorFlow's start-up lines

DIM = 128
TEMPERATURE = 0.1
SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
MAX_INTERLEAVED = 16384  # images; above, an implementation is called once, in its own process
MAX_LIGHTLY = 8192  # images; it holds several copies of the whole matrix
MAX_MEMORY = 0.6  # fraction of the machine's; implementations that need more are skipped


def plain(z_a, z_b):
    """The whole matrix of logits at once, as in the paper's pseudo-code."""
    limits = log_sum_exp.MAX_DENSE_LOGITS, log_sum_exp.MAX_PRODUCT
    log_sum_exp.MAX_DENSE_LOGITS, log_sum_exp.MAX_PRODUCT = float("inf"), 0.0
    try:
        return losses.nt_xent(z_a, z_b, TEMPERATURE)
    finally:
        log_sum_exp.MAX_DENSE_LOGITS, log_sum_exp.MAX_PRODUCT = limits


def ours(z_a, z_b):
    """The package's loss with its default arguments."""
    return losses.nt_xent(z_a, z_b, TEMPERATURE)


def keras_cv(z_a, z_b):
    """KerasCV's SimCLRLoss, which is twice NT-Xent: it sums the two directions."""
    return _quiet.import_keras_cv().losses.SimCLRLoss(TEMPERATURE)(z_a, z_b)


IMPLEMENTATIONS = {"simclr_tf": ours, "plain": plain, "KerasCV": keras_cv}
if official.is_available():
    IMPLEMENTATIONS["official code"] = official.loss(TEMPERATURE)


def with_gradient(loss):
    """Returns a compiled function (z_a, z_b) -> loss and both gradients."""

    @tf.function(autograph=False)
    def function(z_a, z_b):
        with tf.GradientTape() as tape:
            tape.watch([z_a, z_b])
            value = loss(z_a, z_b)
        return value, *tape.gradient(value, [z_a, z_b])

    return function


@tf.function(autograph=False)
def three_products(z_a, z_b, tile_size=1024):
    """A lower bound: only the three matrix products of value and gradient, tile by tile."""
    z = tf.concat([z_a, z_b], axis=0)
    rows = tf.reshape(z, [-1, min(tile_size, z.shape[0]), DIM])  # [tiles, tile_size, DIM]
    zeros = tf.zeros_like(rows[0])

    def row_of_tiles(k, total):
        def tile(j, subtotal):
            s = tf.matmul(rows[k], rows[j], transpose_b=True)
            products = tf.matmul(s, rows[j]) + tf.matmul(s, rows[k], transpose_a=True)
            return j + 1, subtotal + products

        _, subtotal = tf.while_loop(
            lambda j, _: j < rows.shape[0], tile, (0, zeros), parallel_iterations=1
        )
        return k + 1, total + subtotal

    _, total = tf.while_loop(
        lambda k, _: k < rows.shape[0], row_of_tiles, (0, zeros), parallel_iterations=1
    )
    return total


def inputs(images):
    """Returns two random arrays, float32 [images, DIM]."""
    tf.random.set_seed(0)
    return tf.random.normal([images, DIM]), tf.random.normal([images, DIM])


def one(name, images):
    """Prints peak memory and seconds, tracing included, of one call of one implementation."""
    function = with_gradient(IMPLEMENTATIONS[name])
    function(*inputs(8))  # so that TensorFlow's own set-up is not measured
    z = inputs(images)
    before = measure.peak_bytes()
    start = time.perf_counter()
    for result in function(*z):
        result.numpy()
    seconds = time.perf_counter() - start
    peak = measure.peak_bytes()
    print(json.dumps({"added": peak - before, "peak": peak, "seconds": seconds}))


def _fits(name, images):
    """Returns whether ten copies of the whole matrix, as the others make, fit in memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return name == "simclr_tf" or 10 * 4 * (2 * images) ** 2 < MAX_MEMORY * memory


def run(repeats, sizes=SIZES):
    """Returns rows: implementation, images, seconds, ratio to KerasCV's time, memory."""
    rows = []
    for images in sizes:
        names = [name for name in IMPLEMENTATIONS if _fits(name, images)]
        memory = {
            name: measure.in_fresh_process("loss.py", "--one", name, images) for name in names
        }
        if images > MAX_INTERLEAVED:
            medians = {name: memory[name]["seconds"] for name in names if memory[name]}
        else:
            medians = _interleaved(names, images, repeats if images <= 4096 else min(repeats, 3))
        for name, median in medians.items():
            row = {"implementation": name, "images": images, "seconds": median}
            if "KerasCV" in medians:
                row["to_keras_cv"] = median / medians["KerasCV"]
            if memory.get(name):
                row["megabytes"] = memory[name]["added"] / 1e6
                row["peak_megabytes"] = memory[name]["peak"] / 1e6
            rows.append(row)
    return rows


def _interleaved(names, images, repeats):
    z = inputs(images)
    calls = {name: functools.partial(with_gradient(IMPLEMENTATIONS[name]), *z) for name in names}
    if images >= 512:
        calls["three products"] = functools.partial(three_products, *z)
    if torch_lightly.is_available() and images <= MAX_LIGHTLY:
        calls["lightly"] = torch_lightly.Worker("loss", images)
    return measure.seconds(calls, repeats)


COLUMNS = {
    "implementation": ("NT-Xent, value and gradient", ""),
    "images": ("N", ",d"),
    "seconds": ("seconds", ".4f"),
    "to_keras_cv": ("ratio to KerasCV", ".2f"),
    "megabytes": ("MB added", ",.0f"),
    "peak_megabytes": ("peak MB", ",.0f"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=int, help="images in the batch, N")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "IMAGES"), help="one implementation")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls")
    args = parser.parse_args()
    if args.one:
        one(args.one[0], int(args.one[1]))
    else:
        measure.show(__doc__.splitlines()[0], COLUMNS, run(args.repeats, args.images or SIZES))
