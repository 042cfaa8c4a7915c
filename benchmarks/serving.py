"""The exported encoder: milliseconds a request, beside `model.predict` and ONNX Runtime.

    python benchmarks/serving.py [--repeats=21] [--encoders=resnet18@32,resnet50@224]

Random weights, images of the encoder's own size, all cores, contenders in turns in one process; one
call in Python is a request. ONNX Runtime takes part where tf2onnx and onnxruntime are installed
(with onnx 1.17: later ones need another ml_dtypes than TensorFlow 2.15).
"""

import argparse
import functools
import os
import pathlib
import tempfile

import measure
import numpy as np
import tensorflow as tf

from simclr_tf import encoders, export
from simclr_tf.export.serving import Serving

ENCODERS = ("resnet18@32", "resnet50@224")
BATCHES = (1, 64)


def saved_model(path):
    """A function of images by the signature of a SavedModel."""
    loaded = tf.saved_model.load(str(path))

    def call(images, loaded=loaded):  # which keeps the variables alive
        return loaded.signatures["serving_float"](images=tf.constant(images))["embedding"]

    return call


def unfolded(encoder, size, path):
    """The same SavedModel with batch normalisation as layers of its own."""
    twin = export.functional_copy(encoder, (size, size, 3))
    module = Serving(twin, (size, size))
    tf.saved_model.save(module, path, {"serving_float": module.of_float.get_concrete_function()})
    return saved_model(path)


def lite(path, batch, examples=None):
    """A function of images by TensorFlow Lite; examples: for int8, what it is given too."""
    interpreter = tf.lite.Interpreter(str(path), num_threads=os.cpu_count())
    given, got = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(given["index"], [batch, *given["shape"][1:]])
    interpreter.allocate_tensors()

    def call(images):
        interpreter.set_tensor(given["index"], images if examples is None else examples[:batch])
        interpreter.invoke()
        return interpreter.get_tensor(got["index"])

    return call


def onnx_runtime(encoder, size):
    """A function of images by ONNX Runtime; None where it is not installed."""
    try:
        import onnxruntime
        import tf2onnx
    except ImportError:
        return None
    twin = export.functional_copy(encoder, (size, size, 3))
    model, _ = tf2onnx.convert.from_function(
        tf.function(lambda images: twin(images, training=False), autograph=False),
        [tf.TensorSpec([None, size, size, 3], tf.float32, name="images")],
        opset=17,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda images: session.run(None, {"images": images})[0]


def contenders(encoder, size, batch, place):
    """Name to a function of float32 images [batch, size, size, 3]."""
    twin = export.functional_copy(encoder, (size, size, 3))
    shape = {"image_shape": (size, size, 3)}
    pixels = np.random.default_rng(0).integers(0, 256, [64, size, size, 3], np.uint8)
    paths = {name: place / name for name in ("encoder", "plain", "float.tflite", "int8.tflite")}
    if not paths["encoder"].exists():
        export.export_encoder(encoder, paths["encoder"], **shape)
        export.export_tflite(encoder, paths["float.tflite"], **shape)
        export.export_tflite(
            encoder, paths["int8.tflite"], precision="int8", examples=pixels, **shape
        )
    found = {
        "model.predict": lambda images: twin.predict(images, batch_size=batch, verbose=0),
        "SavedModel, unfolded": unfolded(encoder, size, str(paths["plain"])),
        "SavedModel, as exported": saved_model(paths["encoder"]),
        "TensorFlow Lite, float32": lite(paths["float.tflite"], batch),
        "TensorFlow Lite, int8": lite(paths["int8.tflite"], batch, pixels),
        "ONNX Runtime": onnx_runtime(encoder, size),
    }
    return {name: call for name, call in found.items() if call}


def outputs_match(calls, images):
    """Raises where a contender in float32 computes something else."""
    expected = calls["model.predict"](images)
    for name, call in calls.items():
        if "int8" not in name:
            np.testing.assert_allclose(call(images), expected, atol=1e-4 * expected.max())


def run(repeats, chosen=ENCODERS):
    """Rows: contender, encoder, batch, milliseconds, images a second, ratio to `model.predict`."""
    rows = []
    for name in chosen:
        kind, size = name.split("@")
        encoder = encoders.by_name(kind, int(size))
        with tempfile.TemporaryDirectory() as place:
            for batch in BATCHES:
                calls = contenders(encoder, int(size), batch, pathlib.Path(place))
                images = np.random.default_rng(1).random((batch, *[int(size)] * 2, 3), np.float32)
                outputs_match(calls, images)
                bound = {key: functools.partial(call, images) for key, call in calls.items()}
                rows += _rows(name, batch, measure.seconds(bound, repeats if batch == 1 else 5))
    return rows


def _rows(name, batch, medians):
    return [
        {
            "contender": key,
            "encoder": name,
            "batch": batch,
            "milliseconds": 1e3 * median,
            "images": batch / median,
            "to_predict": medians["model.predict"] / median,
        }
        for key, median in medians.items()
    ]


COLUMNS = {
    "contender": ("Embeddings of images", ""),
    "encoder": ("encoder", ""),
    "batch": ("batch", "d"),
    "milliseconds": ("ms a request", ".1f"),
    "images": ("images/s", ",.0f"),
    "to_predict": ("x model.predict", ".2f"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    options = parser.parse_args()
    found = run(options.repeats, options.encoders.split(","))
    measure.show(__doc__.splitlines()[0], COLUMNS, found)
