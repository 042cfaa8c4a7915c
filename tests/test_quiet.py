"""`_quiet` hides TensorFlow's start-up messages and nothing else; each test is a new process."""

import os
import pathlib
import subprocess
import sys

import pytest

import simclr_tf
from simclr_tf import _keras

pytestmark = pytest.mark.end_to_end

NOISE = "Unable to register cuDNN factory"
# What TensorFlow itself writes when it is imported, in its two versions.
SAID_ON_IMPORT = NOISE if _keras.IS_KERAS_2 else "Could not find cuda drivers"


def run(code, start_new_session=False, **env):
    """Runs `code` in a new interpreter with `env` added to this one's, less TF's log level."""
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**inherited, **env},
        timeout=120,
        start_new_session=start_new_session,
    )


def test_tensorflow_is_imported_in_silence():
    """In the filter, TensorFlow, Addons, KerasCV and the first XLA compilation print nothing."""
    done = run(
        "from simclr_tf import _quiet\n"
        "with _quiet.native_noise_hidden():\n"
        "    tf = _quiet.import_tensorflow()\n"
        "    tf.function(lambda x: x + 1, jit_compile=True)(1.0)\n"
        + ("import tensorflow_addons\n" if _keras.IS_KERAS_2 else "")
        + "_quiet.import_keras_cv()\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_explicit_log_level_shows_everything():
    """With TF_CPP_MIN_LOG_LEVEL=0 the known lines are shown too."""
    done = run(
        "from simclr_tf import _quiet\n"
        "with _quiet.native_noise_hidden():\n"
        "    _quiet.import_tensorflow()\n",
        TF_CPP_MIN_LOG_LEVEL="0",
    )
    assert done.returncode == 0
    assert SAID_ON_IMPORT in done.stderr


# A stand-in for TensorFlow that writes from below Python, as the real one does.
NOISY = f"""
import os, sys, types
from simclr_tf import _quiet

def log(text):
    os.write(2, text.encode())

with _quiet.native_noise_hidden():
    log("E cuda_dnn.cc:9261] {NOISE}: Attempting to register\\n")
    log("E a genuine message\\n")
    sys.stderr.write("from Python\\n")
    {{}}
"""


@pytest.mark.parametrize(
    ("then", "returncode", "last"),
    [
        ("pass", 0, "from Python"),
        ("log('no newline at the end')", 0, "no newline at the end"),
        ("raise ImportError('libcuda is broken')", 1, "ImportError: libcuda is broken"),
        ("log('F last words\\n'); os.abort()", -6, "F last words"),
    ],
    ids=["returns", "partial line", "raises", "aborts"],
)
def test_genuine_messages_survive(then, returncode, last):
    """What is not known noise reaches stderr, in order, even if the import raises or aborts."""
    done = run(NOISY.format(then), TF_CPP_MIN_LOG_LEVEL="2")
    lines = done.stderr.splitlines()
    assert done.returncode == returncode
    assert lines[0] == "E a genuine message"
    assert lines[-1] == last
    assert NOISE not in done.stderr


def test_stderr_is_restored_afterwards():
    """File descriptor 2 is the same as before, and the known lines are shown again."""
    done = run(
        "import os\n"
        "from simclr_tf import _quiet\n"
        "before = os.fstat(2)\n"
        "with _quiet.native_noise_hidden():\n"
        "    assert not os.path.samestat(before, os.fstat(2))\n"
        "assert os.path.samestat(before, os.fstat(2))\n"
        f"os.write(2, b'{NOISE}')\n"
    )
    assert (done.returncode, done.stderr) == (0, NOISE)


def test_what_a_command_writes_after_ctrl_c_is_shown():
    """Ctrl-C reaches every process of the terminal's group; the filter goes on."""
    code = (
        "import os, signal\n"
        "from simclr_tf import _quiet\n"
        "with _quiet.native_noise_hidden():\n"
        "    try:\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt:\n"
        f"        os.write(2, b'{NOISE}\\nstopped\\n')\n"
    )
    done = run(code, start_new_session=True)
    assert (done.returncode, done.stderr) == (0, "stopped\n")


def test_importing_tensorflow_starts_no_process():
    """Library code leaves file descriptor 2 alone; only the command line filters it."""
    done = run(
        "import os, subprocess, sys, types\n"
        "from simclr_tf import _quiet\n"
        "sys.modules['tensorflow'] = types.ModuleType('tensorflow')\n"
        "os.fork = subprocess.Popen = os.dup2 = None\n"
        "assert _quiet.import_tensorflow() is sys.modules['tensorflow']\n"
        "assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '2'\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_only_commands_use_the_filter():
    """No other module of the package mentions it."""
    package = pathlib.Path(simclr_tf.__file__).parent
    users = {
        path.relative_to(package).parts[0].removesuffix(".py")
        for path in package.rglob("*.py")
        if "native_noise_hidden" in path.read_text(encoding="utf-8")
    }
    assert users <= {"_quiet", "cli", "commands"}


def test_the_filter_costs_under_50_ms():
    """Of CPU time, its process and starting it together; the least of five."""
    done = run(
        "import resource\n"
        "from simclr_tf import _quiet\n"
        "def cpu():\n"
        "    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN\n"
        "    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)\n"
        "def cost():\n"
        "    before = cpu()\n"
        "    with _quiet.native_noise_hidden():\n"
        "        pass\n"
        "    return cpu() - before\n"
        "print(min(cost() for _ in range(5)))\n"
    )
    assert float(done.stdout) < 0.05
