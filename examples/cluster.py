"""Pretrains with several worker processes on this machine, as on a cluster of machines.

    python examples/cluster.py --workers=2 -- --dataset=shapes --run_dir=runs/cluster --epochs=2

Flags after `--` are passed to `simclr-tf pretrain`. The environment variable TF_CONFIG tells each
worker the addresses of all workers and its own index; a cluster needs nothing else (docs/scaling.md
covers Kubernetes, Slurm and Cloud TPU). Workers run every step together: when one fails, the others
exit with code 75, and all are restarted and resume from the latest checkpoint.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time

TRY_AGAIN = os.EX_TEMPFAIL  # 75: the same command resumes the run


def free_ports(count):
    """Returns ports of this machine that are not in use."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start(workers, flags):
    """Starts the workers and returns their processes."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    command = [sys.executable, "-m", "simclr_tf", "pretrain", "--strategy=multi_worker", *flags]
    processes = []
    for index in range(workers):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        processes.append(subprocess.Popen(command, env=environment))
    return processes


def wait(processes, grace_seconds):
    """Returns all exit codes; after a failure, the others are killed after `grace_seconds`."""
    deadline = None
    while any(process.poll() is None for process in processes):
        if deadline is None and any(process.poll() for process in processes):
            deadline = time.monotonic() + grace_seconds
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return [process.returncode for process in processes]


def run(workers, flags, restarts=3, grace_seconds=60):
    """Trains to the end, with restarts after failures, and returns an exit code."""
    for attempt in range(restarts + 1):
        codes = wait(start(workers, flags), grace_seconds)
        # Negative: killed by a signal. Other codes are errors that a restart would repeat.
        if not any(code == TRY_AGAIN or code < 0 for code in codes):
            return max(codes)
        print(f"workers exited with {codes} (attempt {attempt + 1} of {restarts + 1})", flush=True)
    return TRY_AGAIN


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--restarts", type=int, default=3, help="maximum number of restarts")
    parser.add_argument("flags", nargs="*", help="flags of simclr-tf pretrain, after --")
    options = parser.parse_args()
    sys.exit(run(options.workers, options.flags, options.restarts))
