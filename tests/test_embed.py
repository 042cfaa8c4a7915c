"""Files of embeddings: every format holds the encoder's output, or nothing; memory is bounded."""

import io
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from runs import untrained_run
from simclr_tf import cli, data, embeddings, errors, evaluate, export
from simclr_tf.commands import build
from simclr_tf.commands.embed import progress_bar
from simclr_tf.evaluate import Features

FORMATS = ("npz", "parquet", "tfrecord")
ROWS, SIZE, DIM = 20, 8, 32
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An npz of labelled images."""
    path = tmp_path_factory.mktemp("images") / "set.npz"
    pixels = np.random.default_rng(0).integers(0, 256, [ROWS, SIZE, SIZE, 3], np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(ROWS) % 3)
    return path


@pytest.fixture(scope="module")
def run_dir(images, tmp_path_factory, quick_runs):
    """A run directory of an untrained encoder: flags, checkpoint and export."""
    path = tmp_path_factory.mktemp("runs") / "run"
    model = untrained_run(path, images, SIZE)
    export.export_encoder(model.encoder, path / "export" / "1", model.image_shape)
    return path


@pytest.fixture(scope="module")
def expected(run_dir, images):
    """The features of all images by the encoder of the run, seven at a time."""
    options = cli.Options(image_size=None)
    encoder = build.load_encoder(options, cli.options_of_run(run_dir)).encoder
    return evaluate.extract_features(encoder, data.load(f"npz:{images}").batches(7))


def raw_columns(path):
    """Reads {"embedding", "label", "id"} as other programs do, without `embeddings.read`."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            names = {"embeddings": "embedding", "labels": "label", "ids": "id"}
            return {names[key]: arrays[key] for key in arrays}
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
        columns = {name: table[name].to_pylist() for name in table.column_names}
        return {**columns, "embedding": np.array(columns["embedding"], np.float32)}
    columns = {"embedding": [], "label": [], "id": []}
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        for name, feature in tf.train.Example.FromString(record).features.feature.items():
            columns[name].append(getattr(feature, feature.WhichOneof("kind")).value)
    columns = {name: np.array(column) for name, column in columns.items() if column}
    columns["embedding"] = columns["embedding"].astype(np.float32)
    return {name: c if name == "embedding" else c[:, 0] for name, c in columns.items()}


def assert_same(found, wanted):
    """Asserts equal bits, and the dtypes that `Features` documents."""
    assert found.h.dtype == np.float32 and found.h.shape == wanted.h.shape
    assert found.h.tobytes() == wanted.h.tobytes()
    for name in ("labels", "ids"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype.kind == {"labels": "i", "ids": "U"}[name]
            np.testing.assert_array_equal(ours, theirs)


def left_in(folder):
    """Returns the names of all files below a folder, hidden ones too."""
    return sorted(each.name for each in folder.rglob("*"))


# -- the command -----------------------------------------------------------------------------


@pytest.mark.end_to_end
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_holds_the_output_of_the_runs_encoder(kind, run_dir, expected, tmp_path):
    """Bit for bit, with a partial last batch, by `read` and without; no other file is left."""
    path = tmp_path / "made" / f"h.{kind}"
    command = ["embed", f"--run_dir={run_dir}", f"--output={path}", "--batch_size=7"]
    assert cli.main(command) == 0
    assert_same(embeddings.read(path), expected)
    columns = raw_columns(path)
    assert columns["embedding"].tobytes() == expected.h.tobytes()
    np.testing.assert_array_equal(columns["label"], expected.labels)
    ids = [each.decode() if isinstance(each, bytes) else each for each in columns["id"]]
    assert ids == expected.ids.tolist()
    assert left_in(tmp_path) == [path.name, "made"]
    assert path.stat().st_mode & 0o044, "others may read it"


@pytest.mark.end_to_end
def test_an_export_embeds_as_its_run_does(run_dir, images, expected, tmp_path, capsys):
    """To 1e-5; --saved_model is the directory of versions; the export knows the image size."""
    path = tmp_path / "h.npz"
    command = ["embed", f"--saved_model={run_dir}/export", f"--output={path}"]
    assert cli.main([*command, f"--dataset=npz:{images}", "--batch_size=7"]) == 0
    found = embeddings.read(path)
    np.testing.assert_allclose(found.h, expected.h, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert f"wrote {ROWS} embeddings of {DIM} numbers" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    """Unlabelled images whose names are not ASCII, and a file that is not an image."""
    path = tmp_path / "photos"
    path.mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate(["é", "漢字", "ordinary name", "\N{GRINNING FACE}"]):
        pixels = rng.integers(0, 256, [10 + i, 12, 3], np.uint8)
        Image.fromarray(pixels).save(path / f"{name}.png")
    (path / "broken.jpg").write_bytes(b"no picture")
    return path


@pytest.mark.end_to_end
def test_names_of_any_script_and_no_labels(run_dir, folder, tmp_path, capsys):
    """Without labels there is no such column; unreadable files are left out and logged."""
    path = tmp_path / "h.parquet"
    command = ["embed", f"--saved_model={run_dir}/export/1", f"--dataset=folder:{folder}"]
    command += [f"--output={path}", "--max_corrupt_share=0.5", "--batch_size=3"]
    assert cli.main(command) == 0
    found = embeddings.read(path)
    assert found.labels is None and "label" not in raw_columns(path)
    names = ["ordinary name.png", "é.png", "漢字.png", "\N{GRINNING FACE}.png"]
    assert sorted(found.ids) == sorted(names) and found.h.shape == (4, DIM)
    assert "unreadable: 1, such as broken.jpg" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_too_many_unreadable_images_leave_nothing(run_dir, folder, tmp_path, capsys):
    """One line."""
    path, before = tmp_path / "h.npz", left_in(tmp_path)
    command = ["embed", f"--saved_model={run_dir}/export", f"--dataset=folder:{folder}"]
    assert cli.main([*command, f"--output={path}"]) == 2
    error = capsys.readouterr().err
    assert "1 of 5" in error and error.count("\n") == 1
    assert left_in(tmp_path) == before


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, os.EX_TEMPFAIL)]
)
def test_a_signal_half_way_leaves_nothing(number, code, run_dir, tmp_path, monkeypatch, capsys):
    """Ctrl-C and SIGTERM, after the first batch."""

    def interrupted(encoder, dataset):
        yield from [Features(np.ones([2, 4], np.float32), None, np.array(["a", "b"]))] * 2
        os.kill(os.getpid(), number)
        yield None

    monkeypatch.setattr(evaluate, "stream_features", interrupted)
    command = ["embed", f"--run_dir={run_dir}", f"--output={tmp_path}/made/h.npz"]
    assert cli.main(command) == code
    assert left_in(tmp_path) == []
    assert "Traceback" not in capsys.readouterr().err


MISTAKES = [
    (["--output=h.npz"], "exactly one of --run_dir, --saved_model, --official_weights; got none"),
    (["--output=h.npz", "--run_dir=x", "--saved_model=y"], "got --run_dir and --saved_model"),
    (["--output=h.npz", "--saved_model=y"], "needs --dataset"),
    (["--run_dir=x"], "needs --output"),
    (["--output=h.hdf5", "--run_dir=x"], "must end in .npz, .parquet, .tfrecord; got 'h.hdf5'"),
    (["--output=h", "--run_dir=x"], "must end in"),
    (["--output=.npz", "--run_dir=x"], "must end in"),
    (["--output=a.npz", "--run_dir=x"], "a.npz is a directory"),
    (["--output=h.npz", "--run_dir=x", "--max_corrupt_share=2"], "in [0, 1]; got '2'"),
]


@pytest.mark.end_to_end
@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_answered_before_anything_is_loaded(
    arguments, message, tmp_path, monkeypatch, capsys
):
    """Exit code 2 and one line; neither the run nor the SavedModel is read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").mkdir()
    assert cli.main(["embed", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert left_in(tmp_path) == ["a.npz"]


# -- the writers -----------------------------------------------------------------------------


def batches(sizes, dim=4, labelled=True):
    """Yields `Features` of `sizes` rows; ids are not ASCII, grow longer, and the first is empty."""
    start = 0
    for size in sizes:
        index = np.arange(start, start + size)
        h = np.random.default_rng(start).normal(size=[size, dim]).astype(np.float32)
        ids = np.array(["ü漢" * int(i) for i in index])
        yield Features(h, index - 3 if labelled else None, ids)
        start += size


def joined(parts):
    """Concatenates batches."""
    columns = zip(*parts)
    return Features(*(None if column[0] is None else np.concatenate(column) for column in columns))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_batches_of_any_size_are_read_as_one(kind, labelled, tmp_path, monkeypatch):
    """In several row groups, replacing an existing file; NaN and infinity too."""
    monkeypatch.setattr(embeddings, "_GROUP_BYTES", 4 * 4 * 5)
    parts = list(batches([3, 1, 12, 2], labelled=labelled))
    parts[0].h[0] = [np.nan, np.inf, -0.0, 1e-42]
    path = tmp_path / f"h.{kind.upper()}"
    path.write_bytes(b"old content")
    with embeddings.Writer(path) as file:
        for part in parts:
            file.write(part)
    assert_same(embeddings.read(path), joined(parts))
    if kind == "parquet":
        assert pq.ParquetFile(path).metadata.num_row_groups > 2


@pytest.mark.parametrize("kind", FORMATS)
def test_ids_that_are_numbers_and_no_ids(kind, tmp_path):
    """Numbers become strings; missing columns stay missing."""
    numbered, bare = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    h = np.ones([2, 3], np.float32)
    with embeddings.Writer(numbered) as file:
        file.write(Features(h, None, np.array([7, 12])))
    with embeddings.Writer(bare) as file:
        file.write(Features(h))
    assert embeddings.read(numbered).ids.tolist() == ["7", "12"]
    assert embeddings.read(bare)[1:] == (None, None)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_half_way_leaves_nothing(kind, error, tmp_path):
    """Directories made for it are removed too; an existing file is unchanged."""
    there = tmp_path / f"there.{kind}"
    there.write_bytes(b"old content")
    for path in (there, tmp_path / "some" / "where" / f"h.{kind}"):
        with pytest.raises(error):
            with embeddings.Writer(path) as file:
                for part in batches([3, 3]):
                    file.write(part)
                raise error
    assert left_in(tmp_path) == [there.name] and there.read_bytes() == b"old content"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_is_an_os_error_and_leaves_nothing(kind, tmp_path):
    """Simulated by a limit of 100 kB on the size of files."""
    h = np.random.default_rng(0).random([64, 512], np.float32)  # 128 kB
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            with embeddings.Writer(tmp_path / f"h.{kind}") as file:
                for _ in range(3):
                    file.write(Features(h))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert isinstance(raised.value, errors.StorageError)
    assert str(raised.value).startswith(f"{tmp_path}/h.{kind} cannot be written: ")
    assert left_in(tmp_path) == []


@pytest.mark.end_to_end
def test_a_path_that_cannot_be_written_is_one_line(run_dir, tmp_path, capsys):
    """Below a file: exit code 2, with what cannot be written and why."""
    (tmp_path / "file").touch()
    command = ["embed", f"--run_dir={run_dir}", f"--output={tmp_path}/file/h.npz"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "h.npz cannot be written: " in error and "is a file. Choose another path." in error
    assert error.count("\n") == 1


def test_an_error_in_the_block_is_not_an_output_error(tmp_path):
    """An OSError of reading the images stays what it is."""
    with pytest.raises(FileNotFoundError):
        with embeddings.Writer(tmp_path / "h.npz"):
            raise FileNotFoundError("an image")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_batches_with_different_columns_are_refused(kind, tmp_path):
    """Another D, a missing column, and no batch at all."""
    for sizes in ([{"dim": 4}, {"dim": 5}], [{}, {"labelled": False}]):
        with pytest.raises(ValueError, match="columns of the first"):
            with embeddings.Writer(tmp_path / f"h.{kind}") as file:
                for size in sizes:
                    file.write(next(batches([2], **size)))
    with pytest.raises(ValueError, match="at least one row; got none"):
        with embeddings.Writer(tmp_path / f"h.{kind}"):
            pass
    assert left_in(tmp_path) == []


def test_an_unreadable_file_is_an_argument_error(tmp_path):
    """No file, another suffix, a damaged file, and a file with other content."""
    with pytest.raises(ValueError, match=r"there is none at .*h\.npz"):
        embeddings.read(tmp_path / "h.npz")
    with pytest.raises(errors.UsageError, match="must end in"):
        embeddings.read(tmp_path / "h.csv")
    for kind in FORMATS:
        path = tmp_path / f"h.{kind}"
        for content in (b"", b"something else entirely, of some length"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="must be a file of embeddings"):
                embeddings.read(path)
        with embeddings.Writer(path) as file:
            file.write(next(batches([9])))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match="must be a file of embeddings"):
            embeddings.read(path)
    np.savez(tmp_path / "h.npz", images=np.ones(3))
    with pytest.raises(ValueError, match="no array `embeddings`"):
        embeddings.read(tmp_path / "h.npz")


@pytest.mark.end_to_end
@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_memory_does_not_grow_with_the_rows(kind, tmp_path):
    """Writing 200,000 embeddings of 512 numbers (400 MB) takes at most 150 MB more than 2,000."""
    peaks = []
    for rows in (2000, 200_000):
        script = ROOT / "benchmarks" / "embeddings.py"
        command = [sys.executable, script, "--write", tmp_path / f"h.{kind}", rows, 512]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        peaks.append(json.loads(done.stdout.splitlines()[-1])["peak_megabytes"])
    assert peaks[1] - peaks[0] < 150, peaks


# -- progress --------------------------------------------------------------------------------


def test_lines_at_least_30_s_apart_where_there_is_no_terminal(monkeypatch):
    """By a clock: images done and in all, the rate, the time left; nothing at the end."""
    logged, now = [], [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar(4000, logged.append) as bar:
        for _ in range(8):  # 10 s each
            now[0] += 10.0
            bar.update(500)
    assert logged == [
        "1500 of 4000 images, 50.00 images/s, 00:50 left",
        "3000 of 4000 images, 50.00 images/s, 00:20 left",
    ]


def test_a_short_pass_logs_no_line():
    """Where it takes less than 30 s, and where it stops early."""
    logged = []
    with progress_bar(20, logged.append) as bar:
        bar.update(20)
    with pytest.raises(KeyboardInterrupt), progress_bar(20, logged.append) as bar:
        bar.update(7)
        raise KeyboardInterrupt
    assert not logged


def test_a_bar_on_a_terminal(monkeypatch):
    """Images done and in all, the rate; nothing is logged."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, logged = Terminal(), []
    monkeypatch.setattr(sys, "stdout", screen)
    with progress_bar(20, logged.append) as bar:
        bar.update(7)
        bar.update(13)
    last = screen.getvalue().split("\r")[-1]
    assert "20/20" in last and "images/s" in last and last.endswith("\n")
    assert not logged


# -- exported SavedModels --------------------------------------------------------------------


@pytest.mark.end_to_end
def test_an_export_is_a_function_of_images(run_dir, images, expected):
    """uint8 and float images; it knows the image size and D."""
    exported = export.load_exported(run_dir / "export" / "1")
    assert exported.image_size == SIZE and exported.embedding_dim == DIM
    pixels = np.load(images)["x_train"]
    for batch in (pixels, pixels / 255.0, (pixels / 255.0).astype(np.float16)):
        h = exported(batch)
        assert h.dtype == tf.float32
        tolerance = 1e-5 if batch.dtype != np.float16 else 1e-2
        np.testing.assert_allclose(h, expected.h, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [255.0, -0.5, np.nan])
def test_an_export_refuses_float_images_out_of_range(run_dir, value):
    """With the message of `images.check_range`."""
    exported = export.load_exported(run_dir / "export" / "1")
    with pytest.raises(errors.ArgumentError, match=r"float images must lie in \[0, 1\]; got "):
        exported(np.full([2, SIZE, SIZE, 3], value))


def saved(path, function, shape=(None, None, None, 3), dtype=tf.uint8, name="serving_default"):
    """Saves a function as a SavedModel that this package did not write."""
    module = tf.Module()
    module.function = tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, "x")])
    tf.saved_model.save(module, str(path), {name: module.function})
    return path


def means(images):
    """Returns the mean colours [B, 3] of images [B, H, W, 3]."""
    return {"vectors": tf.reduce_mean(tf.cast(images, tf.float32), [1, 2])}


def test_a_saved_model_from_another_program(tmp_path):
    """Size and D come from the signature; either dtype; the highest version is loaded."""
    pixels = np.random.default_rng(0).integers(0, 256, [2, 6, 6, 3], np.uint8)
    of_uint8 = export.load_exported(saved(tmp_path / "a" / "9", means))
    assert of_uint8.image_size is None and of_uint8.embedding_dim == 3
    np.testing.assert_allclose(of_uint8(pixels / 255.0), pixels.mean((1, 2)), rtol=1e-5)
    saved(tmp_path / "a" / "10", means, (None, 6, 6, 3), tf.float32, "serving_float")
    of_float = export.load_exported(tmp_path / "a")
    assert of_float.path == tmp_path / "a" / "10" and of_float.image_size == 6
    np.testing.assert_allclose(of_float(pixels), pixels.mean((1, 2)) / 255, rtol=1e-5)
    with pytest.raises(ValueError, match=r"takes images of shape \(None, 6, 6, 3\); got"):
        of_float(pixels[:, :5])


@pytest.mark.end_to_end
def test_a_saved_model_of_unknown_image_size_needs_image_size(tmp_path, images, capsys):
    """--image_size sets it."""
    path = saved(tmp_path / "a" / "1", means)
    command = ["embed", f"--saved_model={path}", f"--dataset=npz:{images}"]
    command += [f"--output={tmp_path / 'h.npz'}"]
    assert cli.main(command) == 2
    assert "Pass --image_size" in capsys.readouterr().err
    assert cli.main([*command, f"--image_size={SIZE}"]) == 0
    pixels = np.load(images)["x_train"]
    found = embeddings.read(tmp_path / "h.npz")
    np.testing.assert_allclose(found.h, pixels.mean((1, 2)), rtol=1e-5)


def test_a_path_without_an_encoder_is_an_argument_error(run_dir, tmp_path):
    """Nothing there, damaged files, and signatures of another kind."""
    for path in (tmp_path / "nowhere", run_dir):
        with pytest.raises(ValueError, match=r"has no saved_model\.pb"):
            export.load_exported(path)
    shutil.copytree(run_dir / "export" / "1", tmp_path / "cut")
    (tmp_path / "cut" / "saved_model.pb").write_bytes(b"something else")
    with pytest.raises(ValueError, match="must be a SavedModel that can be read"):
        export.load_exported(tmp_path / "cut")
    shutil.copytree(run_dir / "export" / "1", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "variables")
    with pytest.raises(ValueError, match="must be a SavedModel that can be read"):
        export.load_exported(tmp_path / "bare")
    others = {
        "flat": saved(tmp_path / "flat", lambda x: x, (None, 3)),
        "named": saved(tmp_path / "named", means, name="predict"),
        "map": saved(tmp_path / "map", lambda x: x),
    }
    for path in others.values():
        with pytest.raises(ValueError, match="must have a signature serving_default"):
            export.load_exported(path)
