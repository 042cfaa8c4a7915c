"""Images per second of each kind of data set, of a plain tf.data map, and that an encoder takes.

    python benchmarks/input.py [--photos=DIR] [--repeats=5] [--only=folder,tar]

The plain map reads and decodes as a TensorFlow user writes it: `tf.io.decode_jpeg` with its
defaults, a resize where the source has one, batches, `AUTOTUNE`. The last row is how many images a
ResNet-50 trains on: forward and backward pass on two views of each. Without `--photos`, photographs
are drawn. One core alone: `taskset -c 0 python benchmarks/input.py`.
"""

import argparse
import io
import pathlib
import statistics
import tarfile
import tempfile
import time

from PIL import Image

import measure
import step
import views
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf import ResNet, data, devices  # noqa: E402 - after TensorFlow's start-up lines

COUNT = 512  # images of a set
BATCH = 64
BATCHES = 16  # timed at a time
WARMUP_BATCHES = 6  # until the threads are started and the buffers are full
SIZES = {"224 x 224": (224, 224), "500 x 375": (500, 375)}  # width, height
SIDE = {"224 x 224": 224, "500 x 375": 336}  # of the squares that training reads
COLUMNS = {
    "files": ("JPEG files", ""),
    "source": ("source", ""),
    "rate": ("images/s", ",.0f"),
    "ratio": ("of plain", ".2f"),
    "cpu": ("CPU ms an image", ".2f"),
    "cpu_ratio": ("of plain", ".2f"),
}


def photographs(directory):
    """Returns [COUNT] JPEG files: those in a directory, or drawn ones."""
    if directory:
        paths = sorted(p for p in pathlib.Path(directory).rglob("*") if p.is_file())
        return [path.read_bytes() for path in paths[:COUNT]]
    return views.photos(COUNT).numpy().tolist()


def resized(file, size):
    """Returns a JPEG file with an image of another size."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_sets(files, directory):
    """Writes the files as a folder, a TFRecord file and a tar archive; returns their names."""
    folder = directory / "folder"
    folder.mkdir(parents=True)
    records = tf.io.TFRecordWriter(str(directory / "set.tfrecord"))
    with records, tarfile.open(directory / "set.tar", "w") as archive:
        for i, content in enumerate(files):
            (folder / f"{i:04d}.jpg").write_bytes(content)
            member = tarfile.TarInfo(f"{i:04d}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            feature = {"image": tf.train.Feature(bytes_list={"value": [content]})}
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            records.write(example.SerializeToString())
    return {
        "folder": f"folder:{folder}",
        "tfrecord": f"tfrecord:{directory}/set.tfrecord",
        "tar": f"tar:{directory}/set.tar",
    }


def plain_folder(directory, side):
    """Returns the plain map over files in a folder."""
    paths = sorted(map(str, (directory / "folder").iterdir()))
    contents = tf.data.Dataset.from_tensor_slices(paths).repeat()
    return plain_map(contents, tf.io.read_file, side)


def plain_records(directory, side):
    """Returns the plain map over records."""
    records = tf.data.TFRecordDataset(str(directory / "set.tfrecord")).repeat()
    spec = {"image": tf.io.FixedLenFeature([], tf.string)}
    return plain_map(records, lambda r: tf.io.parse_single_example(r, spec)["image"], side)


def plain_map(elements, read, side):
    """Returns batches of uint8 [BATCH, side, side, 3]."""

    def decode(element):
        image = tf.io.decode_jpeg(read(element), 3)
        if side != 224:
            image = tf.image.resize(image, [side * 3 // 4, side], "bicubic", antialias=True)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
            image = tf.image.pad_to_bounding_box(image, 0, 0, side, side)
        return tf.ensure_shape(image, [side, side, 3])

    dataset = elements.map(decode, tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def seconds(dataset):
    """Returns the seconds and the seconds of CPU time per image of a running pipeline."""
    iterator = iter(dataset)
    for _ in range(WARMUP_BATCHES):
        next(iterator)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(BATCHES):
        next(iterator)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall / (BATCHES * BATCH), cpu / (BATCHES * BATCH)


def rows_of(label, files, directory, repeats, only):
    """Returns the rows of one size of images."""
    names = {k: v for k, v in write_sets(files, directory).items() if not only or k in only}
    side = SIDE[label]
    pipelines = {"plain map, files": plain_folder(directory, side)}
    if "tfrecord" in names:
        pipelines["plain map, TFRecord"] = plain_records(directory, side)
    for kind, name in names.items():
        source = data.load(name, image_size=224, cache_bytes=0)
        pipelines[kind] = source.epochs(BATCH, seed=0)
    times = {name: [] for name in pipelines}
    for turn in range(repeats + 1):
        for name, dataset in pipelines.items():
            found = seconds(dataset)
            if turn:
                times[name].append(found)
    medians = {k: [statistics.median(column) for column in zip(*v)] for k, v in times.items()}
    rows = []
    for name, (wall, cpu) in medians.items():
        of_records = name in ("tfrecord", "plain map, TFRecord")
        base = medians["plain map, TFRecord" if of_records else "plain map, files"]
        row = {"files": label, "source": name, "rate": 1 / wall, "cpu": 1000 * cpu}
        rows.append({**row, "ratio": base[0] / wall, "cpu_ratio": base[1] / cpu})
    return rows


def encoder_row(plain, repeats):
    """Returns the row of a ResNet-50 that trains on 224 pixels, in the best precision."""
    tf.keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
    batch = 8 if devices.on_cpu() else 128
    call = step.bare_encoder(ResNet(50), batch, side=224)
    tf.keras.mixed_precision.set_global_policy("float32")
    times = []
    for _ in range(repeats + 1):  # the first call traces
        wall, cpu = time.perf_counter(), time.process_time()
        call().numpy()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (statistics.median(column) / batch for column in zip(*times[1:]))
    row = {"files": "224 x 224", "source": "ResNet-50", "rate": 1 / wall, "cpu": 1000 * cpu}
    return {**row, "ratio": 1 / wall / plain["rate"], "cpu_ratio": plain["cpu"] / (1000 * cpu)}


def run(repeats, photos=None, only=()):
    """Returns rows: files, source, images per second, CPU time, ratios to the plain map."""
    files, rows = photographs(photos), []
    with tempfile.TemporaryDirectory() as scratch:
        for label, size in SIZES.items():
            same = [resized(file, size) for file in files] if label != "224 x 224" else files
            rows += rows_of(label, same, pathlib.Path(scratch) / label, repeats, only)
    return [*rows, encoder_row(rows[0], repeats)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="directory of JPEG files of 224 x 224 pixels")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument("--only", default="", help="sources: folder, tfrecord, tar")
    options = parser.parse_args()
    table = run(options.repeats, options.photos, [k for k in options.only.split(",") if k])
    measure.show(__doc__.splitlines()[0], COLUMNS, table)
