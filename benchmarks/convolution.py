"""Weight gradients of 3x3 convolutions in bfloat16: TensorFlow's and by matrix products.

    python benchmarks/convolution.py [--repeats=7]

The layers are those of a ResNet-18 of half width and of full width and of a ResNet-14, at 16 to 32
pixels.
"""

import argparse
import functools

import measure
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf.encoders import convolution  # noqa: E402 - after TensorFlow's start-up lines

VIEWS = 512
# Side and channels of the input, stride. With stride 2 there are twice as many filters.
LAYERS = (
    (32, 32, 1),
    (16, 64, 1),
    (8, 64, 1),
    (16, 128, 1),
    (8, 128, 1),
    (4, 128, 1),
    (16, 256, 1),
    (8, 256, 1),
    (4, 256, 1),
    (2, 256, 1),
    (4, 512, 1),
    (16, 64, 2),
    (8, 64, 2),
    (16, 128, 2),
    (8, 128, 2),
    (4, 128, 2),
    (8, 256, 2),
    (4, 256, 2),
)


def run(repeats):
    """Returns rows: layer, milliseconds of both, ratio, whether the package uses the products."""
    rows = []
    for side, channels, stride in LAYERS:
        padding = "SAME" if stride == 1 else "VALID"
        x = tf.random.normal([VIEWS, side, side, channels])
        # As in the encoder: padded by a pixel on all sides, of which the last are not used.
        x = x if stride == 1 else tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = tf.cast(x, tf.bfloat16)
        dy = tf.random.normal([VIEWS, side // stride, side // stride, channels * stride])
        dy = tf.cast(dy, tf.bfloat16)
        functions = {
            "stock": lambda x, dy, s=stride, p=padding: tf.compat.v1.nn.conv2d_backprop_filter(
                x, [3, 3, x.shape[-1], dy.shape[-1]], dy, [1, s, s, 1], p
            ),
            "products": lambda x, dy, s=stride, p=padding: convolution.weight_gradient(
                x, dy, 3, s, p
            ),
        }
        compiled = {name: tf.function(f, autograph=False) for name, f in functions.items()}
        calls = {name: functools.partial(f, x, dy) for name, f in compiled.items()}
        medians = measure.seconds(calls, repeats)
        rows.append(
            {
                "layer": f"{side} x {side} x {channels}" + (", stride 2" if stride == 2 else ""),
                **{name: 1e3 * median for name, median in medians.items()},
                "ratio": medians["products"] / medians["stock"],
                "chosen": "yes" if convolution.is_deep(side // stride, channels, stride) else "no",
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
