"""Random views per second, from 32-pixel uint8 images and from 224-pixel JPEG files.

    python benchmarks/views.py [--repeats=5] [--parts]

The implementations are `RandomView`; a per-image map in tf.data of the official code's operators,
written with `tf.image`; KerasCV's augmenter; and, where they are installed, the official code,
lightly and OpenCV. With `--parts`: the CPU time of a view of 224 pixels by what the family draws.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np

import measure
import official
import opencv_views
import torch_lightly
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

import simclr_tf  # noqa: E402 - after TensorFlow's start-up lines

BATCH = {32: 256, 224: 64}
BATCHES = {32: 4, 224: 1}  # batches of views in a timed call


def tf_image_view(image, size):
    """Returns one view of one image by operators of tf.image, in the order of the paper."""
    image = tf.image.convert_image_dtype(image, tf.float32)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        area_range=(0.08, 1.0),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.resize(tf.slice(image, begin, extent), [size, size], method="bicubic")
    image = tf.image.random_flip_left_right(tf.clip_by_value(image, 0.0, 1.0))
    strength = 0.5 if size <= 64 else 1.0
    if tf.random.uniform([]) < 0.8:
        low, high = 1 - 0.8 * strength, 1 + 0.8 * strength
        image = tf.clip_by_value(image * tf.random.uniform([], low, high), 0.0, 1.0)
        image = tf.clip_by_value(tf.image.random_contrast(image, low, high), 0.0, 1.0)
        image = tf.clip_by_value(tf.image.random_saturation(image, low, high), 0.0, 1.0)
        image = tf.clip_by_value(tf.image.random_hue(image, 0.2 * strength), 0.0, 1.0)
    if tf.random.uniform([]) < 0.2:
        image = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))
    if size > 64 and tf.random.uniform([]) < 0.5:
        image = _blurred(image, tf.random.uniform([], 0.1, 2.0), size // 20)
    return tf.ensure_shape(image, [size, size, 3])


def _blurred(image, sigma, radius):
    """Blurs an image by two depthwise convolutions, as the official code's `gaussian_blur`."""
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)
    taps = tf.exp(-0.5 * tf.square(distance / sigma))
    taps = tf.tile((taps / tf.reduce_sum(taps))[:, None, None, None], [1, 1, 3, 1])
    for kernel in (taps, tf.transpose(taps, [1, 0, 2, 3])):
        image = tf.nn.depthwise_conv2d(image[None], kernel, [1, 1, 1, 1], "SAME")[0]
    return image


def keras_cv_views(size):
    """Returns a function of images that applies KerasCV's layers with the same parameters."""
    layers = _quiet.import_keras_cv().layers
    strength = 0.5 if size <= 64 else 1.0
    jitter = layers.RandomColorJitter(
        (0, 1), 0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength
    )
    operators = [
        layers.RandomCropAndResize((size, size), (0.08, 1.0), (3 / 4, 4 / 3)),
        layers.RandomFlip("horizontal"),
        layers.RandomApply(jitter, rate=0.8),
        layers.RandomApply(layers.Grayscale(output_channels=3), rate=0.2),
    ]
    if size > 64:
        blur = layers.RandomGaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))
        operators.append(layers.RandomApply(blur, rate=0.5))
    augmenter = layers.Augmenter(operators)
    return tf.function(lambda images: augmenter(tf.cast(images, tf.float32)))


def small_image_calls(images):
    """Returns a dict from a name to a call that makes views of uint8 [B, 32, 32, 3] in memory."""
    ours, theirs = tf.function(simclr_tf.RandomView(32, 0.5).__call__), keras_cv_views(32)
    mapped = tf.data.Dataset.from_tensor_slices(images).repeat()
    mapped = mapped.map(lambda image: tf_image_view(image, 32), tf.data.AUTOTUNE)
    mapped = mapped.batch(len(images)).take(BATCHES[32])
    calls = {
        "simclr_tf": lambda: [ours(images) for _ in range(BATCHES[32])],
        # A new iterator each time, so that nothing is prefetched while others are timed.
        "tf.image in tf.data": lambda: list(mapped),
        "KerasCV": lambda: [theirs(images) for _ in range(BATCHES[32])],
    }
    if official.is_available():
        views = tf.data.Dataset.from_tensor_slices(images).repeat()
        views = views.map(official.view(32, 0.5), tf.data.AUTOTUNE)
        views = views.batch(len(images)).take(BATCHES[32])
        calls["official code"] = lambda: list(views)
    if torch_lightly.is_available():
        calls["lightly"] = torch_lightly.Worker("views", 32)
    return calls


def jpeg_calls(files):
    """Returns the same for JPEG files, [B] strings of 224 x 224 pixels: two views of each."""
    encoded = tf.data.Dataset.from_tensor_slices(files)
    decoded = encoded.map(lambda f: tf.io.decode_jpeg(f, 3), tf.data.AUTOTUNE)
    decoded = decoded.map(lambda image: tf.ensure_shape(image, [224, 224, 3]))
    batched = decoded.batch(len(files))
    ours, theirs = tf.function(simclr_tf.RandomView(224).__call__), keras_cv_views(224)
    mapped = encoded.map(
        lambda f: [tf_image_view(tf.io.decode_jpeg(f, 3), 224) for _ in range(2)], tf.data.AUTOTUNE
    )
    mapped = mapped.batch(len(files))
    calls = {
        "simclr_tf": lambda: [ours(images) for images in batched for _ in range(2)],
        "tf.image in tf.data": lambda: list(mapped),
        "KerasCV": lambda: [theirs(images) for images in batched for _ in range(2)],
        "decoding alone": lambda: list(batched),
    }
    if official.is_available():
        one = official.view(224, 1.0)
        views = encoded.map(
            lambda f: [one(tf.io.decode_jpeg(f, 3)) for _ in range(2)], tf.data.AUTOTUNE
        )
        views = views.batch(len(files)).map(lambda *pair: [official.blur(v, 224) for v in pair])
        calls["official code"] = lambda: list(views)
    if opencv_views.is_available():
        calls["OpenCV"] = opencv_views.call(files.numpy().tolist(), 224)
    if torch_lightly.is_available():
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, files=np.array(files.numpy().tolist()))  # JPEG never ends in a zero byte
            file.flush()
            calls["lightly"] = torch_lightly.Worker("views", 224, file.name)
    return calls


def photos(count):
    """Returns [count] JPEG strings of smooth random images of 224 x 224 pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, [count, 14, 14, 3])
    images = tf.image.resize(coarse, [224, 224], method="bicubic")
    images += rng.normal(0, 8, [count, 224, 224, 3])
    images = tf.cast(tf.clip_by_value(images, 0, 255), tf.uint8)
    return tf.stack([tf.io.encode_jpeg(image, quality=90) for image in images])


def run(repeats):
    """Returns rows: source, implementation, views per second, ratio to `RandomView`."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, [BATCH[32], 32, 32, 3], np.uint8))
    sources = {
        "32 px uint8": (small_image_calls(images), BATCHES[32] * BATCH[32]),
        "224 px JPEG": (jpeg_calls(photos(BATCH[224])), 2 * BATCH[224]),
    }
    rows = []
    for source, (calls, views) in sources.items():
        medians = measure.seconds(calls, repeats)
        for name, median in medians.items():
            rate = {"source": source, "implementation": name, "rate": views / median}
            rows.append({**rate, "ratio": medians["simclr_tf"] / median})
    return rows


def parts(repeats):
    """Returns rows: what is drawn for every image, CPU milliseconds of a view."""
    images = tf.stack([tf.io.decode_jpeg(file) for file in photos(BATCH[224])])
    never = {f"{name}_probability": 0.0 for name in ("jitter", "drop", "blur")}
    families = {"crop and flip alone": never, "the whole family": {}}
    families.update({f"with {key.split('_')[0]}": {**never, key: 1.0} for key in never})
    calls = {
        name: tf.function(simclr_tf.RandomView(224, **arguments).__call__)
        for name, arguments in families.items()
    }
    seconds = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call(images).numpy()
            seconds[name].append(time.process_time() - start)
    return [
        {"drawn": name, "cpu": 1000 * statistics.median(values[1:]) / BATCH[224]}
        for name, values in seconds.items()
    ]


PARTS_COLUMNS = {"drawn": ("drawn", ""), "cpu": ("CPU ms a view", ".2f")}
COLUMNS = {
    "source": ("views of", ""),
    "implementation": ("implementation", ""),
    "rate": ("views/s", ",.0f"),
    "ratio": ("ratio", ".2f"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed calls")
    parser.add_argument("--parts", action="store_true", help="the parts of a large view")
    options = parser.parse_args()
    rows, columns = (parts, PARTS_COLUMNS) if options.parts else (run, COLUMNS)
    measure.show(__doc__.splitlines()[0], columns, rows(options.repeats))
