"""Time of a training step, compared with the bare encoder; time and memory of micro-batches.

    python benchmarks/step.py

Measures whole `fit` steps on CIFAR-sized images (views, encoder, head, loss, LARS, metrics) and the
bare encoder's forward and backward pass on a constant batch in the same precision; then steps with
and without micro-batches. With `--one BATCH MICRO_BATCH` only such a step runs, and its time and
the peak memory are printed.
"""

import argparse
import functools
import json

import numpy as np

import measure
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()
keras = tf.keras

import simclr_tf  # noqa: E402 - after TensorFlow's start-up lines
from simclr_tf import devices  # noqa: E402
from simclr_tf.encoders import convolution  # noqa: E402

STEP_BATCH = 512
SMALL_BATCH = 256
SMALL_ENCODERS = (
    ("resnet14", {"stem": "space_to_depth", "feature_dim": 2048}),
    ("resnet18", {"stem": "space_to_depth", "width": 0.5}),
    ("airbench", {"feature_dim": 2048}),
)
CACHE_BATCHES = ((256, None), (4096, 512))


def random_images(count):
    """Returns random images, uint8 [count, 32, 32, 3]."""
    return tf.constant(np.random.default_rng(0).integers(0, 256, [count, 32, 32, 3], np.uint8))


def training_step(batch_size, width, micro_batch_size=None):
    """Returns a compiled SimCLR model, and a function that runs a step of `fit`."""
    model = simclr_tf.SimCLR(
        simclr_tf.ResNet(18, width=width), micro_batch_size=micro_batch_size, seed=0
    )
    model.compile(optimizer=simclr_tf.LARS(0.1))
    model.build((None, 32, 32, 3))
    step = model.make_train_function() or model.train_function  # Keras 3 returns nothing
    batches = iter(tf.data.Dataset.from_tensors(random_images(batch_size)).repeat())
    return model, lambda: step(batches)["loss"]


def bare_encoder(encoder, batch_size, side=32):
    """Returns a function that runs a forward and a backward pass on the views of a batch."""
    views = tf.random.uniform([2 * batch_size, side, side, 3])

    @tf.function
    def bare():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(encoder(views, training=True)))
        return [tf.reduce_sum(g) for g in tape.gradient(loss, encoder.trainable_variables)]

    return lambda: bare()[0]


def with_stock_layers(encoder, batch_size, side=32):
    """`bare_encoder` with TensorFlow's convolutions in every layer."""
    encoder.build((None, side, side, 3))
    for_training, convolution.for_training = convolution.for_training, lambda *_: None
    try:
        bare = bare_encoder(encoder, batch_size, side)
        bare()  # traced here, without matrix products
    finally:
        convolution.for_training = for_training
    return bare


def run_small(repeats):
    """Returns rows: encoder, side of the views, milliseconds, the same with stock layers, ratio."""
    rows = []
    for name, options in SMALL_ENCODERS:
        for side in (16, 24, 32):
            make = functools.partial(simclr_tf.encoders.by_name, name, side, **options)
            calls = {
                "ours": bare_encoder(make(), SMALL_BATCH, side),
                "stock": with_stock_layers(make(), SMALL_BATCH, side),
            }
            medians = measure.seconds(calls, repeats)
            rows.append(
                {
                    "encoder": name,
                    "side": side,
                    **{key: 1e3 * median for key, median in medians.items()},
                    "ratio": medians["ours"] / medians["stock"],
                }
            )
    return rows


def run_step(repeats, width):
    """Returns rows: what, images per second, ratio to the bare encoder."""
    model, step = training_step(STEP_BATCH, width)
    calls = {
        "whole step": step,
        "bare encoder": bare_encoder(model.encoder, STEP_BATCH),
    }
    stock = simclr_tf.ResNet(18, width=width)
    calls["bare encoder, TensorFlow's convolutions"] = with_stock_layers(stock, STEP_BATCH)
    medians = measure.seconds(calls, repeats)
    return [
        {
            "what": f"{name}, ResNet-18 x {width}",
            "rate": STEP_BATCH / median,
            "ratio": medians["bare encoder"] / median,
        }
        for name, median in medians.items()
    ]


def one(batch_size, micro_batch_size):
    """Prints the seconds of a step of a full-width ResNet-18 and the peak memory of the process."""
    keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
    _, step = training_step(batch_size, 1, micro_batch_size)
    # The same number of images for each batch size: memory grows over the first steps.
    repeats = max(batch for batch, _ in CACHE_BATCHES) // batch_size
    seconds = measure.seconds({"step": step}, repeats)["step"]
    print(json.dumps({"seconds": seconds, "peak": measure.peak_bytes()}))


def run_cache(rounds):
    """Returns rows: batch, micro-batch, images/s, and time and memory relative to the first.

    Each measurement runs in its own process; rounds alternate, and medians are reported.
    """
    measured = {key: [] for key in CACHE_BATCHES}
    for _ in range(rounds):
        for batch_size, micro in CACHE_BATCHES:
            result = measure.in_fresh_process("step.py", "--one", batch_size, micro or 0)
            measured[batch_size, micro].append(result)
    rows = []
    for (batch_size, micro), results in measured.items():
        seconds = float(np.median([r["seconds"] for r in results]))
        peak = float(np.median([r["peak"] for r in results]))
        rows.append(
            {"batch": batch_size, "micro_batch": micro, "seconds": seconds, "peak": peak / 1e6}
        )
    first = rows[0]
    for row in rows:
        row["rate"] = row["batch"] / row["seconds"]
        row["time_ratio"] = first["rate"] / row["rate"]
        row["memory_ratio"] = row["peak"] / first["peak"]
    return rows


STEP_COLUMNS = {
    "what": (f"batch {STEP_BATCH}, 32 pixels", ""),
    "rate": ("images/s", ",.0f"),
    "ratio": ("ratio to the bare encoder", ".2f"),
}
SMALL_COLUMNS = {
    "encoder": (f"bare encoder, {2 * SMALL_BATCH} views", ""),
    "side": ("pixels", ""),
    "ours": ("ms", ".0f"),
    "stock": ("TensorFlow's convolutions, ms", ".0f"),
    "ratio": ("ratio", ".2f"),
}
CACHE_COLUMNS = {
    "batch": ("ResNet-18, batch", ",d"),
    "micro_batch": ("micro-batch", ",d"),
    "rate": ("images/s", ",.0f"),
    "time_ratio": ("time per image", ".2f"),
    "peak": ("peak MB", ",.0f"),
    "memory_ratio": ("memory", ".2f"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, type=int, metavar=("BATCH", "MICRO_BATCH"))
    args = parser.parse_args()
    if args.one:
        one(args.one[0], args.one[1] or None)
    else:
        keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
        for width in (0.5, 1):
            measure.show("A training step", STEP_COLUMNS, run_step(5, width))
        measure.show("Micro-batches", CACHE_COLUMNS, run_cache(1))
