"""Interleaved timings and peak memory, used by all benchmarks.

Implementations are timed alternately in one process, so that a change in the machine's speed
affects all of them; the median is reported. Peak memory is measured in a fresh process.
"""

import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

DIRECTORY = pathlib.Path(__file__).resolve().parent

# TensorFlow takes what it needs of a GPU's memory, not all: measurements run in several processes.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def seconds(calls, repeats):
    """Times functions alternately, after one untimed call of each.

    Args:
      calls: dict from a name to a function without arguments.
      repeats: int, timed calls of each.

    Returns:
      dict from each name to its median time in seconds.
    """
    import tensorflow as tf

    times = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            for result in tf.nest.flatten(call()):
                np.asarray(result)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes():
    """Returns the peak memory of this process so far, in bytes; on a GPU that of the device."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    try:
        # getrusage starts with the peak of the parent process.
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(script, *arguments):
    """Runs benchmarks/`script` with arguments and returns the JSON of its last line.

    Returns None where the process was killed, for example by the system for lack of memory.
    """
    command = [sys.executable, str(DIRECTORY / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _devices():
    """Returns the names of the devices, for GPUs those of the cards."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    cards = [each.get("device_name", gpu.name) for each, gpu in zip(details, gpus)]
    return cards or [device.name for device in tf.config.list_logical_devices()]


def machine():
    """Returns a description of the machine and the versions."""
    import tensorflow as tf

    model, flags = platform.processor() or platform.machine(), ""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        values = dict(line.split(":", 1) for line in lines if ":" in line)
        values = {key.strip(): value.strip() for key, value in values.items()}
        model, flags = values.get("model name", model), values.get("flags", "")
    except OSError:  # not Linux
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "bfloat16": [f for f in ("avx512_bf16", "amx_bf16") if f in flags.split()],
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "devices": _devices(),
    }


def show(title, columns, rows):
    """Prints a table; `columns` maps a key of the rows to (heading, format)."""
    print(f"\n{title}")
    lines = [[heading for heading, _ in columns.values()]]
    for row in rows:
        lines.append(
            [
                "-" if row.get(key) is None else format(row[key], spec)
                for key, (_, spec) in columns.items()
            ]
        )
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]
        print("  ".join(cells), flush=True)
