"""Warm-up requests: what TF Serving runs on a model before it answers anyone.

The first request of each signature would else wait for allocation, graph optimization and, on a
GPU, the choice of kernels. The file is a TFRecord of `tensorflow.serving.PredictionLog`; its few
nested fields are written here, so that `tensorflow-serving-api`, which defines it, is not needed.
The signatures are in `serving`, writing them in `saved_model`.
"""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

WARMUP = "assets.extra/tf_serving_warmup_requests"  # where TF Serving looks; 1,000 records at most
BATCH_SIZES = (1, 8)  # one image, and a small batch; a server's max_batch_size is at least the last


def write_warmup(path, image_size):
    """Writes the warm-up requests of an exported encoder, two for each signature.

    A request that the model cannot answer keeps TF Serving from serving that version at all, and a
    file cut short does so too: write it before the directory gets its final name.

    Args:
      path: the directory with `saved_model.pb`, as `export_encoder` writes it.
      image_size: (height, width) that the encoder takes, in pixels.

    Returns:
      The file, as `pathlib.Path`.
    """
    file = pathlib.Path(path) / WARMUP
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for count in BATCH_SIZES:
            for signature, key, tensor in _requests(count, image_size):
                writer.write(_prediction_log(signature, key, tensor))
    return file


def _requests(count, image_size):
    """(signature, input, TensorProto) of each signature for `count` images."""
    shape = (count, *image_size, 3)
    # One grey, said once: a TensorProto repeats its last value. Drawn pixels would run the same
    # kernels and take 7 MB at 224 pixels.
    yield "serving_default", "images", tf.make_tensor_proto(128, tf.uint8, shape)
    yield "serving_float", "images", tf.make_tensor_proto(0.5, tf.float32, shape)
    files = _files(image_size)
    # One image is a JPEG, the usual case; more are JPEG and PNG in turn.
    some = [files[place % 2] for place in range(count)]
    yield "serving_bytes", "image_bytes", tf.make_tensor_proto(some, tf.string, [count])


def _files(image_size):
    """A colour ramp of the encoder's size, as the bytes of a JPEG and of a PNG file."""
    height, width = image_size
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 255 // height, columns * 255 // width, 0 * rows], -1).astype(np.uint8)
    return tf.io.encode_jpeg(ramp).numpy(), tf.io.encode_png(ramp).numpy()


def _prediction_log(signature, key, tensor):
    """The bytes of a PredictionLog with a Predict request.

    Field numbers are those of TF Serving's apis/*.proto. ModelSpec's name and version stay empty:
    TF Serving runs a record on the model beside it, and would only repeat the name in an answer
    that nobody reads (RunSavedModelWarmup, and RunPredict in predict_util.cc).
    """
    model_spec = _field(3, signature.encode())  # ModelSpec.signature_name
    entry = _field(1, key.encode()) + _field(2, tensor.SerializeToString())  # of map inputs
    request = _field(1, model_spec) + _field(2, entry)  # PredictRequest.model_spec, .inputs
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _field(number, content):
    """A length-delimited field in protobuf's wire format: tag, length as a varint, bytes."""
    left, length = len(content), bytearray()
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([number << 3 | 2, *length, left]) + content
