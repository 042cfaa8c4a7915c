"""Runs the signatures of a SavedModel through `tf.saved_model.load`.

    python python_api.py EXPORT_DIR REQUESTS.json

Used in place of `c_api` where TensorFlow is installed without its C library. Requests have the
name of the "signature" and the "key" of the output too; what is printed is the same. The process
does not import this package.
"""

import json
import sys

import numpy as np
import tensorflow as tf


def tensor_of(request):
    """Returns the input of a request as a tensor."""
    if "strings" in request:
        return tf.constant([bytes.fromhex(text) for text in request["strings"]], tf.string)
    return tf.constant(np.fromfile(request["file"], request["dtype"]).reshape(request["shape"]))


def run(signatures, request):
    """Runs a request; returns {"shape", "values"} or {"error"}."""
    signature = signatures[request["signature"]]
    (name,) = signature.structured_input_signature[1]
    try:
        output = signature(**{name: tensor_of(request)})[request["key"]]
    except (tf.errors.OpError, TypeError, ValueError) as error:
        return {"error": str(error)}
    return {"shape": output.shape.as_list(), "values": output.numpy().ravel().tolist()}


def main(path, requests):
    """Runs all requests of a file on one loaded SavedModel and prints the results."""
    signatures = tf.saved_model.load(path).signatures
    with open(requests) as file:
        results = [run(signatures, request) for request in json.load(file)]
    assert "simclr_tf" not in sys.modules
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
