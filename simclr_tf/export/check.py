"""Compares the signatures of an exported SavedModel with the encoder, outside this process.

`run_signatures` runs them in a process of its own, by TensorFlow's C API (`c_api`), whose loader TF
Serving uses too.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import saved_model_pb2

from simclr_tf.errors import ExportError

TIMEOUT_SECONDS = 600  # for loading the SavedModel and running all requests


def check_export(path, module, expect, tolerance):
    """Raises `ExportError` unless every signature returns what the encoder computes.

    Requests that must fail are sent in between: they must not affect later ones.

    Args:
      path: directory of the SavedModel.
      module: the `serving.Serving` that was saved.
      expect: function of float32 images [batch, H, W, 3] in [0, 1] to a dict of the outputs
        expected, of which those that are not float32 are not compared.
      tolerance: largest difference, as a fraction of the largest number expected.

    Raises:
      ExportError: an output is wrong, a valid request fails, or an invalid one succeeds.
    """
    images = np.random.default_rng(0).integers(0, 256, [2, *module.size, 3], np.uint8)
    with tf.device("/CPU:0"):  # as the separate process does
        expected = expect(tf.constant(images / np.float32(255)))
    expected = {name: each.numpy() for name, each in expected.items() if each.dtype == tf.float32}
    invalid = [
        ("serving_bytes", [b"not an image"]),
        ("serving_default", images[0]),  # of rank 3
        ("serving_float", np.zeros([0, *module.size, 3], np.float32)),
        ("serving_float", np.full([1, *module.size, 3], 255, np.float32)),
    ]
    valid = [
        ("serving_bytes", [tf.io.encode_png(image).numpy() for image in images]),
        ("serving_default", images),
        ("serving_float", images / np.float32(255)),
        ("serving_float", images / np.float32(255)),
    ]
    pairs = [(name, *pair) for name in expected for pair in zip(invalid, valid)]
    requests = [(*request, name) for name, *pair in pairs for request in pair]
    outputs = run_signatures(path, requests)
    for (name, (of_invalid, _), (of_valid, _)), refused, output in zip(
        pairs, outputs[::2], outputs[1::2]
    ):
        if not isinstance(refused, str):
            raise ExportError(f"{of_invalid} accepted an invalid request. Nothing was written.")
        _check_output(of_valid, name, output, expected[name], tolerance)


def _check_output(signature, name, output, expected, tolerance):
    if isinstance(output, str):
        raise ExportError(f"{signature} of the exported encoder fails: {output}")
    error = np.abs(output - expected).max() / max(np.abs(expected).max(), 1e-12)
    if not error <= tolerance:  # a NaN fails too
        raise ExportError(
            f"{signature} of the exported encoder differs from the encoder by {error:.1e} of the "
            f"largest number of {name}, where {tolerance:.0e} is allowed. Nothing was written."
        )


def run_signatures(path, requests):
    """Runs the signatures of a SavedModel in a process of its own, as a server would.

    The process loads TensorFlow's C library alone, as TF Serving does. Where TensorFlow is
    installed without that library, it uses `tf.saved_model.load` instead, and logs that it did.

    Args:
      path: directory of the SavedModel.
      requests: (signature, value) or (signature, value, output) tuples; a value is a uint8 or
        float32 array, or a list of bytes; output is the name of a float32 output, by default
        "embedding", or the only one.

    Returns:
      A list with the output of each request, a float32 array, or the error message, a str.

    Raises:
      ExportError: the SavedModel cannot be loaded, or does not answer in time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "requests.json"
        file.write_text(json.dumps(_serialized(path, requests, scratch)))
        done = _run([*_interpreter(), str(path), str(file)])
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"a server could not load the exported encoder: {reason}")
    return [
        result["error"]
        if "error" in result
        else np.reshape(result["values"], result["shape"]).astype(np.float32)
        for result in json.loads(done.stdout.splitlines()[-1])
    ]


def _interpreter():
    """The command that runs requests, without the SavedModel and the file of requests."""
    scripts, library = pathlib.Path(__file__).parent, _library()
    if library:
        return [sys.executable, "-I", str(scripts / "c_api.py"), str(library)]
    logging.warning(
        "%s holds no libtensorflow_cc: the export is checked with tf.saved_model.load instead of "
        "the C API.",
        tf.sysconfig.get_lib(),
    )
    # The module by its path: the directory of a script would be searched for imports first.
    code = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-c", code, str(scripts / "python_api.py")]


def _run(command):
    env = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",  # during training the accelerator has no memory left
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # without -I: as in this process
    }
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"the exported encoder did not answer within {TIMEOUT_SECONDS} s; nothing was written."
        ) from error


def _library():
    """TensorFlow's library with the C API, as its wheel has it; None where there is none."""
    return min(pathlib.Path(tf.sysconfig.get_lib()).glob("libtensorflow_cc.*"), default=None)


def _serialized(path, requests, folder):
    """The requests as `c_api` and `python_api` read them; arrays as files in `folder`."""
    saved_model = (pathlib.Path(path) / "saved_model.pb").read_bytes()
    graphs = saved_model_pb2.SavedModel.FromString(saved_model).meta_graphs
    rows = []
    for number, (name, value, *key) in enumerate(requests):
        signature = graphs[0].signature_def[name]
        (source,), outputs = signature.inputs.values(), signature.outputs
        key = key[0] if key else "embedding" if "embedding" in outputs else min(outputs)
        row = {"signature": name, "input": source.name, "output": outputs[key].name, "key": key}
        if isinstance(value, list):
            row["strings"] = [file.hex() for file in value]
        else:
            row["file"] = str(pathlib.Path(folder) / str(number))
            row["dtype"], row["shape"] = value.dtype.name, value.shape
            pathlib.Path(row["file"]).write_bytes(value.tobytes())
        rows.append(row)
    return rows
