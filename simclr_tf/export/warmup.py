"""Warm-up requests, which TF Serving runs before a model version becomes available.

Without them, the first request of each signature would wait for memory allocation, graph
optimisation and, on a GPU, the choice of kernels. The file is a TFRecord of
`tensorflow.serving.PredictionLog`. This module encodes its few nested fields itself, so that the
package does not need `tensorflow-serving-api`, which defines them.
"""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

WARMUP = "assets.extra/tf_serving_warmup_requests"  # where TF Serving looks; 1,000 records at most
BATCH_SIZES = (1, 8)  # one image, and a small batch; max_batch_size of a server must be 8 or more


def write_warmup(path, image_size):
    """Writes the warm-up requests of an exported encoder, two for each signature.

    TF Serving does not serve a version whose warm-up requests fail or whose file is truncated, so
    write the file before the directory is renamed to its final path.

    Args:
      path: the directory that holds `saved_model.pb`.
      image_size: (height, width) of the encoder's images, in pixels.

    Returns:
      The file, a `pathlib.Path`.
    """
    file = pathlib.Path(path) / WARMUP
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for count in BATCH_SIZES:
            for signature, key, tensor in _requests(count, image_size):
                writer.write(_prediction_log(signature, key, tensor))
    return file


def _requests(count, image_size):
    """Yields (signature, input name, TensorProto) of each signature for `count` images."""
    shape = (count, *image_size, 3)
    # All pixels are one grey, stored once: a TensorProto repeats its last value. Random pixels
    # would run the same kernels and take 7 MB at 224 pixels.
    yield "serving_default", "images", tf.make_tensor_proto(128, tf.uint8, shape)
    yield "serving_float", "images", tf.make_tensor_proto(0.5, tf.float32, shape)
    files = _files(image_size)
    # A single image is a JPEG, the usual case; several are JPEG and PNG alternately.
    alternating = [files[index % 2] for index in range(count)]
    yield "serving_bytes", "image_bytes", tf.make_tensor_proto(alternating, tf.string, [count])


def _files(image_size):
    """Returns a colour ramp of the encoder's size as the bytes of a JPEG and of a PNG file."""
    height, width = image_size
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 255 // height, columns * 255 // width, 0 * rows], -1).astype(np.uint8)
    return tf.io.encode_jpeg(ramp).numpy(), tf.io.encode_png(ramp).numpy()


def _prediction_log(signature, key, tensor):
    """Returns the bytes of a PredictionLog with a Predict request.

    Field numbers are those of TF Serving's apis/*.proto. The name and the version in ModelSpec stay
    empty: TF Serving runs the requests on the model whose directory holds the file, and would only
    copy the name to a response that is discarded (RunSavedModelWarmup, and RunPredict in
    predict_util.cc).
    """
    model_spec = _field(3, signature.encode())  # ModelSpec.signature_name
    entry = _field(1, key.encode()) + _field(2, tensor.SerializeToString())  # of map inputs
    request = _field(1, model_spec) + _field(2, entry)  # PredictRequest.model_spec, .inputs
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _field(number, content):
    """Returns a length-delimited field in protobuf's wire format: tag, length as varint, bytes."""
    rest, length = len(content), bytearray()
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + content
