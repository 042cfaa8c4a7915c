"""The warm-up requests of an export are in the format of TF Serving and fit its signatures."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from simclr_tf import ResNet
from simclr_tf.export import export_encoder, warmup
from simclr_tf.export.warmup import write_warmup

HEIGHT, WIDTH = 16, 24


@pytest.fixture(scope="module")
def export(tmp_path_factory, quick_runs):
    """A SavedModel; every export has a warm-up file."""
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, HEIGHT, WIDTH, 3))
    path = export_encoder(encoder, tmp_path_factory.mktemp("warmup") / "simclr" / "1")
    return path


@pytest.fixture(scope="module")
def signatures(export):
    """The SignatureDefs in saved_model.pb, by name."""
    saved_model = saved_model_pb2.SavedModel.FromString((export / "saved_model.pb").read_bytes())
    found = saved_model.meta_graphs[0].signature_def
    return {name: found[name] for name in found if not name.startswith("__")}


@pytest.fixture(scope="module")
def requests(export):
    """The PredictRequests, as `tensorflow-serving-api` parses the file that TF Serving reads."""
    file = export / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert {log.WhichOneof("log_type") for log in logs} == {"predict_log"}
    return [log.predict_log.request for log in logs]


def test_each_signature_is_warmed_by_one_image_and_by_several(signatures, requests):
    """Within the limit of 1,000 records."""
    batch_sizes = collections.defaultdict(set)
    for request in requests:
        (tensor,) = request.inputs.values()
        batch_sizes[request.model_spec.signature_name].add(tensor.tensor_shape.dim[0].size)
    assert batch_sizes == {name: {1, 8} for name in signatures}
    assert len(requests) <= 1000


def test_the_inputs_fit_the_signatures(signatures, requests):
    """Key, dtype, rank and the sizes that the signature fixes."""
    for request in requests:
        inputs = signatures[request.model_spec.signature_name].inputs
        assert set(request.inputs) == set(inputs)
        for key, tensor in request.inputs.items():
            assert tensor.dtype == inputs[key].dtype
            wanted = tf.TensorShape(inputs[key].tensor_shape)
            assert wanted.is_compatible_with(tf.TensorShape(tensor.tensor_shape))


def test_every_request_succeeds(export, requests):
    """One row per image; images have the encoder's size, files are JPEG and PNG."""
    served = tf.saved_model.load(str(export)).signatures
    for request in requests:
        ((key, tensor),) = request.inputs.items()
        # Parsed by TensorFlow's own kernel, as in the server.
        value = tf.io.parse_tensor(tensor.SerializeToString(), tf.as_dtype(tensor.dtype))
        if key == "images":
            assert value.shape[1:] == (HEIGHT, WIDTH, 3)
            assert 0 < np.min(value) <= np.max(value) <= (255 if value.dtype == tf.uint8 else 1)
        else:
            kinds = {file[1:4] for file in value.numpy()}
            assert kinds <= {b"\xd8\xff\xe0", b"PNG"} and len(kinds) == min(2, len(value))
        answer = served[request.model_spec.signature_name](**{key: value})["embedding"]
        assert answer.shape == (len(value), 32) and np.isfinite(answer).all()


def test_the_file_is_reproducible_and_small(tmp_path):
    """At 224 pixels too, where eight float images take 4.8 MB."""
    files = [write_warmup(tmp_path, (224, 224)).read_bytes() for _ in range(2)]
    assert files[0] == files[1] and len(files[0]) < 200_000


@pytest.mark.parametrize("length", [0, 1, 96, 127, 128, 255, 256, 16_383, 16_384, 3_000_000])
def test_a_record_equals_that_of_tensorflow_serving_api(length):
    """Byte for byte, around the lengths at which the varint takes one more byte."""
    tensor = tf.make_tensor_proto([b"x" * length])
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = "serving_bytes"
    request.inputs["image_bytes"].CopyFrom(tensor)
    got = warmup._prediction_log("serving_bytes", "image_bytes", tensor)
    assert got == log.SerializeToString()
