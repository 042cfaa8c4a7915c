"""Requests embeddings of image files from TF Serving by gRPC; needs tensorflow-serving-api.

    pip install 'tensorflow-serving-api>=2.15.1,<2.16'      # installs grpcio and TensorFlow too
    python grpc_client.py cat.jpg dog.png [--server=localhost:8500] [--output=embeddings.npz]

Prints a line per image: the file, the length D of its embedding, the norm, the first four values.
The exit code is 1 if the server failed for any image (the reason is printed to stderr), and 2 for
invalid arguments.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import: no messages about GPUs

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class BadRequestError(Exception):
    """The server rejected the files of a request; other files may be valid."""


def predict(stub, files, options):
    """Returns the embeddings of the files, float32 [n, D], from one request."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = options.model
    request.model_spec.signature_name = "serving_bytes"
    if options.version:
        request.model_spec.version.value = options.version
    strings = [pathlib.Path(file).read_bytes() for file in files]
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(strings, tf.string))
    try:
        response = stub.Predict(request, timeout=options.timeout_seconds)
    except grpc.RpcError as error:
        raise refusal(error, options) from None
    return tf.make_ndarray(response.outputs["embedding"])


def refusal(error, options):
    """Returns a BadRequestError for INVALID_ARGUMENT; exits for any other error."""
    # Later lines name nodes of TensorFlow's graph.
    line = error.details().strip().partition("\n")[0]
    if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
        return BadRequestError(line)
    if error.code() == grpc.StatusCode.NOT_FOUND:
        sys.exit(f"{options.server}: {line}. Set the model with --model and --version.")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        way_out = "Is TF Serving running? Set its address with --server."
        sys.exit(f"{options.server} gives no answer: {line}. {way_out}")
    sys.exit(f"{options.server}: {error.code().name}, {line}")


def embed(stub, files, options):
    """Yields (file, embedding), or (file, BadRequestError) for a file that the server rejects."""
    for start in range(0, len(files), options.batch_size):
        batch = files[start : start + options.batch_size]
        try:
            answers = predict(stub, batch, options)
        except BadRequestError as error:
            if len(batch) == 1:
                answers = [error]
            else:  # one by one, to find the invalid file
                answers = [answer for file in batch for _, answer in embed(stub, [file], options)]
        yield from zip(batch, answers)


def parse(arguments):
    """Parses and checks the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="JPEG, PNG, BMP or GIF")
    parser.add_argument("--server", default="localhost:8500", help="gRPC address of the server")
    parser.add_argument("--model", default="simclr", help="name of the model in models.config")
    parser.add_argument("--version", type=int, help="version of the model; default: the newest")
    parser.add_argument("--batch_size", type=int, default=8, help="images per request")
    parser.add_argument(
        "--timeout_seconds", type=float, default=30.0, help="timeout of each request"
    )
    parser.add_argument("--output", help="npz file to write: embeddings [n, D], ids [n]")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch_size must be 1 or more; got {options.batch_size}")
    if options.output and not pathlib.Path(options.output).parent.is_dir():
        parser.error(f"no directory for --output={options.output}")
    for file in options.files:
        if not (os.path.isfile(file) and os.access(file, os.R_OK)):
            parser.error(f"no file to read: {file}")
    return options


def main(arguments=None):
    """Embeds the files of the command line and returns the exit code."""
    options = parse(arguments)
    embeddings = {}
    with grpc.insecure_channel(options.server) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for file, row in embed(stub, options.files, options):
            if isinstance(row, BadRequestError):
                print(f"{file}: {row}", file=sys.stderr)
                continue
            embeddings[file] = row
            values = " ".join(f"{value:.4g}" for value in row[:4])
            print(f"{file}: D={len(row)} norm={np.linalg.norm(row):.4g} {values} ...")
    if options.output:
        np.savez(options.output, embeddings=list(embeddings.values()), ids=list(embeddings))
    return 0 if len(embeddings) == len(set(options.files)) else 1


if __name__ == "__main__":
    sys.exit(main())
