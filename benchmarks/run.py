"""How fast are the views and the step, as ratios in one run.

    python benchmarks/run.py [--repeats=5]

Views of 32-pixel uint8 images: ours, the usual per-image `tf.image` map in tf.data, and KerasCV's
augmenter. A training step: whole (views, encoder, head, loss, update) against the bare encoder's
forward and backward pass on a constant batch. Contenders take turns; the table has medians.
"""

import platform
import statistics
import time

import numpy as np
from absl import app, flags

from simclr_tf import _quiet

tf = _quiet.import_tensorflow()
keras = tf.keras

import simclr_tf  # noqa: E402 - after TensorFlow's start-up lines were kept off the terminal
from simclr_tf import distribute  # noqa: E402

BATCH = 256
BATCHES = 4  # of views in a timed call


def tf_image_view(image):
    """One view of one uint8 image as tf.image's operators make it, in the order of the paper."""
    image = tf.image.convert_image_dtype(image, tf.float32)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        [32, 32, 3],
        tf.zeros([1, 0, 4]),
        area_range=(0.08, 1.0),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.resize(tf.slice(image, begin, size), [32, 32], method="bicubic")
    image = tf.image.random_flip_left_right(tf.clip_by_value(image, 0.0, 1.0))
    if tf.random.uniform([]) < 0.8:
        image = tf.clip_by_value(image * tf.random.uniform([], 0.6, 1.4), 0.0, 1.0)
        image = tf.clip_by_value(tf.image.random_contrast(image, 0.6, 1.4), 0.0, 1.0)
        image = tf.clip_by_value(tf.image.random_saturation(image, 0.6, 1.4), 0.0, 1.0)
        image = tf.clip_by_value(tf.image.random_hue(image, 0.1), 0.0, 1.0)
    if tf.random.uniform([]) < 0.2:
        image = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))
    return image


def view_contenders(images):
    """Name -> function that makes BATCHES x BATCH views."""
    ours = simclr_tf.RandomView(32, 0.5)
    mapped = tf.data.Dataset.from_tensor_slices(images).repeat()
    mapped = mapped.map(tf_image_view, tf.data.AUTOTUNE).batch(BATCH).take(BATCHES)
    keras_cv = _quiet.import_keras_cv()
    layers = keras_cv.layers
    augmenter = keras_cv.layers.Augmenter(
        [
            layers.RandomCropAndResize((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
            layers.RandomFlip("horizontal"),
            layers.RandomApply(layers.RandomColorJitter((0, 1), 0.4, 0.4, 0.4, 0.1), rate=0.8),
            layers.RandomApply(layers.Grayscale(output_channels=3), rate=0.2),
        ]
    )
    graph = tf.function(lambda x: augmenter(x))
    as_float = tf.cast(images, tf.float32)
    return {
        "simclr_tf": lambda: [ours(images) for _ in range(BATCHES)],
        # A new iterator each time: nothing was made ahead while the others had their turn.
        "tf.image in tf.data": lambda: list(mapped),
        "KerasCV": lambda: [graph(as_float) for _ in range(BATCHES)],
    }


def step_contenders(images):
    """Name -> function that takes one step; half-width ResNet-18, precision as --precision=auto."""
    keras.mixed_precision.set_global_policy(distribute.precision_policy("auto"))
    model = simclr_tf.SimCLR(simclr_tf.ResNet(18, width=0.5), seed=0)
    model.compile(optimizer=simclr_tf.LARS(0.1))
    model.build((None, 32, 32, 3))
    step = model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(images).repeat())
    views = tf.random.uniform([2 * BATCH, 32, 32, 3])
    encoder = model.encoder

    @tf.function
    def bare():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(encoder(views, training=True)))
        return [tf.reduce_sum(g) for g in tape.gradient(loss, encoder.trainable_variables)]

    return {"bare encoder": lambda: bare()[0], "whole step": lambda: step(batches)["loss"]}


def seconds(contenders, repeats):
    """Median seconds of each, taken in turns after one call that is not counted."""
    taken = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            for result in tf.nest.flatten(call()):
                result.numpy()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def table(title, contenders, repeats, per_call, unit):
    """Prints rates and the ratio to the first contender."""
    medians = seconds(contenders, repeats)
    first = next(iter(medians.values()))
    print(f"\n{title:<24}{unit:>12}{'ratio':>9}")
    for name, median in medians.items():
        print(f"{name:<24}{per_call / median:>12,.0f}{first / median:>9.2f}", flush=True)


def main(_):
    """Both tables."""
    repeats = flags.FLAGS.repeats
    print(f"TensorFlow {tf.__version__}, {platform.processor() or platform.machine()}")
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, [BATCH, 32, 32, 3], np.uint8))
    table("views, 32 pixels", view_contenders(images), repeats, BATCHES * BATCH, "views/s")
    table("step, batch 256", step_contenders(images), repeats, BATCH, "images/s")


if __name__ == "__main__":
    flags.DEFINE_integer("repeats", 5, "Counted calls of each contender.")
    app.run(main)
