"""Keeps TensorFlow's start-up chatter off the terminal; errors still get there.

TensorFlow 2.15 writes to file descriptor 2 from C++ while it is imported: lines about CUDA
factories, drivers and CPU features, which mean nothing to the reader and look like errors. Here
live the list of those lines and the filter. What is logged later, at work, is nobody's noise.
"""

import contextlib
import importlib
import io
import os
import re
import signal
import sys
import warnings

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # TensorFlow's own: 0 shows all, 1 hides INFO, 2 WARNING too

_NOISE = re.compile(
    rb"Unable to register cu(DNN|FFT|BLAS) factory"
    rb"|Could not find cuda drivers on your machine"
    rb"|Could not find TensorRT"
    rb"|This TensorFlow binary is optimized to use available CPU instructions"
    rb"|To enable the following instructions: .* rebuild TensorFlow"
    rb"|oneDNN custom operations are on"
    rb"|All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    # The first compilation under XLA.
    rb"|device_compiler\.h.*Compiled cluster using XLA!"
    rb"|SetPriority unimplemented for this stream"
)

# What the TensorFlow Lite converter says of every model.
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


def import_tensorflow():
    """Imports TensorFlow without its start-up chatter and returns the module.

    Sets `TF_CPP_MIN_LOG_LEVEL=2` unless the environment sets it; with 0 or 1 there, nothing is
    hidden. Known warnings about the age of TensorFlow Addons are silenced for later imports too.

    Raises:
      ImportError: TensorFlow could not be imported; what it wrote to stderr has been shown.
    """
    if os.environ.setdefault(_LEVEL, "2") not in ("0", "1"):
        for message in _PYTHON_NOISE:
            warnings.filterwarnings("ignore", message)
    with native_noise_hidden():
        return importlib.import_module("tensorflow")


def import_keras_cv():
    """Imports KerasCV without the line its Keras Core prints to stdout, and returns the module.

    What a program prints there (the JSON line of `simclr-tf evaluate`) is for the next program.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module("keras_cv")


@contextlib.contextmanager
def native_noise_hidden(noise=_NOISE):
    """Drops the known noise, lines that match, that libraries write to file descriptor 2 meanwhile.

    Every other line passes as it comes. The filter is a process of its own, so that the last words
    of a library that aborts (a CPU without AVX, say) pass too.
    """
    if os.environ.get(_LEVEL) in ("0", "1") or not hasattr(os, "fork"):
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        _filter_and_exit(reader, terminal, noise)
    os.close(reader)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)  # the pipe's last writer: the filter reads to the end and leaves
        os.close(terminal)
        os.waitpid(child, 0)


def _filter_and_exit(reader, terminal, noise):
    """Copies lines from `reader` to `terminal`, less the noise, until the end; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to answer
    try:
        with os.fdopen(reader, "rb") as lines, os.fdopen(terminal, "wb", buffering=0) as out:
            for line in lines:
                if not noise.search(line):
                    out.write(line)
    finally:
        os._exit(0)  # without the parent's exit handlers
