"""Convolutions in training on a CPU: TensorFlow's and as matrix products.

    python benchmarks/convolution.py [--repeats=7] [--dtypes=bfloat16,float32]

Forward pass and both gradients of layers of ResNet-14, 18 and 50, for small views and for 224
pixels.
"""

import argparse

import measure
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf.encoders import convolution  # noqa: E402 - after TensorFlow's start-up lines

# Batch, side and channels of the input, filters, side of the kernel, stride.
LAYERS = (
    (512, 32, 32, 32, 3, 1),
    (512, 16, 64, 64, 3, 1),
    (512, 8, 64, 64, 3, 1),
    (512, 16, 128, 128, 3, 1),
    (512, 8, 128, 128, 3, 1),
    (512, 4, 128, 128, 3, 1),
    (512, 16, 256, 256, 3, 1),
    (512, 8, 256, 256, 3, 1),
    (512, 4, 256, 256, 3, 1),
    (512, 3, 256, 256, 3, 1),
    (512, 4, 512, 512, 3, 1),
    (512, 2, 128, 128, 3, 1),
    (512, 2, 256, 256, 3, 1),
    (512, 2, 512, 512, 3, 1),
    (512, 1, 512, 512, 3, 1),
    (512, 32, 32, 64, 3, 2),
    (512, 32, 64, 128, 3, 2),
    (512, 16, 64, 128, 3, 2),
    (512, 8, 64, 128, 3, 2),
    (512, 16, 128, 256, 3, 2),
    (512, 8, 128, 256, 3, 2),
    (512, 4, 128, 256, 3, 2),
    (512, 4, 256, 512, 3, 2),
    (64, 56, 128, 128, 3, 2),
    (64, 28, 256, 256, 3, 2),
    (64, 14, 512, 512, 3, 2),
    (512, 2, 256, 2048, 1, 1),
    (512, 4, 256, 2048, 1, 1),
    (64, 56, 64, 256, 1, 1),
    (64, 56, 256, 64, 1, 1),
    (64, 28, 512, 128, 1, 1),
    (64, 14, 256, 1024, 1, 1),
    (64, 7, 2048, 512, 1, 1),
)


def run(repeats, dtypes=("bfloat16", "float32")):
    """Returns rows: layer, milliseconds of both, ratio, whether the package uses the products."""
    return [_row(repeats, dtype, *layer) for dtype in dtypes for layer in LAYERS]


def _row(repeats, dtype, batch, side, channels, filters, size, stride):
    # As in the encoder: with stride 2 padded by a pixel on all sides, of which the last are unused.
    margin = 0 if stride == 1 else 2
    padding = "same" if stride == 1 else "valid"
    policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
    layer = tf.keras.layers.Conv2D(filters, size, stride, padding, use_bias=False, dtype=policy)
    x = tf.cast(tf.random.normal([batch, side + margin, side + margin, channels]), dtype)
    dy = tf.cast(tf.random.normal(layer(x).shape), dtype)
    tiny = size == 1 or side <= 2
    products = convolution.multiply if tiny else convolution.convolve
    calls = {
        "stock": _training(lambda layer, x: layer(x), layer, x, dy),
        "products": _training(products, layer, x, dy),
    }
    medians = measure.seconds(calls, repeats)
    return {
        "layer": f"{batch} x {side} x {side} x {channels} to {filters}, {size}x{size}"
        + (", stride 2" if stride == 2 else ""),
        "dtype": dtype,
        **{name: 1e3 * median for name, median in medians.items()},
        "ratio": medians["products"] / medians["stock"],
        "chosen": "yes" if convolution.for_training(layer, x) is products else "no",
    }


def _training(convolve, layer, x, dy):
    """A function that computes a layer and both gradients, and returns a number of each."""

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = convolve(layer, x)
        gradients = tape.gradient(y, [x, *layer.trainable_variables], dy)
        return [tf.cast(tf.reshape(each, [-1])[0], tf.float32) for each in (y, *gradients)]

    return step.get_concrete_function()


COLUMNS = {
    "layer": ("batch and input, filters, kernel", ""),
    "dtype": ("dtype", ""),
    "stock": ("TensorFlow, ms", ".1f"),
    "products": ("products, ms", ".1f"),
    "ratio": ("ratio", ".2f"),
    "chosen": ("products used", ""),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="timed calls")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="separated by a comma")
    options = parser.parse_args()
    rows = run(options.repeats, options.dtypes.split(","))
    measure.show(__doc__.splitlines()[0], COLUMNS, rows)
