"""Hides TensorFlow's start-up messages; errors are still shown.

TensorFlow writes to file descriptor 2 from C++ while it is imported: lines about CUDA factories,
drivers and CPU features that look like errors and are none. This module holds the list
of those lines and the filter. The command line uses the filter; library code only sets the log
level and imports TensorFlow.
"""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import warnings

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # TensorFlow's variable: 0 shows all, 1 hides INFO, 2 WARNING too

_NOISE = re.compile(
    rb"Unable to register cu(DNN|FFT|BLAS) factory"
    rb"|Could not find cuda drivers on your machine"
    rb"|Could not find TensorRT"
    rb"|This TensorFlow binary is optimized to use available CPU instructions"
    rb"|To enable the following instructions: .* rebuild TensorFlow"
    rb"|oneDNN custom operations are on"
    rb"|All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    # TensorFlow 2.21 without a GPU.
    rb"|failed call to cuInit"
    # The first compilation under XLA.
    rb"|device_compiler\.h.*Compiled cluster using XLA!"
    rb"|SetPriority unimplemented for this stream"
    rb"|XLA service 0x|StreamExecutor \[0\]: Host|disabling MLIR crash reproducer"
)

# What the TensorFlow Lite converter writes about every model.
CONVERTER_NOISE = re.compile(
    rb"^\s*$|^-+$|Summary on the non-converted ops|Accepted dialects:|Non-Converted Ops:"
    rb"|^ \* \d+ ARITH ops|^- arith\.constant|^\s*\([a-z]+\d+: \d+\)|^fully_quantize: "
    rb"|Created TensorFlow Lite XNNPACK delegate|tf_tfl_flatbuffer_helpers|reader\.cc|loader\.cc"
)

_PYTHON_NOISE = (
    r"\s*TensorFlow Addons \(TFA\) has ended development",
    r"\s*You are currently using a nightly version of TensorFlow",
    r".*pkg_resources is deprecated as an API",
)


# Copies lines from stdin to stderr, less those that match. It is small, since it starts with every
# command: `re` is all that it imports.
_FILTER = """
import re, sys
noise = re.compile(sys.argv[1].encode()).search
for line in sys.stdin.buffer:
    if not noise(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


def import_tensorflow():
    """Imports TensorFlow with its INFO and WARNING messages off, and returns the module.

    Sets `TF_CPP_MIN_LOG_LEVEL=2` unless the environment sets it; with 0 or 1 there, nothing is
    hidden. Known warnings about the age of TensorFlow Addons are silenced for later imports too.
    The few lines that TensorFlow logs as errors remain; see `native_noise_hidden`.
    """
    if os.environ.setdefault(_LEVEL, "2") not in ("0", "1"):
        for message in _PYTHON_NOISE:
            warnings.filterwarnings("ignore", message)
    return importlib.import_module("tensorflow")


def import_keras_cv():
    """Imports KerasCV without the line its Keras Core prints to stdout, and returns the module.

    Stdout belongs to the results of a command (the JSON line of `simclr-tf evaluate`).
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module("keras_cv")


@contextlib.contextmanager
def native_noise_hidden(noise=_NOISE):
    """Drops known lines that libraries write to file descriptor 2, and passes all others on.

    For the command line only: the file descriptor belongs to the whole process. The filter is a
    process of its own, so that the last words of a library that aborts (on a CPU without AVX, for
    instance) are shown too. With `TF_CPP_MIN_LOG_LEVEL` of 0 or 1 nothing is hidden.

    Args:
      noise: a compiled pattern of bytes; a line that it is found in is dropped.
    """
    if os.environ.get(_LEVEL) in ("0", "1") or not sys.executable:
        yield
        return
    sys.stderr.flush()
    command = [sys.executable, "-I", "-S", "-c", _FILTER, noise.pattern.decode()]
    # In a session of its own it outlives Ctrl-C, and shows what the command writes after that.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    stderr = os.dup(2)
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)  # closes the pipe: the filter reads to the end and exits
        os.close(stderr)
        process.wait()
