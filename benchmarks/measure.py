"""Paired timings and peak memory: what every benchmark here is made of.

Contenders take turns in one process, so that a slow minute of the machine is slow for all; the
median of the turns counts. Memory is the peak of a fresh process, above what it held before.
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

HERE = pathlib.Path(__file__).resolve().parent


def seconds(contenders, repeats):
    """Median seconds of each, taken in turns after one call that is not counted."""
    import tensorflow as tf

    taken = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            for result in tf.nest.flatten(call()):
                np.asarray(result)
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_bytes():
    """The most memory that this process has held so far."""
    try:
        # What getrusage says begins with the peak of the process that started this one.
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(script, *arguments):
    """Runs benchmarks/`script` with arguments; returns the JSON of the last line it prints.

    None where the process was killed, as for want of memory.
    """
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine():
    """What the figures were measured on."""
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
        "processor": model,
        "cores": os.cpu_count(),
        "bfloat16": [f for f in ("avx512_bf16", "amx_bf16") if f in flags.split()],
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
    }


def show(title, columns, rows):
    """Prints a table: columns maps a row's key to (heading, format)."""
    print(f"\n{title}")
    lines = [[heading for heading, _ in columns.values()]]
    for row in rows:
        lines.append(
            [
                "-" if row.get(key) is None else format(row[key], how)
                for key, (_, how) in columns.items()
            ]
        )
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]
        print("  ".join(cells), flush=True)
