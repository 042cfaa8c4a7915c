"""Runs the signatures of a SavedModel through TensorFlow's C API, as a server does.

    python -I c_api.py LIBRARY EXPORT_DIR REQUESTS.json

The process has neither Keras nor this package nor TensorFlow's Python in it: only Python's own
library and the one from the wheel, whose loader TF Serving shares. REQUESTS.json is a list of
{"input": "name:0", "output": "name:0"} with "file" (the array's bytes), "dtype" and "shape", or
with "strings": [hex, ...]; prints a JSON list of {"shape", "values"} or {"error"}, in order.
"""

import array
import ctypes
import json
import sys

TYPES = {"float32": 1, "uint8": 4}  # TF_DataType
STRING, STRING_BYTES = 7, 24  # and the size of a TF_TString


class Output(ctypes.Structure):
    """TF_Output: an operation and which of its outputs."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


def bind(path):
    """The library with the types of what is used of it."""
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
    """A session and its graph."""
    graph, tags = tf.TF_NewGraph(), (ctypes.c_char_p * 1)(b"serve")
    session = tf.TF_LoadSessionFromSavedModel(
        tf.TF_NewSessionOptions(), None, path.encode(), tags, 1, graph, None, status
    )
    if tf.TF_GetCode(status):
        sys.exit(tf.TF_Message(status).decode())
    return session, graph


def tensor_of(tf, request):
    """The input of a request as a TF_Tensor."""
    if "strings" in request:
        strings = [bytes.fromhex(text) for text in request["strings"]]
        shape = (ctypes.c_int64 * 1)(len(strings))
        tensor = tf.TF_AllocateTensor(STRING, shape, 1, STRING_BYTES * len(strings))
        start = tf.TF_TensorData(tensor)
        for place, string in enumerate(strings):
            tf.TF_StringInit(start + place * STRING_BYTES)
            tf.TF_StringCopy(start + place * STRING_BYTES, string, len(string))
        return tensor
    with open(request["file"], "rb") as file:
        content = file.read()
    shape = (ctypes.c_int64 * len(request["shape"]))(*request["shape"])
    tensor = tf.TF_AllocateTensor(TYPES[request["dtype"]], shape, len(shape), len(content))
    if content:
        ctypes.memmove(tf.TF_TensorData(tensor), content, len(content))
    return tensor


def output_of(tf, graph, name):
    """A TF_Output by its name, "operation:index"."""
    operation, _, index = name.partition(":")
    return Output(tf.TF_GraphOperationByName(graph, operation.encode()), int(index))


def answer(tf, session, graph, request, status):
    """Runs a request; {"shape", "values"} or {"error"}."""
    inputs = (Output * 1)(output_of(tf, graph, request["input"]))
    outputs = (Output * 1)(output_of(tf, graph, request["output"]))
    given = (ctypes.c_void_p * 1)(tensor_of(tf, request))
    got = (ctypes.c_void_p * 1)()
    tf.TF_SessionRun(session, None, inputs, given, 1, outputs, got, 1, None, 0, None, status)
    if tf.TF_GetCode(status):
        return {"error": tf.TF_Message(status).decode()}
    shape = [tf.TF_Dim(got[0], axis) for axis in range(tf.TF_NumDims(got[0]))]
    data = ctypes.string_at(tf.TF_TensorData(got[0]), tf.TF_TensorByteSize(got[0]))
    return {"shape": shape, "values": array.array("f", data).tolist()}


def main(library, path, requests):
    """Answers all requests of a file in one session."""
    tf = bind(library)
    status = tf.TF_NewStatus()
    session, graph = load(tf, path, status)
    with open(requests) as file:
        answers = [answer(tf, session, graph, each, status) for each in json.load(file)]
    others = {"tensorflow", "keras", "simclr_tf"} & set(sys.modules)
    assert not others, others
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
