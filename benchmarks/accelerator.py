"""What a step costs on a GPU: views, precision, XLA, the loss of many images, gradient caching.

    python benchmarks/accelerator.py [--only=views,step,loss,cache] [--repeats=20]

Images are random and lie on the device, so that nothing waits for data. Times include the transfer
of a step's loss to the host, which waits for the device. Peak memory is that of TensorFlow's
allocator, each in its own process. Without a GPU the same tables run on the CPU, at small sizes.
"""

import argparse
import json
import sys

import numpy as np

import measure
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()
keras = tf.keras

import simclr_tf  # noqa: E402 - after TensorFlow's start-up lines
from simclr_tf import devices, losses  # noqa: E402

ON_CPU = devices.on_cpu()
VIEWS = ((32, 512), (224, 256)) if not ON_CPU else ((32, 64), (224, 8))
# Encoder: depth, width, side in pixels, images per step.
STEPS = ((18, 0.5, 32, 512), (18, 1, 32, 512), (50, 1, 224, 128))
STEPS = STEPS if not ON_CPU else ((18, 0.25, 32, 64),)
LOSS_IMAGES = (512, 4096, 16384, 65536) if not ON_CPU else (512, 4096)
CACHE = ((50, 224, (128, 256, 512)), (50, 224, (512, 2048, 4096), 256))
CACHE = CACHE if not ON_CPU else ((18, 32, (64, 128)), (18, 32, (128, 256), 64))
TEMPERATURE = 0.1


def random_images(count, side):
    """Returns random images, uint8 [count, side, side, 3]."""
    images = np.random.default_rng(0).integers(0, 256, [count, side, side, 3], np.uint8)
    return tf.constant(images)


def training_step(depth, width, side, count, micro_batch_size=None, jit=None):
    """Returns a compiled SimCLR model, and a function that runs a step of `fit`."""
    encoder = simclr_tf.ResNet(depth, width=width)
    model = simclr_tf.SimCLR(encoder, micro_batch_size=micro_batch_size, seed=0)
    model.compile(optimizer=simclr_tf.LARS(0.1), **({} if jit is None else {"jit_compile": jit}))
    model.build((None, side, side, 3))
    step = model.make_train_function() or model.train_function  # Keras 3 returns nothing
    batches = iter(tf.data.Dataset.from_tensors(random_images(count, side)).repeat())
    return model, lambda: step(batches)["loss"]


def bare_encoder(encoder, side, count, jit=False):
    """Returns a function that runs a forward and a backward pass on the views of a batch."""
    views = tf.random.uniform([2 * count, side, side, 3])

    @tf.function(jit_compile=jit)
    def bare():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(encoder(views, training=True), tf.float32)))
        return [tf.reduce_sum(g) for g in tape.gradient(loss, encoder.trainable_variables)]

    return lambda: bare()[0]


def run_views(repeats):
    """Returns rows: side, views per second."""
    rows = []
    for side, count in VIEWS:
        images, view = random_images(count, side), tf.function(simclr_tf.RandomView(side).__call__)
        calls = {"views": lambda view=view, images=images: tf.reduce_sum(view(images))}
        rows.append({"side": side, "rate": count / measure.seconds(calls, repeats)["views"]})
    return rows


def run_step(repeats):
    """Returns rows: encoder, precision, images/s of a step, ratio to the bare encoder, with XLA."""
    rows = []
    for depth, width, side, count in STEPS:
        for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
            keras.mixed_precision.set_global_policy(policy)
            model, step = training_step(depth, width, side, count)
            calls = {"step": step, "bare": bare_encoder(model.encoder, side, count)}
            medians = measure.seconds(calls, repeats)
            row = {
                "what": f"ResNet-{depth} x {width}, {side} px, batch {count}, {policy}",
                "rate": count / medians["step"],
                "ratio": medians["bare"] / medians["step"],
            }
            try:
                _, compiled = training_step(depth, width, side, count, jit=True)
                row["xla"] = count / measure.seconds({"step": compiled}, repeats)["step"]
            except (tf.errors.OpError, ValueError) as error:
                print(f"XLA: {str(error).splitlines()[0][:200]}", file=sys.stderr)
            rows.append(row)
    keras.mixed_precision.set_global_policy("float32")
    return rows


def run_loss(repeats):
    """Returns rows: images, milliseconds of value and gradient, peak memory of them."""
    return [measure.in_fresh_process("accelerator.py", "--loss", n, repeats) for n in LOSS_IMAGES]


def one_loss(images, repeats):
    """Prints the time and the memory of the loss of 2 * images embeddings of length 128."""
    z = [tf.random.stateless_normal([images, 128], [view, 0]) for view in (0, 1)]

    @tf.function(autograph=False)
    def value_and_gradient():
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = losses.nt_xent(*z, temperature=TEMPERATURE)
        return [loss, *[tf.reduce_sum(g) for g in tape.gradient(loss, z)]]

    seconds = measure.seconds({"loss": value_and_gradient}, repeats)["loss"]
    row = {"images": images, "ms": 1000 * seconds, "peak": measure.peak_bytes() / 1e6}
    print(json.dumps(row))


def run_cache(_):
    """Returns rows: batch, micro-batch, images/s, peak memory; none where memory is not enough."""
    rows = []
    for depth, side, batches, *micro in CACHE:
        for batch in batches:
            arguments = ("--step", depth, side, batch, *(micro or (0,)))
            row = {"batch": batch, "micro_batch": micro[0] if micro else None}
            try:
                row.update(measure.in_fresh_process("accelerator.py", *arguments) or {})
            except RuntimeError as error:
                if "OOM" not in str(error) and "out of memory" not in str(error).lower():
                    raise
            rows.append({"rate": None, "peak": None, **row})
    return rows


def one_step(depth, side, batch, micro_batch):
    """Prints the images per second of a step and the peak memory, in the best precision."""
    keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
    _, step = training_step(depth, 1, side, batch, micro_batch or None)
    seconds = measure.seconds({"step": step}, 3)["step"]
    print(json.dumps({"rate": batch / seconds, "peak": measure.peak_bytes() / 1e6}))


TABLES = {
    "views": ("Views on the device", run_views, {"side": ("pixels", ""), "rate": ("/s", ",.0f")}),
    "step": (
        "A training step",
        run_step,
        {
            "what": ("", ""),
            "rate": ("images/s", ",.0f"),
            "ratio": ("ratio to the bare encoder", ".2f"),
            "xla": ("images/s, all compiled by XLA", ",.0f"),
        },
    ),
    "loss": (
        "NT-Xent, value and gradient",
        run_loss,
        {"images": ("images", ",d"), "ms": ("ms", ",.1f"), "peak": ("peak MB", ",.0f")},
    ),
    "cache": (
        "Gradient caching",
        run_cache,
        {
            "batch": ("batch", ",d"),
            "micro_batch": ("micro-batch", ",d"),
            "rate": ("images/s", ",.0f"),
            "peak": ("peak MB", ",.0f"),
        },
    ),
}


def main():
    """Runs the selected tables, or one measurement for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(TABLES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--loss", nargs=2, type=int, metavar=("IMAGES", "REPEATS"))
    parser.add_argument("--step", nargs=4, type=int, metavar=("DEPTH", "SIDE", "BATCH", "MICRO"))
    args = parser.parse_args()
    if args.loss:
        one_loss(*args.loss)
    elif args.step:
        one_step(*args.step)
    else:
        print("  ".join(f"{key}: {value}" for key, value in measure.machine().items()))
        for name in args.only:
            title, run, columns = TABLES[name]
            rows = run(args.repeats)
            measure.show(title, columns, [{**dict.fromkeys(columns), **row} for row in rows])


if __name__ == "__main__":
    main()
