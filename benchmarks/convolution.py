"""Weight gradients of 3x3 convolutions in bfloat16: TensorFlow's and by matrix products.

    python benchmarks/convolution.py [--repeats=7]

The layers are those of a ResNet-18 of half width and of full width at 16 to 32 pixels.
"""

import argparse
import functools

import measure

from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf.encoders import convolution  # noqa: E402 - after TensorFlow's start-up lines

VIEWS = 512
LAYERS = (
    (32, 32),
    (16, 64),
    (8, 64),
    (16, 128),
    (8, 128),
    (4, 128),
    (16, 256),
    (8, 256),
    (4, 256),
    (2, 256),
    (4, 512),
)


def run(repeats):
    """Returns rows: layer, milliseconds of both, ratio, whether the package uses the products."""
    rows = []
    for side, channels in LAYERS:
        shape = [VIEWS, side, side, channels]
        x = tf.cast(tf.random.normal(shape), tf.bfloat16)
        dy = tf.cast(tf.random.normal(shape), tf.bfloat16)
        kernel_shape = [3, 3, channels, channels]
        functions = {
            "stock": lambda x, dy, k=kernel_shape: tf.compat.v1.nn.conv2d_backprop_filter(
                x, k, dy, [1, 1, 1, 1], "SAME"
            ),
            "products": lambda x, dy: convolution.weight_gradient(x, dy, 3, 1, "SAME"),
        }
        compiled = {name: tf.function(f, autograph=False) for name, f in functions.items()}
        calls = {name: functools.partial(f, x, dy) for name, f in compiled.items()}
        medians = measure.seconds(calls, repeats)
        rows.append(
            {
                "layer": f"{side} x {side} x {channels}",
                **{name: 1e3 * median for name, median in medians.items()},
                "ratio": medians["products"] / medians["stock"],
                "chosen": "yes" if convolution.is_deep(side, channels) else "no",
            }
        )
    return rows


COLUMNS = {
    "layer": (f"weight gradient, {VIEWS} views", ""),
    "stock": ("TensorFlow, ms", ".1f"),
    "products": ("products, ms", ".1f"),
    "ratio": ("ratio", ".2f"),
    "chosen": ("products used", ""),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="timed calls")
    measure.show(__doc__.splitlines()[0], COLUMNS, run(parser.parse_args().repeats))
