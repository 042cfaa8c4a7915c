"""Whether an exported SavedModel answers as the encoder does, seen from outside Keras.

`run_signatures` runs them by TensorFlow's C API in a process of its own (`c_api`), with the loader
that TF Serving has too.
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

TIMEOUT_SECONDS = 600  # for loading and answering


def check_export(path, module, expect, tolerance):
    """Asks every signature for embeddings, with requests between that cannot be answered.

    Args:
      path: of the SavedModel.
      module: `serving.Serving` that it was written from.
      expect: float32 images [batch, H, W, 3] in [0, 1] to the embeddings expected.
      tolerance: how far answers may lie from them, as a share of the largest number expected.

    Raises:
      ExportError: an answer is wrong or missing, or a bad request was answered.
    """
    images = np.random.default_rng(0).integers(0, 256, [2, *module.size, 3], np.uint8)
    with tf.device("/CPU:0"):  # where the signatures are run too
        expected = np.asarray(expect(tf.constant(images / np.float32(255))))
    size, uint8, scaled = module.size, images, images / np.float32(255)
    # Requests that must be refused come between those that must be answered all the same.
    refused = [
        ("serving_bytes", [b"not an image"]),
        ("serving_default", uint8[0]),  # of rank 3
        ("serving_float", np.zeros([0, *size, 3], np.float32)),
        ("serving_float", np.full([1, *size, 3], 255, np.float32)),
    ]
    answered = [
        ("serving_bytes", [tf.io.encode_png(image).numpy() for image in uint8]),
        ("serving_default", uint8),
        ("serving_float", scaled),
        ("serving_float", scaled),
    ]
    requests = [request for pair in zip(refused, answered) for request in pair]
    answers = run_signatures(path, requests)
    for (signature, _), answer in zip(refused, answers[::2]):
        if not isinstance(answer, str):
            raise ExportError(f"{signature} answered a request that it should refuse.")
    for (signature, _), answer in zip(answered, answers[1::2]):
        _check_answer(signature, answer, expected, tolerance)


def _check_answer(signature, answer, expected, tolerance):
    if isinstance(answer, str):
        raise ExportError(f"{signature} of the exported encoder fails: {answer}")
    error = np.abs(answer - expected).max() / max(np.abs(expected).max(), 1e-12)
    if not error <= tolerance:  # NaN is wrong too
        raise ExportError(
            f"{signature} of the exported encoder differs from the encoder by {error:.1e} of "
            f"the largest number, where {tolerance:.0e} is allowed. Nothing was kept."
        )


def run_signatures(path, requests):
    """Runs the signatures of a SavedModel in a process of its own, as a server would.

    The process loads TensorFlow's C library alone, as TF Serving does. Where TensorFlow is
    installed without that library, it uses `tf.saved_model.load` instead, and logs that it did.

    Args:
      path: directory of the SavedModel.
      requests: (signature, value) pairs; a value is a uint8 or float32 array, or a list of bytes.

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
        answer["error"]
        if "error" in answer
        else np.reshape(answer["values"], answer["shape"]).astype(np.float32)
        for answer in json.loads(done.stdout.splitlines()[-1])
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
            f"the exported encoder did not answer within {TIMEOUT_SECONDS} s; nothing was kept."
        ) from error


def _library():
    """TensorFlow's library with the C API, as its wheel has it; None where there is none."""
    return min(pathlib.Path(tf.sysconfig.get_lib()).glob("libtensorflow_cc.*"), default=None)


def _serialized(path, requests, folder):
    """The requests as `c_api` and `python_api` read them; arrays as files in `folder`."""
    saved_model = (pathlib.Path(path) / "saved_model.pb").read_bytes()
    graphs = saved_model_pb2.SavedModel.FromString(saved_model).meta_graphs
    rows = []
    for number, (name, value) in enumerate(requests):
        signature = graphs[0].signature_def[name]
        (given,), (got,) = signature.inputs.values(), signature.outputs.values()
        row = {"signature": name, "input": given.name, "output": got.name}
        if isinstance(value, list):
            row["strings"] = [file.hex() for file in value]
        else:
            row["file"] = str(pathlib.Path(folder) / str(number))
            row["dtype"], row["shape"] = value.dtype.name, value.shape
            pathlib.Path(row["file"]).write_bytes(value.tobytes())
        rows.append(row)
    return rows
