"""Exports compute what the encoder computes, and an invalid request fails alone."""

import io
import json
import resource
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image
from tensorflow import keras

from simclr_tf import ProjectionHead, ResNet, _keras, data
from simclr_tf.data.decode import decode, decode_whole
from simclr_tf.errors import StorageError
from simclr_tf.export import (
    MAX_PIXELS,
    ExportError,
    check,
    export_encoder,
    export_tflite,
    functional,
    image_files,
    saved_model,
    tflite,
)
from simclr_tf.export.check import run_signatures
from simclr_tf.images import centre_square

SIZE = 16


@pytest.fixture(scope="module")
def encoder(quick_runs):
    """A small ResNet, built and never called, like those of `encoders.by_name`."""
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, SIZE, SIZE, 3))
    return encoder


@pytest.fixture(scope="module")
def served_path(encoder, tmp_path_factory):
    """Its SavedModel."""
    return export_encoder(encoder, tmp_path_factory.mktemp("served") / "encoder" / "1")


@pytest.fixture(scope="module")
def served(served_path):
    """The signatures of its SavedModel."""
    return tf.saved_model.load(str(served_path)).signatures


def picture(height, width):
    """uint8 [height, width, 3]: smooth, so that ways of resizing agree."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / height * 5 + c) * np.cos(columns / width * 4 - c) for c in range(3)]
    return np.uint8(127.5 + 120 * np.stack(waves, -1))


def encoded(image, kind):
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"quality": 98} if kind == "JPEG" else {}))
    return file.getvalue()


def h_of(encoder, images):
    """Returns h [n, D] of uint8 images of the encoder's size."""
    return encoder(tf.constant(np.stack(images), tf.float32) / 255.0, training=False).numpy()


def test_images_of_the_encoders_size_are_embedded_as_by_the_encoder(encoder, served):
    """uint8 and float, to 1e-5."""
    images = np.random.default_rng(0).integers(0, 256, [3, SIZE, SIZE, 3], np.uint8)
    expected = h_of(encoder, images)
    got = served["serving_default"](images=tf.constant(images))["embedding"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    got = served["serving_float"](images=tf.constant(images / np.float32(255)))["embedding"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == tf.float32 and got.shape == (3, 32)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (33, 20), (9, 9)])
def test_images_of_other_sizes_are_prepared_as_for_evaluation(encoder, served, height, width):
    """Every signature embeds `images.centre_square`, which is `data.decode` to 1/255 a pixel."""
    image = picture(height, width)
    square = centre_square(image[None], SIZE)
    decoded = decode(encoded(image, "PNG"), SIZE)
    np.testing.assert_allclose(255 * square[0], decoded, atol=1.001)
    expected = encoder(square, training=False)
    for name, request in (
        ("serving_default", {"images": tf.constant(image[None])}),
        ("serving_float", {"images": tf.constant(image[None] / 255.0, tf.float32)}),
        ("serving_bytes", {"image_bytes": tf.constant([encoded(image, "PNG")])}),
    ):
        got = served[name](**request)["embedding"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_files_of_every_kind_and_size_in_one_request(encoder, served):
    """JPEG, PNG, BMP, and the first frame of an animated GIF."""
    gif = io.BytesIO()
    frames = [Image.fromarray(picture(20, 30)).quantize(256) for _ in range(2)]
    frames[0].save(gif, "GIF", save_all=True, append_images=[frames[1].rotate(180)])
    files = [encoded(picture(24, 40), kind) for kind in ("JPEG", "PNG", "BMP")] + [gif.getvalue()]
    got = served["serving_bytes"](image_bytes=tf.constant(files))["embedding"]
    expected = h_of(encoder, [decode(file, SIZE) for file in files])
    # The two decoders upsample the chroma of a JPEG differently.
    for row, tolerance in enumerate((0.2, 0.02, 0.02, 0.02)):
        most = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(got[row], expected[row], atol=most)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")
# Files that TensorFlow decodes as `data.decode` does; others are refused.
DECODED = {
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "transparent P"},
    "JPEG": {"1", "L", "RGB", "YCbCr"},
    "BMP": {"RGB", "turned"},
    "GIF": {"1", "L", "P", "RGB", "turned"},
}


def variants(kind):
    """Yields (name, file) of a picture in every mode that Pillow writes to a format."""
    alpha = np.uint8(np.arange(24 * 32).reshape(24, 32) % 256)
    image = Image.fromarray(np.dstack([picture(24, 32), alpha]))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    images = [(mode, mode, {}) for mode in MODES]
    images += [("transparent P", "P", {"transparency": 3}), ("turned", "RGB", {"exif": turned})]
    for name, mode, options in images:
        if mode == "I;16":
            converted = Image.fromarray(alpha.astype(np.uint16) * 257)
        else:
            converted = image.convert("L" if mode in ("I", "F") else mode).convert(mode)
        file = io.BytesIO()
        try:
            converted.save(file, kind, **options)
        except (OSError, KeyError, ValueError):  # Pillow writes no such file
            continue
        yield name, file.getvalue()


@pytest.mark.parametrize("kind", DECODED)
def test_a_file_is_decoded_as_for_training_or_refused(kind):
    """Every mode that Pillow writes: the picture of `data.decode` to 2/255, or an error."""
    decode_file = tf.function(image_files.decode_image, [tf.TensorSpec([], tf.string)])
    decoded = set()
    for name, file in variants(kind):
        try:
            got = decode_file(tf.constant(file)).numpy()
        except tf.errors.InvalidArgumentError as error:
            assert "must be upright" in str(error) or kind == "BMP", name
            continue
        decoded.add(name)
        square, height, width = decode_whole(file, 32)
        np.testing.assert_allclose(
            got.astype(int), square[:height, :width].astype(int), atol=2, err_msg=name
        )
    assert decoded >= DECODED[kind]


def bomb():
    """Returns a PNG of a few bytes whose header claims 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + crc


INVALID_REQUESTS = {
    "not an image": ([b"no image"], "Unknown image file format"),
    "cut off": ([encoded(picture(24, 40), "PNG")[:60]], "PNG"),
    "empty string": ([b""], "Unknown image file format|empty"),
    "too many pixels": ([bomb()], f"at most {MAX_PIXELS} pixels"),
    "one bad file among good ones": ([encoded(picture(9, 9), "PNG"), b"?"], "Unknown image"),
    "empty batch": (np.zeros([0], object), "a request needs an image"),
}


@pytest.mark.parametrize("kind", INVALID_REQUESTS)
def test_an_invalid_request_fails_alone(encoder, served, kind):
    """The next request succeeds."""
    files, message = INVALID_REQUESTS[kind]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served["serving_bytes"](image_bytes=tf.constant(files, tf.string))
    good = encoded(picture(SIZE, SIZE), "PNG")
    got = served["serving_bytes"](image_bytes=tf.constant([good]))["embedding"]
    np.testing.assert_allclose(got, h_of(encoder, [picture(SIZE, SIZE)]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library", ["C library", "no C library"])
def test_a_process_without_keras_gives_the_same(encoder, served_path, library, monkeypatch, caplog):
    """Every signature to 1e-5; an invalid request fails alone; a missing library is logged."""
    if library == "no C library":
        monkeypatch.setattr(check, "_library", lambda: None)
    image = picture(SIZE, SIZE)
    good = [
        ("serving_default", image[None]),
        ("serving_float", np.float32(image[None] / 255.0)),
        ("serving_bytes", [encoded(image, "PNG"), encoded(image, "BMP")]),
    ]
    bad = [
        ("serving_bytes", [b"no image"]),
        ("serving_bytes", [bomb()]),
        ("serving_default", image),  # of rank 3
        ("serving_default", image[None][:0]),
        ("serving_float", np.float32(image[None])),  # from 0 to 255
    ]
    order = [*good, *(each for pair in zip(bad, [*good, *good]) for each in pair)]
    outputs = run_signatures(served_path, order)
    assert len(outputs) == 13
    expected = h_of(encoder, [image])[0]
    for request, output in zip(order, outputs):
        if any(request is each for each in bad):
            assert isinstance(output, str)
            continue
        _, value = request
        assert output.shape == (len(value), 32)
        np.testing.assert_allclose(output, [expected] * len(value), rtol=1e-5, atol=1e-5)
    logged = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert len(logged) == (library == "no C library")
    assert all("libtensorflow_cc" in line and "\n" not in line for line in logged)


def test_an_export_without_the_c_library(small, tmp_path, monkeypatch):
    """It is checked and written as well; one that cannot be loaded is an error."""
    monkeypatch.setattr(check.tf.sysconfig, "get_lib", lambda: str(tmp_path / "nowhere"))
    assert (export_encoder(small, tmp_path / "1") / "saved_model.pb").exists()
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ExportError, match="could not load the exported encoder: "):
        check.run_signatures(tmp_path, [])


def test_an_empty_batch_of_images_is_an_error(served):
    """For both signatures that take images."""
    for name, dtype in (("serving_default", tf.uint8), ("serving_float", tf.float32)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="needs an image"):
            served[name](images=tf.zeros([0, SIZE, SIZE, 3], dtype))


@pytest.mark.parametrize("value", [255.0, 1.01, -0.01, np.nan])
def test_float_images_out_of_range_are_an_error(encoder, served, value):
    """Values from 0 to 255 and NaN are refused; the next request succeeds."""
    images = np.full([2, SIZE, SIZE, 3], 0.5, np.float32)
    images[1, 3, 5, 0] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must lie in \[0, 1\]"):
        served["serving_float"](images=tf.constant(images))
    images[1] = 1.0
    got = served["serving_float"](images=tf.constant(images))["embedding"]
    np.testing.assert_allclose(got, encoder(images), rtol=1e-5, atol=1e-5)


@pytest.fixture
def small():
    """A small functional encoder with batch normalisation, for 12 pixels; traced quickly."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(moving_variance_initializer=keras.initializers.Constant(2)),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
        ]
    )


def test_embeddings_of_a_head_layer_of_length_one(small, tmp_path):
    """`layer` and `normalize` apply to the signatures and to the reusable SavedModel."""
    head = ProjectionHead(output_dim=5)
    head.build((None, 8))
    path = export_encoder(small, tmp_path / "1", normalize=True, layer="head1", head=head)
    image = picture(12, 12)[None]
    expected = head.hidden_outputs(small(image / np.float32(255)))[1]
    expected = expected / np.linalg.norm(expected)
    loaded = tf.saved_model.load(str(path))
    got = loaded.signatures["serving_default"](images=tf.constant(image))["embedding"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded(tf.constant(image / np.float32(255))), expected, atol=1e-6)
    about = json.loads((path / "encoder.json").read_text())
    assert about == {"image_size": [12, 12], "layer": "head1", "normalize": True}


def test_signatures_in_float16(small, tmp_path):
    """Their weights are float16; those for further training are float32."""
    path = export_encoder(small, tmp_path / "1", precision="float16")
    loaded = tf.saved_model.load(str(path))
    assert {variable.dtype for variable in loaded.served_variables} == {tf.float16}
    assert {variable.dtype for variable in loaded.variables} == {tf.float32}
    image = picture(12, 12)[None]
    got = loaded.signatures["serving_default"](images=tf.constant(image))["embedding"]
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, small(image / np.float32(255)), rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="must be float32 or float16; got 'int8'"):
        export_encoder(small, tmp_path / "2", precision="int8")


@pytest.mark.skipif(not _keras.IS_KERAS_2, reason="Keras 3 converts no `call` by AutoGraph")
def test_a_model_that_needs_autograph_is_exported(tmp_path):
    """A subclassed model with a Python `if` on a tensor."""

    class Positive(keras.Model):
        def call(self, images, training=None):
            h = tf.reduce_mean(images, [1, 2])
            if tf.reduce_max(h) < 0:
                h = -h
            return h

    encoder = Positive()
    encoder(np.zeros([1, 12, 12, 3], np.float32))
    path = export_encoder(encoder, tmp_path / "1", image_shape=(12, 12, 3))
    got = tf.saved_model.load(str(path))(np.full([1, 12, 12, 3], 0.5, np.float32))
    np.testing.assert_allclose(got, [[0.5] * 3])


def test_layers_that_are_random_in_training_are_exported(tmp_path):
    """In the signatures they do nothing; called with training=True, the SavedModel draws."""
    layers = keras.layers
    stack = [layers.RandomFlip(), layers.RandomTranslation(0.4, 0.4), layers.Conv2D(4, 3)]
    encoder = keras.Sequential(
        [keras.Input((12, 12, 3)), *stack, layers.Dropout(0.5), layers.GlobalAveragePooling2D()]
    )
    loaded = tf.saved_model.load(str(export_encoder(encoder, tmp_path / "1")))
    images = picture(12, 12)[None]
    got = loaded.signatures["serving_default"](images=tf.constant(images))["embedding"]
    images = images / np.float32(255)
    np.testing.assert_allclose(got, encoder(images, training=False), atol=1e-5)
    drawn = [loaded(images, training=True).numpy() for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


def test_a_subclassed_model_is_exported_as_it_is(tmp_path):
    """Without folding and encoder.keras; its signatures are checked as well."""

    class Mean(keras.Model):
        def call(self, images, training=None):
            return tf.reduce_mean(images, [1, 2])

    encoder = Mean()
    encoder(np.zeros([1, 12, 12, 3], np.float32))
    path = export_encoder(encoder, tmp_path / "1", image_shape=(12, 12, 3))
    assert not (path / "encoder.keras").exists()
    with pytest.raises(ValueError, match="an Airbench or a functional encoder; got a Mean"):
        export_encoder(encoder, tmp_path / "2", image_shape=(12, 12, 3), precision="float16")
    got = tf.saved_model.load(str(path))(np.full([1, 12, 12, 3], 0.5, np.float32))
    np.testing.assert_allclose(got, [[0.5] * 3])


def test_a_layer_that_keras_cannot_save_means_no_encoder_keras(tmp_path):
    """A layer without a config, or with an argument not in JSON; the signatures are written."""

    class Odd(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return self.factor * x

    images = keras.Input((12, 12, 3))
    unknown = Odd(2.0)(keras.layers.GlobalAveragePooling2D()(images))
    # Keras saves slicing as a layer, but not with an Ellipsis.
    sliced = keras.layers.GlobalAveragePooling2D()(images[..., ::2, :, :])
    for number, h in enumerate((unknown, sliced)):
        path = export_encoder(keras.Model(images, h), tmp_path / str(number))
        can_be_saved = number == 1 and not _keras.IS_KERAS_2  # Keras 3 saves every slice
        assert (path / "encoder.keras").exists() == can_be_saved
        got = tf.saved_model.load(str(path))(np.full([1, 12, 12, 3], 0.5, np.float32))
        np.testing.assert_allclose(got, [[1.0] * 3] if number == 0 else [[0.5] * 3])


def test_a_wrong_export_is_refused(small, tmp_path, monkeypatch):
    """Signatures with other weights are an ExportError; no file or directory is left."""

    def wrong(*arguments):
        copy = functional.folded(*arguments[:1])
        copy.set_weights([1.001 * weight for weight in copy.get_weights()])
        return copy

    monkeypatch.setattr(saved_model, "folded_where_exact", wrong)
    with pytest.raises(ExportError, match=r"differs from the encoder by .*e-0\d"):
        export_encoder(small, tmp_path / "models" / "simclr" / "1")
    assert not list(tmp_path.iterdir())


def test_a_functional_copy_that_differs_is_not_used(small, tmp_path, monkeypatch):
    """The encoder is exported as it is."""

    def wrong(*arguments):
        copy = functional.functional_copy(*arguments)
        copy.set_weights([1.001 * weight for weight in copy.get_weights()])
        return copy

    monkeypatch.setattr(saved_model, "functional_copy", wrong)
    path = export_encoder(small, tmp_path / "1")
    assert not (path / "encoder.keras").exists()
    image = np.float32(picture(12, 12)[None] / 255.0)
    np.testing.assert_allclose(tf.saved_model.load(str(path))(image), small(image), rtol=1e-6)


def test_an_encoder_of_zeros_is_exported(small, tmp_path):
    """An encoder whose ReLUs are dead is not an error of the export."""
    small.set_weights([0.0 * weight for weight in small.get_weights()])
    assert (export_encoder(small, tmp_path / "1") / "saved_model.pb").exists()


def test_an_export_that_cannot_be_written_is_one_line(small, tmp_path):
    """Below a file, and on a full disk: a StorageError that names the path; nothing is left."""
    (tmp_path / "file").touch()
    for export in (export_encoder, export_tflite):
        with pytest.raises(StorageError, match=r"file/1 cannot be written: .*is a file. Choose"):
            export(small, tmp_path / "file" / "1")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"^{tmp_path}/1 cannot be written: .*too large"):
            export_encoder(small, tmp_path / "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [each.name for each in tmp_path.rglob("*")] == ["file"]


def test_a_saved_model_that_cannot_be_loaded_is_refused(tmp_path):
    """With the message of the C API in one line."""
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ExportError, match="could not load the exported encoder: "):
        run_signatures(tmp_path, [])


# -- further training in other programs -------------------------------------------------------


OTHER_PROGRAM = """
import sys
sys.modules["simclr_tf"] = None  # importing it is an error
import numpy as np
from tensorflow import keras
path, folder = sys.argv[1:]
arrays = np.load(f"{folder}/images.npz")
images, labels = arrays["images"], arrays["labels"]
model = keras.models.load_model(f"{path}/encoder.keras")
results = {"h": model.predict(images, verbose=0), "trainable": len(model.trainable_weights)}

import tensorflow_hub as hub
import tf_keras
layer = hub.KerasLayer(path, trainable=True)
model = tf_keras.Sequential([layer, tf_keras.layers.Dense(10)])
loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Eagerly, since AutoGraph takes half a minute to convert tf_keras.
model.compile(tf_keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"], run_eagerly=True)
model.build((None, *images.shape[1:]))
before = layer.get_weights()
results["chance"] = model.evaluate(images, labels, verbose=0)[1]
model.fit(images, labels, epochs=5, batch_size=20, verbose=0)
results["accuracy"] = model.evaluate(images, labels, verbose=0)[1]
results["weights"] = len(layer.trainable_weights), len(layer.non_trainable_weights)
results["moved"] = [np.any(old != new) for old, new in zip(before, layer.get_weights())]
np.savez(f"{folder}/results.npz", **results)
"""


@pytest.fixture(scope="module")
def other_program(served_path, tmp_path_factory):
    """Results of a process that uses the export but cannot import this package; and its images."""
    batch = next(iter(data.load("shapes", "train[:200]", image_size=SIZE).batches(200)))
    images, labels = batch["image"].numpy() / np.float32(255), batch["label"].numpy()
    folder = tmp_path_factory.mktemp("other_program")
    np.savez(folder / "images.npz", images=images, labels=labels)
    command = [sys.executable, "-c", OTHER_PROGRAM, str(served_path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    return images, np.load(folder / "results.npz")


@pytest.mark.end_to_end
def test_plain_keras_loads_the_encoder(encoder, other_program):
    """`encoder.keras` computes the same and has every trainable weight."""
    images, results = other_program
    np.testing.assert_allclose(results["h"], encoder(images), rtol=1e-5, atol=1e-5)
    assert results["trainable"] == len(encoder.trainable_weights) > 30


@pytest.mark.end_to_end
def test_tensorflow_hub_trains_all_of_it(encoder, other_program):
    """Every weight and moving statistic changes; accuracy on drawn shapes rises."""
    _, results = other_program
    counts = [len(encoder.trainable_weights), len(encoder.non_trainable_weights)]
    assert results["weights"].tolist() == counts and results["moved"].all()
    assert results["accuracy"] > results["chance"] + 0.2, (results["chance"], results["accuracy"])


# -- TensorFlow Lite -------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "least"), [("float32", 1 - 1e-6), ("float16", 1 - 1e-4)])
def test_tensorflow_lite_computes_the_same(small, tmp_path, precision, least):
    """From float images in batches of any size: the direction of h."""
    path = export_tflite(small, tmp_path / "encoder.tflite", precision=precision)
    images = np.random.default_rng(1).random((5, 12, 12, 3), dtype=np.float32)
    got = tflite.run(path.read_bytes(), images)
    assert got.dtype == np.float32 and cosine(got, small(images)).min() > least


def test_tensorflow_lite_in_int8(small, tmp_path):
    """It takes uint8 pixels and computes in int8."""
    examples = np.stack([picture(12, 12)] * 20)
    examples = np.random.default_rng(0).permuted(examples, axis=3)
    path = export_tflite(small, tmp_path / "encoder.tflite", precision="int8", examples=examples)
    interpreter = tf.lite.Interpreter(str(path))
    (source,) = interpreter.get_input_details()
    np.testing.assert_allclose(source["quantization"], (1 / 255, 0), rtol=1e-6)
    types = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert np.int8 in types
    got = tflite.run(path.read_bytes(), examples)
    assert cosine(got, small(examples / np.float32(255))).min() > 0.99
    assert path.stat().st_size < 6000


def cosine(a, b):
    """Returns the cosine similarity of each pair of rows."""
    a, b = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.sum(a * b, axis=1)


def test_invalid_arguments_of_export_tflite(small, tmp_path, monkeypatch):
    """Each is an error, and no file is left."""
    path = tmp_path / "encoder.tflite"
    with pytest.raises(ValueError, match="examples are needed for int8"):
        export_tflite(small, path, precision="int8")
    with pytest.raises(ValueError, match="must be one of float32, float16, int8; got 'int4'"):
        export_tflite(small, path, precision="int4")
    with pytest.raises(ValueError, match=r"float images must lie in \[0, 1\]; got values from 255"):
        export_tflite(small, path, precision="int8", examples=np.full([2, 12, 12, 3], 255.0))
    for examples in (np.full([2, 12, 12, 3], 255), np.zeros([0, 12, 12, 3]), np.zeros([2, 9])):
        with pytest.raises(ValueError, match=r"must be images \[n, 12, 12, 3\], uint8 or float in"):
            export_tflite(small, path, precision="int8", examples=examples)
    monkeypatch.setitem(tflite.SIMILARITY, "float32", 1.1)
    with pytest.raises(ExportError, match=r"must have a cosine similarity .* at least 1.1; got "):
        export_tflite(small, path)
    assert not list(tmp_path.iterdir())
    path.touch()
    with pytest.raises(ValueError, match=r"encoder.tflite exists. Remove it"):
        export_tflite(small, path)


def test_an_encoder_of_unknown_size_needs_image_shape(tmp_path):
    """The message says so; nothing is written."""
    with pytest.raises(ValueError, match=r"needs the image size.*Pass image_shape"):
        export_encoder(ResNet(18, width=1 / 16), tmp_path / "1")
    assert not list(tmp_path.iterdir())
