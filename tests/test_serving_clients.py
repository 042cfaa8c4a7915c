"""examples/serving/: clients, commands and configuration files for TF Serving."""

import contextlib
import http.client
import http.server
import importlib.util
import io
import json
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from PIL import Image
from tensorflow_serving.config import model_server_config_pb2

import stand_in_server
from simclr_tf import ResNet
from simclr_tf.export import export_encoder
from simclr_tf.export.warmup import BATCH_SIZES

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVING = ROOT / "examples" / "serving"
SIZE = 16


@pytest.fixture(scope="module")
def encoder(quick_runs):
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, SIZE, SIZE, 3))
    return encoder


@pytest.fixture(scope="module")
def signatures(encoder, tmp_path_factory):
    """The signatures of its SavedModel."""
    path = export_encoder(encoder, tmp_path_factory.mktemp("models") / "simclr" / "3")
    return tf.saved_model.load(str(path)).signatures


@pytest.fixture
def model(signatures):
    """The model that the fake server serves: version 3 of `simclr`."""
    return stand_in_server.Model("simclr", 3, signatures)


@pytest.fixture
def rest(model):
    """The address of the fake server's REST port."""
    with stand_in_server.http_served(stand_in_server.handler_of(model)) as address:
        yield address


@pytest.fixture
def pictures(encoder, tmp_path):
    """{path: embedding} of five PNG files of the encoder's size."""
    images = np.random.default_rng(0).integers(0, 256, [5, SIZE, SIZE, 3], np.uint8)
    embeddings = encoder(tf.constant(images, tf.float32) / 255.0, training=False).numpy()
    paths = [str(tmp_path / f"{number} of 5.png") for number in range(5)]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    return dict(zip(paths, embeddings))


@pytest.fixture
def no_picture(tmp_path):
    """A file that is not an image."""
    (tmp_path / "notes.txt").write_text("no picture")
    return str(tmp_path / "notes.txt")


def load(name):
    """Imports examples/serving/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, SERVING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    """Runs the `main` of a client; returns (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = load(name).main([str(each) for each in arguments])
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # as Python itself does with a message
                print(code, file=sys.stderr)
                code = 1
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(params=["rest_client", "grpc_client"])
def client(request, model):
    """(name, address flag) of a client, with a fake server at that address."""
    if request.param == "rest_client":
        served = stand_in_server.http_served(stand_in_server.handler_of(model))
    else:
        served = stand_in_server.grpc_served(stand_in_server.Servicer(model))
    with served as address:
        yield request.param, f"--{'url' if request.param == 'rest_client' else 'server'}={address}"


def embeddings_of(path):
    """Returns {file: embedding} from the output file of a client."""
    if path.suffix == ".json":
        return {file: np.array(row) for file, row in json.loads(path.read_text()).items()}
    with np.load(path) as file:
        return dict(zip(file["ids"], file["embeddings"]))


def assert_same(got, expected):
    assert list(got) == list(expected)
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-5, atol=1e-5)


@pytest.mark.end_to_end
def test_the_rest_client_needs_only_python(rest, pictures, tmp_path):
    """It runs without any installed package; embeddings equal the encoder's to 1e-5."""
    output = tmp_path / "embeddings.json"
    command = [sys.executable, "-I", "-S", SERVING / "rest_client.py", *pictures]
    command += [f"--url=http://{rest}", f"--output={output}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(embeddings_of(output), pictures)


def test_a_client_embeds_in_batches(client, model, pictures, tmp_path):
    """To 1e-5; prints D, norm and first numbers of each image; the version is a flag."""
    output = tmp_path / ("e.json" if client[0] == "rest_client" else "e.npz")
    arguments = [*pictures, client[1], "--batch_size=2", "--version=3", f"--output={output}"]
    code, out, err = run(client[0], *arguments)
    assert (code, err) == (0, "")
    assert_same(embeddings_of(output), pictures)
    assert model.batch_sizes == [2, 2, 1]
    for line, (path, row) in zip(out.splitlines(), pictures.items()):
        found = re.fullmatch(rf"{re.escape(path)}: D=32 norm=(\S+) (.*) \.\.\.", line)
        assert float(found[1]) == pytest.approx(np.linalg.norm(row), rel=1e-3)
        np.testing.assert_allclose(list(map(float, found[2].split())), row[:4], rtol=1e-3)


def test_a_file_that_is_no_image_is_named(client, pictures, no_picture, tmp_path):
    """With the server's message, on one line; the other files of its batch are embedded."""
    output = tmp_path / ("e.json" if client[0] == "rest_client" else "e.npz")
    files = list(pictures)
    code, out, err = run(
        client[0], *files[:2], no_picture, *files[2:], client[1], f"--output={output}"
    )
    assert code == 1 and len(out.splitlines()) == 5
    (line,) = err.splitlines()
    assert line.startswith(f"{no_picture}: Unknown image file format")
    assert_same(embeddings_of(output), pictures)


@pytest.mark.parametrize("missing", ["--model=resnet", "--version=4"])
def test_an_unknown_model_is_one_line(client, pictures, missing):
    """Exit code 1; the message names the flags."""
    code, out, err = run(*client, *pictures, missing)
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert "Servable not found for request" in err and "--model and --version" in err


def test_no_server_is_one_line(pictures):
    """Exit code 1; the message has the address and the flag that changes it."""
    for name, flag in (("rest_client", "--url"), ("grpc_client", "--server")):
        code, out, err = run(name, *pictures, f"{flag}=127.0.0.1:1")
        assert (code, out) == (1, "") and len(err.splitlines()) == 1
        assert "127.0.0.1:1 gives no answer" in err and f"with {flag}" in err


class OtherServer(http.server.BaseHTTPRequestHandler):
    """Responds to every POST with 501 and an HTML page."""

    def log_message(self, *_):
        pass


def test_a_server_other_than_tf_serving_is_one_line(pictures):
    """REST: an error page instead of TF Serving's JSON."""
    with stand_in_server.http_served(OtherServer) as address:
        code, out, err = run("rest_client", *pictures, f"--url={address}")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert f"{address} is not TF Serving" in err


def test_a_slow_server_is_one_line(model, pictures, monkeypatch):
    """Exit code 1 after --timeout_seconds, without waiting for the response."""
    done = threading.Event()
    monkeypatch.setattr(model, "run", lambda *_: done.wait(20) and {})
    served = {
        "rest_client": ("--url", stand_in_server.http_served(stand_in_server.handler_of(model))),
        "grpc_client": ("--server", stand_in_server.grpc_served(stand_in_server.Servicer(model))),
    }
    for name, (flag, server) in served.items():
        done.clear()
        with server as address:
            code, out, err = run(name, *pictures, f"{flag}={address}", "--timeout_seconds=0.2")
            done.set()
        assert (code, out) == (1, "") and len(err.splitlines()) == 1
        assert "gives no answer" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "no file to read: nowhere.png"),
        ([], "required: FILE"),
        ([__file__, "--batch_size=0"], "1 or more; got 0"),
        ([__file__, "--output=nowhere/e.json"], "no directory for --output=nowhere/e.json"),
    ],
)
def test_a_wrong_command_is_exit_code_2(arguments, message):
    """Nothing is sent."""
    for name in ("rest_client", "grpc_client"):
        code, out, err = run(name, *arguments)
        assert (code, out) == (2, "") and message in err.splitlines()[-1]


def documented(start):
    """Returns the command in docs/serving.md that starts with `start`, all its lines."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return re.search(rf"^{re.escape(start)}.*?[^|\\]$", blocks, re.MULTILINE | re.DOTALL)[0]


def as_curl_sends(command, directory):
    """Returns (method, path, body) of a documented curl command, run in bash with a fake curl."""
    fake_curl = 'curl() { printf \'%s\\n\' "$@"; echo; case "$*" in *@-*) cat;; esac; }\n'
    done = subprocess.run(
        ["bash", "-c", fake_curl + command], cwd=directory, capture_output=True, check=True
    )
    arguments, _, body = done.stdout.decode().partition("\n\n")
    (url,) = re.findall(r"^localhost:8501(/\S+)$", arguments, re.MULTILINE)
    return ("POST" if "--data-binary" in arguments else "GET"), url, body


def request(address, method, path, body=None):
    """Returns (status, JSON) of the fake server's response."""
    connection = http.client.HTTPConnection(address, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.end_to_end
def test_the_documented_curl_request_succeeds(rest, pictures, tmp_path):
    """The shell builds the JSON of TF Serving, for a picture of 200 kB too."""
    path, expected = next(iter(pictures.items()))
    command = documented("(printf")
    for size in (SIZE, 300):
        if size == SIZE:
            (tmp_path / "cat.jpg").write_bytes(pathlib.Path(path).read_bytes())
        else:
            noise = np.random.default_rng(0).integers(0, 256, [size, size, 3], np.uint8)
            Image.fromarray(noise).save(tmp_path / "cat.jpg", "PNG")
        status, answer = request(rest, *as_curl_sends(command, tmp_path))
        assert status == 200 and np.shape(answer["predictions"]) == (1, 32)
        if size == SIZE:
            np.testing.assert_allclose(answer["predictions"][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.end_to_end
def test_the_documented_status_request_succeeds(rest, tmp_path):
    """It returns the state that the documentation and the health check look for."""
    command = documented("curl localhost:8501/v1/models/simclr ")
    status, answer = request(rest, *as_curl_sends(command, tmp_path))
    assert status == 200 and answer["model_version_status"][0]["state"] == "AVAILABLE"


@pytest.fixture(scope="module")
def service():
    """The only service of the Compose file."""
    (service,) = yaml.safe_load((SERVING / "docker-compose.yml").read_text())["services"].values()
    return service


def test_models_config_is_valid(service):
    """One TensorFlow model, below the directory that Compose mounts; Compose names the file."""
    config = text_format.Parse(
        (SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.model_platform) == ("simclr", "tensorflow")
    targets = {volume["source"]: volume["target"] for volume in service["volumes"]}
    assert targets["${MODELS:-./models}"] == model.base_path.rpartition("/")[0]
    assert f"--model_config_file={targets['.']}/models.config" in service["command"]


def test_batching_config_allows_the_warm_up_requests():
    """It sets fields of BatchingParameters; batches may be as large as the largest request."""
    text = (SERVING / "batching.config").read_text()
    numbers = dict(re.findall(r"^(\w+) { value: (\d+) }", text, re.MULTILINE))
    fields = {"max_batch_size", "batch_timeout_micros", "num_batch_threads", "max_enqueued_batches"}
    assert set(numbers) == fields
    assert int(numbers["max_batch_size"]) >= max(BATCH_SIZES)


@pytest.mark.end_to_end
def test_the_health_check_detects_a_loaded_model(service, rest):
    """The command of the Compose file needs only bash; it exits with 0 if the model is loaded."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD" and "127.0.0.1/8501" in command[-1]
    loaded = command[-1].replace("127.0.0.1/8501", rest.replace(":", "/"))
    for script, healthy in (
        (loaded, True),
        (loaded.replace("models/simclr", "models/other"), False),
        (loaded.replace(rest.replace(":", "/"), "127.0.0.1/1"), False),
    ):
        done = subprocess.run([*command[:-1], script], capture_output=True, timeout=30, check=False)
        assert (done.returncode == 0) == healthy, done
