"""Runs the signatures of a SavedModel through TensorFlow's C API, as a server does.

    python -I c_api.py LIBRARY EXPORT_DIR REQUESTS.json

The process imports neither Keras nor this package nor TensorFlow's Python API, only the standard
library; it loads TensorFlow's C library, which has the same SavedModel loader as TF Serving.

REQUESTS.json is a list of {"input": "name:0", "output": "name:0"} with "file" (the bytes of an
array), "dtype" and "shape", or with "strings": [hex, ...]. The script prints a JSON list with
{"shape", "values"} or {"error"} for each request.
"""

import array
import ctypes
import json
import sys

TYPES = {"float32": 1, "uint8": 4}  # TF_DataType
STRING, STRING_BYTES = 7, 24  # TF_DataType, and the size of a TF_TString


class Output(ctypes.Structure):
    """TF_Output: an operation and the index of one of its outputs."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


def bind(path):
    """Loads the library and declares the types of the functions that are used."""
    tf = ctypes.CDLL(path)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    functions = {
        "TF_NewStatus": (pointer, []),
        "TF_GetCode": (ctypes.c_int, [pointer]),
        "TF_Message": (text, [pointer]),
        "TF_NewGraph": (pointer, []),
        "TF_NewSessionOptions": (pointer, []),
        "TF_LoadSessionFromSavedModel": (
            pointer,
            [pointer, pointer, text, pointer, ctypes.c_int, pointer, pointer, pointer],
        ),
        "TF_GraphOperationByName": (pointer, [pointer, text]),
        "TF_AllocateTensor": (pointer, [ctypes.c_int, pointer, ctypes.c_int, ctypes.c_size_t]),
        "TF_TensorData": (pointer, [pointer]),
        "TF_NumDims": (ctypes.c_int, [pointer]),
        "TF_Dim": (ctypes.c_int64, [pointer, ctypes.c_int]),
        "TF_TensorByteSize": (ctypes.c_size_t, [pointer]),
        "TF_StringInit": (None, [pointer]),
        "TF_StringCopy": (None, [pointer, text, ctypes.c_size_t]),
        "TF_SessionRun": (
            None,
            [*[pointer] * 4, number, *[pointer] * 2, number, pointer, number, *[pointer] * 2],
        ),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(tf, name)
        function.restype, function.argtypes = result, arguments
    return tf


def load(tf, path, status):
    """Loads a SavedModel; returns the session and its graph."""
    graph, tags = tf.TF_NewGraph(), (ctypes.c_char_p * 1)(b"serve")
    session = tf.TF_LoadSessionFromSavedModel(
        tf.TF_NewSessionOptions(), None, path.encode(), tags, 1, graph, None, status
    )
    if tf.TF_GetCode(status):
        sys.exit(tf.TF_Message(status).decode())
    return session, graph


def tensor_of(tf, request):
    """Returns the input of a request as a TF_Tensor."""
    if "strings" in request:
        strings = [bytes.fromhex(text) for text in request["strings"]]
        shape = (ctypes.c_int64 * 1)(len(strings))
        tensor = tf.TF_AllocateTensor(STRING, shape, 1, STRING_BYTES * len(strings))
        start = tf.TF_TensorData(tensor)
        for index, string in enumerate(strings):
            tf.TF_StringInit(start + index * STRING_BYTES)
            tf.TF_StringCopy(start + index * STRING_BYTES, string, len(string))
        return tensor
    with open(request["file"], "rb") as file:
        content = file.read()
    shape = (ctypes.c_int64 * len(request["shape"]))(*request["shape"])
    tensor = tf.TF_AllocateTensor(TYPES[request["dtype"]], shape, len(shape), len(content))
    if content:
        ctypes.memmove(tf.TF_TensorData(tensor), content, len(content))
    return tensor


def output_of(tf, graph, name):
    """Returns the TF_Output of a tensor name, "operation:index"."""
    operation, _, index = name.partition(":")
    return Output(tf.TF_GraphOperationByName(graph, operation.encode()), int(index))


def run(tf, session, graph, request, status):
    """Runs a request; returns {"shape", "values"} or {"error"}."""
    inputs = (Output * 1)(output_of(tf, graph, request["input"]))
    outputs = (Output * 1)(output_of(tf, graph, request["output"]))
    values = (ctypes.c_void_p * 1)(tensor_of(tf, request))
    results = (ctypes.c_void_p * 1)()
    tf.TF_SessionRun(session, None, inputs, values, 1, outputs, results, 1, None, 0, None, status)
    if tf.TF_GetCode(status):
        return {"error": tf.TF_Message(status).decode()}
    shape = [tf.TF_Dim(results[0], axis) for axis in range(tf.TF_NumDims(results[0]))]
    data = ctypes.string_at(tf.TF_TensorData(results[0]), tf.TF_TensorByteSize(results[0]))
    return {"shape": shape, "values": array.array("f", data).tolist()}


def main(library, path, requests):
    """Runs all requests of a file in one session and prints the results."""
    tf = bind(library)
    status = tf.TF_NewStatus()
    session, graph = load(tf, path, status)
    with open(requests) as file:
        results = [run(tf, session, graph, each, status) for each in json.load(file)]
    others = {"tensorflow", "keras", "simclr_tf"} & set(sys.modules)
    assert not others, others
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
