"""NT-Xent and its gradient: time and memory against the plain form, KerasCV and the limit.

    python benchmarks/loss.py [images ...]

With `--one CONTENDER IMAGES` a single contender runs once and its peak memory is printed.
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
ALONE = 16384  # beyond it a contender is called once, in its own process
LIGHTLY_UP_TO = 8192  # images; it takes the whole matrix several times
MOST_MEMORY = 0.6  # of the machine's: contenders that would need more are left out


def plain(z_a, z_b):
    """The whole matrix at once: the form of the paper's pseudo-code, with TensorFlow's kernels."""
    limit = log_sum_exp.MAX_DENSE_LOGITS, log_sum_exp.MAX_PRODUCT
    log_sum_exp.MAX_DENSE_LOGITS, log_sum_exp.MAX_PRODUCT = float("inf"), 0.0
    try:
        return losses.nt_xent(z_a, z_b, TEMPERATURE)
    finally:
        log_sum_exp.MAX_DENSE_LOGITS, log_sum_exp.MAX_PRODUCT = limit


def ours(z_a, z_b):
    """As it is called by default."""
    return losses.nt_xent(z_a, z_b, TEMPERATURE)


def keras_cv(z_a, z_b):
    """KerasCV's SimCLRLoss; twice NT-Xent, as the two directions are summed."""
    return _quiet.import_keras_cv().losses.SimCLRLoss(TEMPERATURE)(z_a, z_b)


CONTENDERS = {"simclr_tf": ours, "plain": plain, "KerasCV": keras_cv}
if official.is_at_hand():
    CONTENDERS["official code"] = official.loss(TEMPERATURE)


def with_gradient(loss):
    """A compiled function (z_a, z_b) -> loss and both gradients."""

    @tf.function(autograph=False)
    def function(z_a, z_b):
        with tf.GradientTape() as tape:
            tape.watch([z_a, z_b])
            value = loss(z_a, z_b)
        return value, *tape.gradient(value, [z_a, z_b])

    return function


@tf.function(autograph=False)
def three_products(z_a, z_b, block_size=1024):
    """The limit: the three matrix products of value and gradient, in blocks, and nothing else."""
    z = tf.concat([z_a, z_b], axis=0)
    pieces = tf.reshape(z, [-1, min(block_size, z.shape[0]), DIM])

    def strip(k, down):
        def block(j, across):
            s = tf.matmul(pieces[k], pieces[j], transpose_b=True)
            return j + 1, across + tf.matmul(s, pieces[j]) + tf.matmul(
                s, pieces[k], transpose_a=True
            )

        start = (0, tf.zeros_like(pieces[0]))
        across = tf.while_loop(
            lambda j, _: j < pieces.shape[0], block, start, parallel_iterations=1
        )
        return k + 1, down + across[1]

    start = (0, tf.zeros_like(pieces[0]))
    return tf.while_loop(lambda k, _: k < pieces.shape[0], strip, start, parallel_iterations=1)[1]


def inputs(images):
    """Two [images, DIM] float32."""
    tf.random.set_seed(0)
    return tf.random.normal([images, DIM]), tf.random.normal([images, DIM])


def one(name, images):
    """Prints the peak memory and the seconds, tracing included, of one call of one contender."""
    function = with_gradient(CONTENDERS[name])
    function(*inputs(8))  # what TensorFlow sets up once is not the loss's
    z = inputs(images)
    before = measure.peak_bytes()
    start = time.perf_counter()
    for result in function(*z):
        result.numpy()
    taken = time.perf_counter() - start
    peak = measure.peak_bytes()
    print(json.dumps({"above": peak - before, "peak": peak, "seconds": taken}))


def _fits(name, images):
    """Whether the whole matrix, in the ten copies that the plain forms make, fits this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return name == "simclr_tf" or 10 * 4 * (2 * images) ** 2 < MOST_MEMORY * memory


def run(repeats, sizes=SIZES):
    """Rows: contender, images, seconds, ratio to KerasCV's time, bytes."""
    rows = []
    for images in sizes:
        names = [name for name in CONTENDERS if _fits(name, images)]
        memory = {
            name: measure.in_fresh_process("loss.py", "--one", name, images) for name in names
        }
        if images > ALONE:
            medians = {name: memory[name]["seconds"] for name in names}
        else:
            medians = _in_turns(names, images, repeats if images <= 4096 else min(repeats, 3))
        for name, median in medians.items():
            row = {"contender": name, "images": images, "seconds": median}
            if "KerasCV" in medians:
                row["to_keras_cv"] = median / medians["KerasCV"]
            if memory.get(name):
                row["megabytes"] = memory[name]["above"] / 1e6
                row["peak_megabytes"] = memory[name]["peak"] / 1e6
            rows.append(row)
    return rows


def _in_turns(names, images, repeats):
    z = inputs(images)
    calls = {name: functools.partial(with_gradient(CONTENDERS[name]), *z) for name in names}
    if images >= 512:
        calls["three products"] = functools.partial(three_products, *z)
    if torch_lightly.is_at_hand() and images <= LIGHTLY_UP_TO:
        calls["lightly"] = torch_lightly.Worker("loss", images)
    return measure.seconds(calls, repeats)


COLUMNS = {
    "contender": ("NT-Xent, value and gradient", ""),
    "images": ("N", ",d"),
    "seconds": ("seconds", ".4f"),
    "to_keras_cv": ("of KerasCV's time", ".2f"),
    "megabytes": ("MB added", ",.0f"),
    "peak_megabytes": ("MB of process", ",.0f"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("images", nargs="*", type=int)
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], int(given.one[1]))
    else:
        measure.show(__doc__.splitlines()[0], COLUMNS, run(given.repeats, given.images or SIZES))
