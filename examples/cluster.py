"""Pretrain with several worker processes on this machine, as a cluster of machines would.

    python examples/cluster.py --workers=2 -- --dataset=shapes --run_dir=runs/cluster --epochs=2

Everything after `--` goes to `simclr-tf pretrain`. Each worker is told the addresses of all and its
own place among them by TF_CONFIG, which is all that a cluster has to do (docs/scaling.md has
Kubernetes, Slurm and Cloud TPU). Workers take every step together, so when one is gone the others
end too, with exit code 75, and all are started again: the run goes on from its last checkpoint.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time

TRY_AGAIN = 75


def free_ports(count):
    """Ports of this machine that nobody listens to."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start(workers, flags):
    """The processes of one attempt."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    command = [sys.executable, "-m", "simclr_tf", "pretrain", "--strategy=multi_worker", *flags]
    processes = []
    for index in range(workers):
        place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(place)}
        processes.append(subprocess.Popen(command, env=environment))
    return processes


def wait(processes, grace_seconds):
    """Exit codes of all; once one has ended badly the others have `grace_seconds` to notice."""
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
    """Trains to the end; returns an exit code."""
    for attempt in range(restarts + 1):
        codes = wait(start(workers, flags), grace_seconds)
        # Below 0: ended by a signal. A mistake (1, 2) would only be made again.
        if not any(code == TRY_AGAIN or code < 0 for code in codes):
            return max(codes)
        print(f"workers ended with {codes}; attempt {attempt + 2} of {restarts + 1}", flush=True)
    return TRY_AGAIN


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="flags of simclr-tf pretrain, after --")
    given = parser.parse_args()
    sys.exit(run(given.workers, given.flags, given.restarts))
