"""A fake TF Serving: its REST and gRPC protocols in front of the signatures of a SavedModel.

It implements what a client of one encoder uses: predict, status, and errors with the messages and
codes of version 2.15 (http_rest_api_handler.cc, json_tensor.cc, predict_util.cc). It neither
batches requests nor polls for versions, and knows no version labels.
"""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import re
import threading

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict")
STATUS = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?")
HTTP = {tf.errors.INVALID_ARGUMENT: 400, tf.errors.NOT_FOUND: 404}


class Model:
    """One version of one model, for both protocols.

    Args:
      name, version: of the model.
      signatures: those of a loaded SavedModel.
    """

    def __init__(self, name, version, signatures):
        self.name, self.version, self.signatures = name, version, signatures
        self.batch_sizes = []  # of the requests received

    def find(self, name, version):
        """Raises NotFoundError unless this is the model requested; version None is the newest."""
        if name != self.name or version not in (None, self.version):
            which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise tf.errors.NotFoundError(None, None, f"Servable not found for request: {which}")

    def run(self, signature, inputs):
        """Returns the outputs for named inputs; raises InvalidArgumentError as TF Serving does."""
        function = self.signatures[signature or "serving_default"]
        _, wanted = function.structured_input_signature
        if set(inputs) != set(wanted):
            message = f"input size does not match signature: {sorted(inputs)} != {sorted(wanted)}"
            raise tf.errors.InvalidArgumentError(None, None, message)
        self.batch_sizes.append(len(next(iter(inputs.values()))))
        tensors = {key: tf.constant(value, wanted[key].dtype) for key, value in inputs.items()}
        try:
            return {key: value.numpy() for key, value in function(**tensors).items()}
        except tf.errors.InvalidArgumentError as error:
            # Without the lines that TensorFlow's Python API adds.
            message = error.message.rpartition("<stack traces unavailable>\n")[2]
            message = message.partition(" [Op:")[0]
            raise tf.errors.InvalidArgumentError(None, None, message) from None

    def input_of(self, signature):
        """Returns the name of the only input of a signature."""
        function = self.signatures.get(signature or "serving_default")
        if function is None:
            message = f'Serving signature name: "{signature}" not found in signature def'
            raise tf.errors.InvalidArgumentError(None, None, message)
        (key,) = function.structured_input_signature[1]
        return key


def predict_json(model, body):
    """Returns the response to the JSON of a predict request, in row or column format."""
    request = json.loads(body)
    signature = request.get("signature_name", "")
    key = model.input_of(signature)
    if ("instances" in request) == ("inputs" in request):
        raise tf.errors.InvalidArgumentError(None, None, "Missing 'inputs' or 'instances' key")
    by_row = "instances" in request
    values = request["instances" if by_row else "inputs"]
    if by_row and isinstance(values[0], dict) and set(values[0]) != {"b64"}:
        values = [value[key] for value in values]
    elif not by_row and isinstance(values, dict):
        values = values[key]
    if isinstance(values[0], dict):
        values = [base64.b64decode(value["b64"], validate=True) for value in values]
    (output,) = model.run(signature, {key: values}).values()
    return {"predictions" if by_row else "outputs": output.tolist()}


def status_json(model):
    """Returns the response to a status request."""
    state = {"version": str(model.version), "state": "AVAILABLE"}
    state["status"] = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [state]}


def handler_of(model):
    """Returns a request handler class for `http.server`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(PREDICT, lambda: predict_json(model, body))

        def do_GET(self):
            self.reply(STATUS, lambda: status_json(model))

        def reply(self, pattern, respond):
            match = pattern.fullmatch(self.path)
            if not match:
                return self.send(404, None)
            try:
                model.find(match[1], match[2] and int(match[2]))
                self.send(200, respond())
            except tf.errors.OpError as error:
                self.send(HTTP[error.error_code], {"error": error.message})

        def send(self, code, content):
            body = b"" if content is None else json.dumps(content, indent=4).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


@contextlib.contextmanager
def http_served(handler):
    """Serves on a free port of this machine; yields "127.0.0.1:PORT"."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict of TF Serving's PredictionService."""

    def __init__(self, model):
        self.model = model

    def Predict(self, request, context):  # noqa: N802 - gRPC's name
        spec = request.model_spec
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        try:
            self.model.find(spec.name, spec.version.value if spec.HasField("version") else None)
            outputs = self.model.run(spec.signature_name, inputs)
        except tf.errors.OpError as error:
            context.abort(grpc_code(error), error.message)
        response = predict_pb2.PredictResponse()
        for key, value in outputs.items():
            response.outputs[key].dtype = tf.as_dtype(value.dtype).as_datatype_enum
            response.outputs[key].tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
            # As a list of numbers, like the server, not as bytes.
            response.outputs[key].float_val.extend(np.ravel(value).tolist())
        return response


def grpc_code(error):
    """Returns the gRPC status of a TensorFlow error; both use the same numbers."""
    return next(code for code in grpc.StatusCode if code.value[0] == error.error_code)


@contextlib.contextmanager
def grpc_served(servicer):
    """Serves on a free port of this machine; yields "127.0.0.1:PORT"."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
