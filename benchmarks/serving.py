"""Latency of the exported encoder, compared with `model.predict` and ONNX Runtime.

    python benchmarks/serving.py [--repeats=21] [--encoders=resnet18@32,resnet50@224]

Encoders have random weights and take images of their own size, on all cores; a request is one call
in Python. ONNX Runtime is included where tf2onnx and onnxruntime are installed (with onnx 1.17:
later versions conflict with TensorFlow 2.15 over ml_dtypes).
"""

import argparse
import functools
import os
import pathlib
import tempfile

import numpy as np
import tensorflow as tf

import measure
from simclr_tf import encoders, export
from simclr_tf.export.serving import Serving

ENCODERS = ("resnet18@32", "resnet50@224")
BATCHES = (1, 64)


def saved_model(path):
    """Returns a function of images that calls the signature of a SavedModel."""
    loaded = tf.saved_model.load(str(path))

    def call(images, loaded=loaded):  # a reference to `loaded` keeps its variables alive
        return loaded.signatures["serving_float"](images=tf.constant(images))["embedding"]

    return call


def unfolded(encoder, size, path):
    """The same as `saved_model`, without batch normalisation folded into convolutions."""
    module = Serving(export.functional_copy(encoder, (size, size, 3)), (size, size))
    tf.saved_model.save(module, path, {"serving_float": module.of_float.get_concrete_function()})
    return saved_model(path)


def lite(path, batch, examples=None):
    """Returns a function of images that runs TensorFlow Lite; for int8, on `examples` instead."""
    interpreter = tf.lite.Interpreter(str(path), num_threads=os.cpu_count())
    inputs, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(inputs["index"], [batch, *inputs["shape"][1:]])
    interpreter.allocate_tensors()

    def call(images):
        interpreter.set_tensor(inputs["index"], images if examples is None else examples[:batch])
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return call


def onnx_runtime(encoder, size):
    """Returns a function of images that runs ONNX Runtime; None where it is not installed."""
    try:
        import onnxruntime
        import tf2onnx
    except ImportError:
        return None
    copy = export.functional_copy(encoder, (size, size, 3))
    model, _ = tf2onnx.convert.from_function(
        tf.function(lambda images: copy(images, training=False), autograph=False),
        [tf.TensorSpec([None, size, size, 3], tf.float32, name="images")],
        opset=17,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda images: session.run(None, {"images": images})[0]


def implementations(encoder, size, batch, directory):
    """Returns a dict from a name to a function of images, float32 [batch, size, size, 3]."""
    copy = export.functional_copy(encoder, (size, size, 3))
    shape = {"image_shape": (size, size, 3)}
    pixels = np.random.default_rng(0).integers(0, 256, [64, size, size, 3], np.uint8)
    paths = {name: directory / name for name in ("encoder", "plain", "float.tflite", "int8.tflite")}
    if not paths["encoder"].exists():
        export.export_encoder(encoder, paths["encoder"], **shape)
        export.export_tflite(encoder, paths["float.tflite"], **shape)
        export.export_tflite(
            encoder, paths["int8.tflite"], precision="int8", examples=pixels, **shape
        )
    calls = {
        "model.predict": lambda images: copy.predict(images, batch_size=batch, verbose=0),
        "SavedModel, unfolded": unfolded(encoder, size, str(paths["plain"])),
        "SavedModel, as exported": saved_model(paths["encoder"]),
        "TensorFlow Lite, float32": lite(paths["float.tflite"], batch),
        "TensorFlow Lite, int8": lite(paths["int8.tflite"], batch, pixels),
        "ONNX Runtime": onnx_runtime(encoder, size),
    }
    return {name: call for name, call in calls.items() if call}


def check_outputs_match(calls, images):
    """Raises AssertionError where a float32 implementation computes another result."""
    expected = calls["model.predict"](images)
    for name, call in calls.items():
        if "int8" not in name:
            np.testing.assert_allclose(call(images), expected, atol=1e-4 * expected.max())


def run(repeats, chosen=ENCODERS):
    """Returns rows: implementation, encoder, batch, milliseconds, images/s, speed-up."""
    rows = []
    for name in chosen:
        kind, size = name.split("@")
        encoder = encoders.by_name(kind, int(size))
        with tempfile.TemporaryDirectory() as directory:
            for batch in BATCHES:
                calls = implementations(encoder, int(size), batch, pathlib.Path(directory))
                images = np.random.default_rng(1).random((batch, *[int(size)] * 2, 3), np.float32)
                check_outputs_match(calls, images)
                bound = {key: functools.partial(call, images) for key, call in calls.items()}
                rows += _rows(name, batch, measure.seconds(bound, repeats if batch == 1 else 5))
    return rows


def _rows(name, batch, medians):
    return [
        {
            "implementation": key,
            "encoder": name,
            "batch": batch,
            "milliseconds": 1e3 * median,
            "images": batch / median,
            "to_predict": medians["model.predict"] / median,
        }
        for key, median in medians.items()
    ]


COLUMNS = {
    "implementation": ("Embeddings of images", ""),
    "encoder": ("encoder", ""),
    "batch": ("batch", "d"),
    "milliseconds": ("ms per request", ".1f"),
    "images": ("images/s", ",.0f"),
    "to_predict": ("x model.predict", ".2f"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21, help="timed requests of one image")
    parser.add_argument("--encoders", default=",".join(ENCODERS), help="encoder@pixels, ...")
    args = parser.parse_args()
    measure.show(__doc__.splitlines()[0], COLUMNS, run(args.repeats, args.encoders.split(",")))
