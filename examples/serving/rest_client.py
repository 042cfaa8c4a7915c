"""Requests embeddings of image files from TF Serving by REST; needs only Python.

    python rest_client.py cat.jpg dog.png [--url=http://localhost:8501] [--output=embeddings.json]

Prints a line per image: the file, the length D of its embedding, the norm, the first four values.
The exit code is 1 if the server failed for any image (the reason is printed to stderr), and 2 for
invalid arguments.
"""

import argparse
import base64
import http.client
import json
import os
import pathlib
import sys
import urllib.error
import urllib.parse
import urllib.request


class BadRequestError(Exception):
    """The server rejected the files of a request; other files may be valid."""


def predict(files, options):
    """Returns the embeddings of the files, lists of D floats, from one request."""
    strings = [base64.b64encode(pathlib.Path(file).read_bytes()).decode() for file in files]
    instances = [{"b64": string} for string in strings]
    body = json.dumps({"signature_name": "serving_bytes", "instances": instances}).encode()
    version = f"/versions/{options.version}" if options.version else ""
    path = f"/v1/models/{urllib.parse.quote(options.model, safe='')}{version}:predict"
    url = options.url.rstrip("/") + path
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=options.timeout_seconds) as response:
            return json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        raise refusal(error, options) from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        way_out = "Is TF Serving running? Set its address with --url."
        sys.exit(f"{options.url} gives no answer: {why}. {way_out}")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{options.url} is not TF Serving: its response has no predictions.")


def refusal(error, options):
    """Returns a BadRequestError for HTTP status 400; exits for any other error."""
    try:
        text = json.load(error)["error"].strip()
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{options.url} is not TF Serving: {error}.")
    line = text.partition("\n")[0]  # later lines name nodes of TensorFlow's graph
    if error.code == 400:
        return BadRequestError(line)
    if error.code == 404:
        sys.exit(f"{options.url}: {line}. Set the model with --model and --version.")
    sys.exit(f"{options.url}: HTTP {error.code}, {line}")


def embed(files, options):
    """Yields (file, embedding), or (file, BadRequestError) for a file that the server rejects."""
    for start in range(0, len(files), options.batch_size):
        batch = files[start : start + options.batch_size]
        try:
            answers = predict(batch, options)
        except BadRequestError as error:
            if len(batch) == 1:
                answers = [error]
            else:  # one by one, to find the invalid file
                answers = [answer for file in batch for _, answer in embed([file], options)]
        yield from zip(batch, answers)


def parse(arguments):
    """Parses and checks the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="JPEG, PNG, BMP or GIF")
    parser.add_argument("--url", default="http://localhost:8501", help="REST address of the server")
    parser.add_argument("--model", default="simclr", help="name of the model in models.config")
    parser.add_argument("--version", type=int, help="version of the model; default: the newest")
    parser.add_argument("--batch_size", type=int, default=8, help="images per request")
    parser.add_argument(
        "--timeout_seconds", type=float, default=30.0, help="timeout of each request"
    )
    parser.add_argument("--output", help="JSON file to write: {file: embedding}")
    options = parser.parse_args(arguments)
    if "://" not in options.url:
        options.url = f"http://{options.url}"
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
    for file, row in embed(options.files, options):
        if isinstance(row, BadRequestError):
            print(f"{file}: {row}", file=sys.stderr)
            continue
        embeddings[file] = row
        norm = sum(value**2 for value in row) ** 0.5
        values = " ".join(f"{value:.4g}" for value in row[:4])
        print(f"{file}: D={len(row)} norm={norm:.4g} {values} ...")
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(embeddings, file)
    return 0 if len(embeddings) == len(set(options.files)) else 1


if __name__ == "__main__":
    sys.exit(main())
