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
from tensorflow.core.protobuf import saved_model_pb2

from simclr_tf.errors import ExportError

SECONDS = 600  # for loading and answering


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
    """Answers of a SavedModel's signatures, by the C API in a process without Keras.

    Args:
      path: of the SavedModel.
      requests: (signature, value) pairs; a value is a uint8 or float32 array, or a list of bytes.

    Returns:
      For each request the output, a float32 array, or the error's text; in order, of one session.

    Raises:
      ExportError: the SavedModel cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as place:
        written = pathlib.Path(place) / "requests.json"
        written.write_text(json.dumps(_written(path, requests, place)))
        child = pathlib.Path(__file__).with_name("c_api.py")
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(child), str(_library()), str(path), str(written)],
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
                # Beside a training process the accelerator has no memory left.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"the exported encoder did not answer within {SECONDS} s; nothing was kept."
            ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"a server could not load the exported encoder: {reason}")
    return [
        answer["error"]
        if "error" in answer
        else np.reshape(answer["values"], answer["shape"]).astype(np.float32)
        for answer in json.loads(done.stdout.splitlines()[-1])
    ]


def _library():
    """TensorFlow's library with the C API, as the wheel has it."""
    found = sorted(pathlib.Path(tf.sysconfig.get_lib()).glob("libtensorflow_cc.*"))
    if not found:
        raise ExportError(
            f"the exported encoder is checked by libtensorflow_cc; {tf.sysconfig.get_lib()} has "
            "none. Take TensorFlow from its wheel."
        )
    return found[0]


def _written(path, requests, place):
    """The requests as `c_api` reads them; arrays as files in `place`."""
    saved_model = (pathlib.Path(path) / "saved_model.pb").read_bytes()
    graphs = saved_model_pb2.SavedModel.FromString(saved_model).meta_graphs
    rows = []
    for number, (name, value) in enumerate(requests):
        signature = graphs[0].signature_def[name]
        (given,), (got,) = signature.inputs.values(), signature.outputs.values()
        row = {"input": given.name, "output": got.name}
        if isinstance(value, list):
            row["strings"] = [file.hex() for file in value]
        else:
            row["file"] = str(pathlib.Path(place) / str(number))
            row["dtype"], row["shape"] = value.dtype.name, value.shape
            pathlib.Path(row["file"]).write_bytes(value.tobytes())
        rows.append(row)
    return rows
