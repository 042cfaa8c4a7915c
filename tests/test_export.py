"""The exported encoder answers requests as the model does, and survives those it cannot answer."""

import io
import json
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from simclr_tf import ResNet
from simclr_tf.data.decode import decode
from simclr_tf.export import MAX_PIXELS, export_encoder

SIZE = 16


@pytest.fixture(scope="module")
def encoder():
    """Built and never called, as `encoders.by_name` gives it."""
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
    """What the encoder makes of uint8 images of its size."""
    return encoder(tf.constant(np.stack(images), tf.float32) / 255.0, training=False).numpy()


def test_images_of_the_own_size_give_what_the_encoder_gives(encoder, served):
    """uint8 and float; to 1e-5."""
    images = np.random.default_rng(0).integers(0, 256, [3, SIZE, SIZE, 3], np.uint8)
    expected = h_of(encoder, images)
    got = served["serving_default"](images=tf.constant(images))["embedding"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    got = served["serving_float"](images=tf.constant(images / np.float32(255)))["embedding"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == tf.float32 and got.shape == (3, 32)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (33, 20), (9, 9)])
def test_other_sizes_are_prepared_as_for_evaluation(encoder, served, height, width):
    """The centre square, resized: the pixels that `data.decode` gives, up to its rounding."""
    image = picture(height, width)
    expected = h_of(encoder, [decode(encoded(image, "PNG"), SIZE)])
    for name, batch in (("serving_default", image[None]), ("serving_float", image[None] / 255.0)):
        dtype = tf.uint8 if name == "serving_default" else tf.float32
        got = served[name](images=tf.constant(batch, dtype))["embedding"]
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_files_of_every_kind_and_size_in_one_request(encoder, served):
    """JPEG, PNG, BMP and a GIF of several frames, of which the first counts."""
    gif = io.BytesIO()
    frames = [Image.fromarray(picture(20, 30)).quantize(256) for _ in range(2)]
    frames[0].save(gif, "GIF", save_all=True, append_images=[frames[1].rotate(180)])
    files = [encoded(picture(24, 40), kind) for kind in ("JPEG", "PNG", "BMP")] + [gif.getvalue()]
    got = served["serving_bytes"](image_bytes=tf.constant(files))["embedding"]
    expected = h_of(encoder, [decode(file, SIZE) for file in files])
    # A JPEG's colours are enlarged in other ways by the two decoders.
    for row, tolerance in enumerate((0.2, 0.02, 0.02, 0.02)):
        most = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(got[row], expected[row], atol=most)


def bomb():
    """A PNG of some bytes whose header says 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + crc


UNANSWERABLE = {
    "not an image": ([b"no image"], "Unknown image file format"),
    "cut off": ([encoded(picture(24, 40), "PNG")[:60]], "PNG"),
    "empty string": ([b""], "Unknown image file format|empty"),
    "too many pixels": ([bomb()], f"at most {MAX_PIXELS} pixels"),
    "one bad file among good ones": ([encoded(picture(9, 9), "PNG"), b"?"], "Unknown image"),
    "empty batch": (np.zeros([0], object), "a request needs an image"),
}


@pytest.mark.parametrize("kind", UNANSWERABLE)
def test_a_bad_request_is_an_error_of_its_own(encoder, served, kind):
    """And the next one is answered."""
    files, message = UNANSWERABLE[kind]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served["serving_bytes"](image_bytes=tf.constant(files, tf.string))
    good = encoded(picture(SIZE, SIZE), "PNG")
    got = served["serving_bytes"](image_bytes=tf.constant([good]))["embedding"]
    np.testing.assert_allclose(got, h_of(encoder, [picture(SIZE, SIZE)]), rtol=1e-5, atol=1e-5)


def asked_of_a_server(path, requests, place):
    """Answers of the C API in a process of its own to (signature, array or list of files) pairs."""
    saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    signatures = saved_model.meta_graphs[0].signature_def
    written = []
    for number, (name, value) in enumerate(requests):
        (given,), (got,) = signatures[name].inputs.values(), signatures[name].outputs.values()
        request = {"input": given.name, "output": got.name}
        if isinstance(value, list):
            request["strings"] = [file.hex() for file in value]
        else:
            request["file"] = str(place / f"{number}.npy")
            np.save(request["file"], value)
        written.append(request)
    (place / "requests.json").write_text(json.dumps(written))
    library = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    child = pathlib.Path(__file__).with_name("c_api.py")
    command = [sys.executable, "-I", child, library, path, place / "requests.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_server_without_keras_answers_alike(encoder, served_path, tmp_path):
    """Every signature by the C API to 1e-5; errors between the requests are theirs alone."""
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
    ]
    order = [*good, *(each for pair in zip(bad, [*good, good[0]]) for each in pair)]
    answers = asked_of_a_server(served_path, order, tmp_path)
    assert len(answers) == 11
    expected = h_of(encoder, [image])[0]
    for request, answer in zip(order, answers):
        if any(request is each for each in bad):
            assert "error" in answer
            continue
        _, value = request
        rows = np.reshape(answer["values"], answer["shape"])
        assert rows.shape == (len(value), 32)
        np.testing.assert_allclose(rows, [expected] * len(value), rtol=1e-5, atol=1e-5)


def test_an_empty_batch_of_images_is_an_error(served):
    """In both signatures that take images."""
    for name, dtype in (("serving_default", tf.uint8), ("serving_float", tf.float32)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="needs an image"):
            served[name](images=tf.zeros([0, SIZE, SIZE, 3], dtype))


def test_embeddings_of_length_one(encoder, tmp_path):
    """Where they are asked for."""
    path = export_encoder(encoder, tmp_path / "1", normalize=True)
    images = tf.constant(picture(SIZE, SIZE)[None])
    got = tf.saved_model.load(str(path)).signatures["serving_default"](images=images)["embedding"]
    expected = h_of(encoder, [picture(SIZE, SIZE)])
    np.testing.assert_allclose(got, expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)


def test_an_encoder_of_unknown_size_asks_for_it(tmp_path):
    """Nothing is written."""
    with pytest.raises(ValueError, match=r"needs the image size.*Pass image_shape"):
        export_encoder(ResNet(18, width=1 / 16), tmp_path / "1")
    assert not list(tmp_path.iterdir())
