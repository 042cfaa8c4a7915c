"""`_quiet` hides TensorFlow's start-up chatter and nothing else: each test is a new process."""

import os
import subprocess
import sys

import pytest

CHATTER = "Unable to register cuDNN factory"


def run(code, **env):
    """Runs `code` in a new interpreter with `env` on top of this one's, less TF's log level."""
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, env={**inherited, **env}, timeout=120
    )


def test_tensorflow_is_imported_in_silence():
    """TensorFlow, Addons, KerasCV and the first XLA compilation print nothing at all."""
    done = run(
        "from simclr_tf import _quiet\n"
        "tf = _quiet.import_tensorflow()\n"
        "with _quiet.native_noise_hidden():\n"
        "    tf.function(lambda x: x + 1, jit_compile=True)(1.0)\n"
        "import tensorflow_addons\n"
        "_quiet.import_keras_cv()\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_explicit_log_level_keeps_all():
    """Who sets TF_CPP_MIN_LOG_LEVEL=0 sees what TensorFlow says, the known lines too."""
    done = run("from simclr_tf import _quiet; _quiet.import_tensorflow()", TF_CPP_MIN_LOG_LEVEL="0")
    assert done.returncode == 0
    assert CHATTER in done.stderr


# A stand-in for TensorFlow that writes from below Python, as the real one does.
NOISY = f"""
import os, sys, types
from simclr_tf import _quiet

def say(text):
    os.write(2, text.encode())

with _quiet.native_noise_hidden():
    say("E cuda_dnn.cc:9261] {CHATTER}: Attempting to register\\n")
    say("E a genuine message\\n")
    sys.stderr.write("from Python\\n")
    {{}}
"""


@pytest.mark.parametrize(
    ("then", "returncode", "last"),
    [
        ("pass", 0, "from Python"),
        ("say('no newline at the end')", 0, "no newline at the end"),
        ("raise ImportError('libcuda is broken')", 1, "ImportError: libcuda is broken"),
        ("say('F last words\\n'); os.abort()", -6, "F last words"),
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
    assert CHATTER not in done.stderr


def test_stderr_is_itself_again_afterwards():
    """After the import file descriptor 2 is the one it was, and the known lines pass."""
    done = run(
        "import os\n"
        "from simclr_tf import _quiet\n"
        "before = os.fstat(2)\n"
        "with _quiet.native_noise_hidden():\n"
        "    assert not os.path.samestat(before, os.fstat(2))\n"
        "assert os.path.samestat(before, os.fstat(2))\n"
        f"os.write(2, b'{CHATTER}')\n"
    )
    assert (done.returncode, done.stderr) == (0, CHATTER)
