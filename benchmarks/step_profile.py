"""Profiles one training step and sums its time by operation.

    python benchmarks/step_profile.py [LOGDIR]

The trace is written to LOGDIR, for TensorBoard's profiler.
"""

import collections
import glob
import sys
import tempfile

import measure
import step
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from tensorflow.tsl.profiler.protobuf import xplane_pb2  # noqa: E402 - as above

from simclr_tf import devices  # noqa: E402 - after TensorFlow's start-up lines

# Operations that call others: their time includes the time of those.
_CONTAINERS = ("PartitionedCall", "StatefulPartitionedCall", "While", "If", "StatelessIf")


def run(logdir, width=0.5):
    """Returns rows: operation, milliseconds summed over threads, percentage of at least 1 %."""
    policy = devices.precision_policy("auto")
    tf.keras.mixed_precision.set_global_policy(policy)
    _, take_step = step.training_step(step.STEP_BATCH, width)
    for _ in range(3):
        take_step().numpy()
    with tf.profiler.experimental.Profile(logdir):
        take_step().numpy()
    milliseconds = collections.Counter()
    (path,) = glob.glob(f"{logdir}/plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                scope, colon, kind = name.rpartition(":")
                # An operation is named "scope:kind"; "Class::Method" is TensorFlow's own code.
                if (
                    colon
                    and scope
                    and "::" not in name
                    and kind not in _CONTAINERS
                    and " " not in kind
                ):
                    milliseconds[kind] += event.duration_ps / 1e9
    total = sum(milliseconds.values())
    rows = [
        {"operation": kind, "milliseconds": time, "percent": 100 * time / total}
        for kind, time in milliseconds.most_common()
    ]
    return [row for row in rows if row["percent"] >= 1]


COLUMNS = {
    "operation": ("operation", ""),
    "milliseconds": ("ms, all threads", ".0f"),
    "percent": ("%", ".0f"),
}

if __name__ == "__main__":
    rows = run(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    title = f"A step of {step.STEP_BATCH} images, ResNet-18 of half width"
    measure.show(title, COLUMNS, rows)
