"""Runs the signatures of a SavedModel through `tf.saved_model.load`.

    python python_api.py EXPORT_DIR REQUESTS.json

Stands in for `c_api` where TensorFlow's C library is not installed, with the same requests and
answers. The process has TensorFlow in it, but neither a Keras model nor this package.
"""

import json
import sys

import numpy as np
import tensorflow as tf


def tensor_of(request):
    """The input of a request as a tensor."""
    if "strings" in request:
        return tf.constant([bytes.fromhex(text) for text in request["strings"]], tf.string)
    return tf.constant(np.fromfile(request["file"], request["dtype"]).reshape(request["shape"]))


def answer(signatures, request):
    """Runs a request; {"shape", "values"} or {"error"}."""
    signature = signatures[request["signature"]]
    (name,) = signature.structured_input_signature[1]
    try:
        (output,) = signature(**{name: tensor_of(request)}).values()
    except (tf.errors.OpError, TypeError, ValueError) as error:
        return {"error": str(error)}
    return {"shape": output.shape.as_list(), "values": output.numpy().ravel().tolist()}


def main(path, requests):
    """Answers all requests of a file with one loaded SavedModel."""
    signatures = tf.saved_model.load(path).signatures
    with open(requests) as file:
        answers = [answer(signatures, request) for request in json.load(file)]
    assert "simclr_tf" not in sys.modules
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
