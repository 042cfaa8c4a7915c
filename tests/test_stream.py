"""Images decoded inside tf.data by TensorFlow's kernels, against Pillow and NumPy."""

import gzip
import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from simclr_tf import data, errors
from simclr_tf.data import headers
from simclr_tf.data.decode import decode, decode_whole
from simclr_tf.data.decode_ops import _WAY_OF_RATIO, BY_PILLOW, RESIZED


def photo(seed, height, width):
    """A smooth random image with noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, [height // 8 + 2, width // 8 + 2, 3], np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, [height, width, 3])
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def encoded(image, file_format, mode="RGB", **options):
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture if mode is None else picture.convert(mode)).save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def moving(image):
    return {"save_all": True, "append_images": [Image.fromarray(255 - image)]}


def xmp():
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    return text


SHAPE = 45, 61
IMAGE = photo(0, *SHAPE)
BY_TENSORFLOW = {
    **{f"jpeg {s}": encoded(IMAGE, "JPEG", subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0")},
    "jpeg 4:1:1": encoded(IMAGE, "JPEG", subsampling="4:1:1"),
    "jpeg progressive": encoded(IMAGE, "JPEG", progressive=True),
    "jpeg grey": encoded(IMAGE, "JPEG", "L"),
    "jpeg of low quality": encoded(IMAGE, "JPEG", quality=10),
    "jpeg upright by its exif": encoded(IMAGE, "JPEG", exif=exif(1)),
    "png": encoded(IMAGE, "PNG"),
    "png grey": encoded(IMAGE, "PNG", "L"),
    "png palette": encoded(IMAGE, "PNG", "P"),
}
LEFT_TO_PILLOW = {
    "jpeg cmyk": encoded(IMAGE, "JPEG", "CMYK"),
    **{f"jpeg turned {i}": encoded(IMAGE, "JPEG", exif=exif(i)) for i in (2, 3, 6, 8)},
    "jpeg with more after its end": encoded(IMAGE, "JPEG") + b"film",
    "png with alpha": encoded(IMAGE, "PNG", "RGBA"),
    "png with grey and alpha": encoded(IMAGE, "PNG", "LA"),
    "png palette with transparency": encoded(IMAGE, "PNG", "P", transparency=3),
    "png with a transparent colour": encoded(
        IMAGE, "PNG", transparency=tuple(IMAGE[3, 4].tolist())
    ),
    "png of 1 bit": encoded(IMAGE, "PNG", "1"),
    "png of 4 bits": encoded(IMAGE // 16 * 16, "PNG", "P", bits=4),
    "png of 16 bits": encoded(IMAGE[..., 0].astype(np.uint16) * 257, "PNG", None),
    "png turned": encoded(IMAGE, "PNG", exif=exif(6)),
    "png turned by xmp": encoded(IMAGE, "PNG", pnginfo=xmp()),
    "png animated": encoded(IMAGE, "PNG", **moving(IMAGE)),
    "gif": encoded(IMAGE, "GIF"),
    "gif animated": encoded(IMAGE, "GIF", **moving(IMAGE)),
    "bmp": encoded(IMAGE, "BMP"),
    "webp": encoded(IMAGE, "WEBP"),
    "webp animated": encoded(IMAGE, "WEBP", **moving(IMAGE)),
    "tiff": encoded(IMAGE, "TIFF"),
}
KINDS = BY_TENSORFLOW | LEFT_TO_PILLOW


def write(folder, files):
    """Writes files, named 000.jpg and so on whatever they hold; returns the data set's name."""
    folder.mkdir(exist_ok=True)
    for i, content in enumerate(files):
        (folder / f"{i:03d}.jpg").write_bytes(content)
    return f"folder:{folder}"


def streamed(name, **options):
    return data.load(name, cache_bytes=0, **options)


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_header_chooses_the_decoder(self, kind):
        header = headers.read_header(KINDS[kind])
        assert (header.decoder == headers.PILLOW) == (kind in LEFT_TO_PILLOW)
        assert header[1:3] == SHAPE

    def test_every_kind_is_what_pillow_makes_of_it(self, tmp_path):
        """To the last bit, for evaluation and for training where nothing is resized."""
        source = streamed(write(tmp_path / "all", KINDS.values()), image_size=45, source_size=70)
        batches = list(source.batches(7).as_numpy_iterator())
        squares = np.concatenate([batch["image"] for batch in batches])
        for kind, square in zip(KINDS, squares):
            np.testing.assert_array_equal(square, decode(KINDS[kind], 45), err_msg=kind)
        stream = source.epochs(len(KINDS), 0, shuffle=False)
        (batch,) = stream.take(1).as_numpy_iterator()
        for kind, square, extent in zip(KINDS, batch["image"], batch["extent"]):
            expected, *size = decode_whole(KINDS[kind], 70)
            assert extent.tolist() == size, kind
            np.testing.assert_array_equal(square, expected, err_msg=kind)

    @pytest.mark.parametrize("side", [11, 20, 40])
    def test_reduced_images_agree_within_rounding(self, tmp_path, side):
        """JPEG decoded at 1/1, 1/2, 1/4 or 1/8, then bicubic; PNG that is reduced by 4 or more."""
        sizes = [(45, 61), (90, 80), (131, 200), (400, 300), (640, 23), (700, 900)]
        files = [encoded(photo(i, *size), "JPEG", quality=90) for i, size in enumerate(sizes)]
        files += [encoded(photo(i, *size), "PNG") for i, size in enumerate(sizes)]
        source = streamed(write(tmp_path / "large", files), image_size=16, source_size=side)
        ways = source._plan(whole=True).way
        assert set(ways[: len(sizes)]) - {BY_PILLOW}, "some are decoded by TensorFlow"
        (batch,) = source.epochs(len(files), 0, shuffle=False).take(1).as_numpy_iterator()
        for file, square, extent in zip(files, batch["image"], batch["extent"]):
            expected, *size = decode_whole(file, side)
            assert extent.tolist() == size
            difference = np.abs(square.astype(int) - expected)
            assert difference.max() <= 2 and difference.mean() < 0.25

    def test_large_photographs_are_decoded_at_a_fraction(self, tmp_path):
        """As Pillow does it: 1/2, 1/4 or 1/8 where twice the pixels wanted are left."""
        files = [encoded(photo(0, 20 * n, 30 * n), "JPEG") for n in (1, 2, 4, 8, 16)]
        source = streamed(write(tmp_path / "large", files), image_size=10, source_size=15)
        plan = source._plan(whole=True)
        assert plan.way.tolist() == [RESIZED, *(_WAY_OF_RATIO[n] for n in (2, 4, 8)), BY_PILLOW]


def damaged_set(folder):
    """Twenty PNG files of 8 pixels, two of which are cut off after their header."""
    files = [encoded(photo(i, 8, 8), "PNG") for i in range(20)]
    for i in (3, 11):
        files[i] = files[i][:-40] + files[i][-12:]
    return write(folder, files)


class TestUnreadable:
    """Files whose header is fine, so that TensorFlow's decoder finds the damage."""

    def test_they_are_left_out_in_order_and_listed(self, tmp_path):
        source = streamed(damaged_set(tmp_path / "set"), max_corrupt_share=0.2)
        assert (source._plan(whole=False).way != BY_PILLOW).all()
        whole = [photo(i, 8, 8) for i in range(20) if i not in (3, 11)]
        stream = source.epochs(5, 0, shuffle=False).take(4).as_numpy_iterator()
        np.testing.assert_array_equal(np.concatenate(list(stream)), [*whole, *whole[:2]])
        assert [name for name, _ in source.corrupt] == ["003.jpg", "011.jpg"]
        again = streamed(damaged_set(tmp_path / "set"), max_corrupt_share=0.2)
        np.testing.assert_array_equal(again.arrays()[0], whole)
        assert again.corrupt == source.corrupt

    def test_the_last_of_all_is_listed_too(self, tmp_path):
        files = [encoded(photo(i, 8, 8), "PNG") for i in range(6)]
        files[5] = files[5][:-40] + files[5][-12:]
        source = streamed(write(tmp_path / "set", files), max_corrupt_share=0.2)
        assert len(source.arrays()[0]) == 5
        assert [name for name, _ in source.corrupt] == ["005.jpg"]

    @pytest.mark.parametrize("readable", [0, 1])
    def test_a_stream_never_searches_for_ever(self, tmp_path, readable):
        """None or one of nine files can be read; with one, it fills every batch."""
        files = [encoded(photo(i, 8, 8), "PNG") for i in range(9)]
        files[readable:] = [file[:-40] + file[-12:] for file in files[readable:]]
        source = streamed(write(tmp_path / "set", files), max_corrupt_share=1.0)
        stream = source.epochs(3, 0).take(4).as_numpy_iterator()
        if not readable:
            with pytest.raises(tf.errors.InvalidArgumentError, match="9 of 9"):
                list(stream)
            return
        batches = list(stream)
        np.testing.assert_array_equal(batches, np.broadcast_to(photo(0, 8, 8), [4, 3, 8, 8, 3]))

    def test_a_file_that_is_gone_is_unreadable(self, tmp_path):
        source = streamed(damaged_set(tmp_path / "set"), max_corrupt_share=0.3)
        (tmp_path / "set" / "000.jpg").unlink()
        assert len(source.arrays()[0]) == 17
        assert source.corrupt[0] == ("000.jpg", "cannot be read: No such file or directory")


@pytest.mark.parametrize("split", ["train", "train[:7]"])
def test_order_resume_and_slices_are_those_of_examples_in_memory(tmp_path, split):
    """Of class folders with labels, whole or a slice; an .npz of the same images has them too."""
    for i in range(12):
        folder = tmp_path / "set" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.png").write_bytes(encoded(photo(i, 8, 8), "PNG"))
    source = streamed(f"folder:{tmp_path / 'set'}", split=split)
    kept = data.load(f"folder:{tmp_path / 'set'}", split)
    assert kept.cached and not source.cached
    slice_ = data.ReplicaSlice(1, 1, 2)
    for options in ({}, {"first_epoch": 1, "first_step": 1}, {"replica_slice": slice_}):
        streams = [each.epochs(2, 5, labels=True, **options).take(9) for each in (source, kept)]
        for one, other in zip(*(stream.as_numpy_iterator() for stream in streams)):
            np.testing.assert_array_equal(one["image"], other["image"])
            np.testing.assert_array_equal(one["label"], other["label"])
    for one, other in zip(source.arrays(), kept.arrays()):
        np.testing.assert_array_equal(one, other)


def write_tar(path, members):
    """Writes (name, content) pairs, and returns the path."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


class TestTar:
    @pytest.fixture
    def shards(self, tmp_path):
        """Three archives of 5 images of 8 pixels, with a class of 3."""
        for shard in range(3):
            members = []
            for i in range(5):
                n = 5 * shard + i
                members += [(f"./{n:03d}.png", encoded(photo(n, 8, 8), "PNG"))]
                members += [(f"./{n:03d}.cls", str(n % 3))]
            write_tar(tmp_path / f"part-{shard}.tar", members)
        return f"tar:{tmp_path}/part-*.tar"

    @pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
    def test_images_labels_and_ids(self, shards, cache_bytes):
        source = data.load(shards, cache_bytes=cache_bytes)
        images, labels, ids = source.arrays()
        np.testing.assert_array_equal(images, [photo(n, 8, 8) for n in range(15)])
        assert labels.tolist() == [n % 3 for n in range(15)] and source.class_names is None
        assert ids[6] == "part-1.tar/006"
        assert data.load(shards, "all[:40%]", cache_bytes=cache_bytes).num_examples == 6

    def test_an_epoch_reads_shard_by_shard(self, shards, monkeypatch):
        """All examples once; none moves by the size of the buffer; other shards lead each time."""
        monkeypatch.setattr("simclr_tf.data.pipeline.SHUFFLE_BUFFER", 3)
        source = streamed(shards)
        number = {photo(n, 8, 8).tobytes(): n for n in range(15)}
        stream = source.epochs(5, 4).take(18).as_numpy_iterator()
        orders = [number[image.tobytes()] for batch in stream for image in batch]
        orders = np.reshape(orders, [6, 15])
        assert all(sorted(order) == list(range(15)) for order in orders.tolist())
        assert len({order[0] // 5 for order in orders}) > 1
        assert any((np.diff(order) < 0).sum() > 2 for order in orders)  # shuffled within as well
        for order in orders:
            first_shards = order[:3] // 5
            assert len(set(order[:13] // 5)) >= 2 and len(set(first_shards)) == 1
        tail = source.epochs(5, 4, first_epoch=2, first_step=1).take(2).as_numpy_iterator()
        tail = [number[image.tobytes()] for batch in tail for image in batch]
        assert tail == orders[2, 5:].tolist()

    @pytest.mark.parametrize(
        ("suffix", "content", "expected"),
        [
            ("cls", "cat\n", "cat"),
            ("cls", " 7 ", 7),
            ("json", '{"label": 4, "width": 8}', 4),
            ("json", '{"class": "dog"}', "dog"),
            ("json", '"dog"', "dog"),
            ("json", "3", 3),
            ("json", "{damaged", None),
            ("txt", "2", 2),
            ("txt", "a red ball", None),
            ("cls", "", None),
            ("cls", b"\xff", None),
        ],
    )
    def test_forms_of_a_class(self, tmp_path, suffix, content, expected):
        image = encoded(photo(0, 8, 8), "PNG")
        members = [(f"a/x.{suffix}", content), ("a/x.PNG", image), ("b/x.png", image)]
        write_tar(tmp_path / "a.tar", members)
        source = data.load(f"tar:{tmp_path}/a.tar")
        assert source.num_examples == 2
        if expected is None:
            assert not source.labelled
        else:
            names = source.class_names
            label = source.labels()[0]
            assert (names[label] if names else label) == expected
            assert source.labels()[1] == -1

    def test_the_end_of_a_file_that_is_cut_off_is_unreadable(self, shards, tmp_path):
        path = tmp_path / "part-2.tar"
        image = encoded(photo(0, 8, 8), "PNG")
        offset = path.read_bytes().rindex(image[:8])
        source = streamed(shards, max_corrupt_share=0.2)
        path.write_bytes(path.read_bytes()[: offset + 20])
        assert len(source.arrays()[0]) == 14
        assert source.corrupt == [("part-2.tar/014", "the file ends within the image")]

    def test_errors(self, shards, tmp_path):
        image = encoded(photo(0, 8, 8), "PNG")
        (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "part-0.tar").read_bytes()))
        (tmp_path / "c.tar").write_bytes(b"something else" * 100)
        write_tar(tmp_path / "d.tar", [("x.txt", "1")])
        write_tar(tmp_path / "e.tar", [("x.cls", "1"), ("x.png", image)] * 1)
        write_tar(tmp_path / "f.tar", [("y.cls", "cat"), ("y.png", image)])
        for pattern, message in [
            ("b.tar.gz", "undamaged, uncompressed"),
            ("c.tar", "undamaged, uncompressed"),
            ("d.tar", "at least one image"),
            ("[ef].tar", "all indices or all names; got 1 and 'cat'"),
            ("z*.tar", "none does"),
        ]:
            with pytest.raises(ValueError, match=message):
                data.load(f"tar:{tmp_path}/{pattern}")
        with pytest.raises(ValueError, match="'test'"):
            data.load(shards, "test")


@pytest.mark.parametrize("split", ["train", "train[:60%]"])
def test_records_are_decoded_by_tensorflow_too(tmp_path, split):
    """Labels, order and damaged records as when they are kept in memory."""
    for part in range(2):
        with tf.io.TFRecordWriter(str(tmp_path / f"{part}.tfrecord")) as writer:
            for i in range(6):
                image = encoded(photo(6 * part + i, 8, 8), "PNG")
                image = image[:-40] + image[-12:] if i == 4 else image
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 3])),
                }
                features = tf.train.Features(feature=features)
                writer.write(tf.train.Example(features=features).SerializeToString())
    name, options = f"tfrecord:{tmp_path}/*.tfrecord", {"max_corrupt_share": 0.4}
    source, kept = streamed(name, split=split, **options), data.load(name, split, **options)
    assert (source._plan(whole=False).way != BY_PILLOW).all()
    for one, other in zip(source.arrays(), kept.arrays()):
        np.testing.assert_array_equal(one, other)
    assert source.corrupt == kept.corrupt and source.corrupt
    images, labels, _ = kept.arrays()
    label_of = {image.tobytes(): label for image, label in zip(images, labels)}
    for batch in source.epochs(3, 1, labels=True).take(6).as_numpy_iterator():
        assert [label_of[image.tobytes()] for image in batch["image"]] == batch["label"].tolist()


class TestIndexCache:
    """Headers kept on disk; a test counts those that are read."""

    @pytest.fixture(autouse=True)
    def any_number(self, monkeypatch):
        monkeypatch.setattr("simclr_tf.data.index_cache.MIN_KEPT", 3)

    @pytest.fixture
    def read(self, monkeypatch):
        """The heights of the headers that were read, in any order."""
        heights = []

        def counting(file):
            header = headers.read_header(file)
            heights.append(header.height)
            return header

        for module in ("folder", "tar", "tfrecord"):
            monkeypatch.setattr(f"simclr_tf.data.{module}.read_header", counting)
        return heights

    @staticmethod
    def make(tmp_path):
        for i in range(8):
            folder = tmp_path / "set" / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(encoded(photo(i, 10 + i, 20), "PNG"))
        return f"folder:{tmp_path / 'set'}", {"index_cache": tmp_path / "index", "image_size": 8}

    def test_only_changed_files_are_read_again(self, tmp_path, read):
        name, options = self.make(tmp_path)
        first = streamed(name, **options)
        assert sorted(read) == list(range(10, 18))
        read.clear()
        again = streamed(name, **options)
        assert not read
        for one, other in zip(first.arrays(), again.arrays()):
            np.testing.assert_array_equal(one, other)
        folder = tmp_path / "set" / "a"
        (folder / "0.png").write_bytes(encoded(photo(0, 30, 20), "JPEG", exif=exif(6)))
        (folder / "4.png").unlink()
        (folder / "55.png").write_bytes(encoded(photo(55, 31, 20), "PNG"))
        changed = streamed(name, **options)
        assert sorted(read) == [30, 31]
        fresh = data.load(name, image_size=8)
        for one, other in zip(changed.arrays(), fresh.arrays()):
            np.testing.assert_array_equal(one, other)
        assert changed.digest == fresh.digest != first.digest

    def test_a_slice_reads_its_own_and_the_whole_adds_the_rest(self, tmp_path, read):
        name, options = self.make(tmp_path)
        streamed(name, split="train[:50%]", **options)
        assert len(read) == 4
        streamed(name, **options)
        assert sorted(read) == list(range(10, 18))

    @pytest.mark.parametrize("content", [b"", b"damaged"])
    def test_a_damaged_index_is_written_again(self, tmp_path, read, content):
        name, options = self.make(tmp_path)
        streamed(name, **options)
        (file,) = (tmp_path / "index").iterdir()
        file.write_bytes(content)
        streamed(name, **options)
        assert len(read) == 16
        streamed(name, **options)
        assert len(read) == 16

    def test_archives_and_records_have_one_too(self, tmp_path, read):
        images = [encoded(photo(i, 8, 8), "PNG") for i in range(4)]
        path = write_tar(
            tmp_path / "a.tar", [(f"{i}.png", image) for i, image in enumerate(images)]
        )
        with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
            for i, image in enumerate(images):
                feature = {"image": tf.train.Feature(bytes_list={"value": [image]})}
                feature["label"] = tf.train.Feature(int64_list={"value": [i]})
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
        for name in (f"tar:{path}", f"tfrecord:{tmp_path}/a.tfrecord"):
            read.clear()
            for _ in range(2):
                source = streamed(name, index_cache=tmp_path / "index")
                np.testing.assert_array_equal(
                    source.arrays()[0], [photo(i, 8, 8) for i in range(4)]
                )
            assert len(read) == 4
        assert source.labels().tolist() == [0, 1, 2, 3]

    def test_a_directory_that_cannot_be_written_is_an_error(self, tmp_path):
        name, options = self.make(tmp_path)
        (tmp_path / "index").write_text("a file")
        with pytest.raises(errors.ArgumentError, match="index_cache must be a directory"):
            streamed(name, **options)


def test_few_headers_are_not_kept(tmp_path):
    name, options = TestIndexCache.make(tmp_path)
    streamed(name, **options)
    assert not (tmp_path / "index").exists()


class TestCacheOnDemand:
    """A worker decodes its own slices alone, each image once."""

    @pytest.fixture
    def decoded(self, monkeypatch):
        """Which files have been read, as often as they were."""
        paths = []
        read_file = tf.io.read_file

        def reading(path):
            (seen,) = tf.numpy_function(lambda p: [paths.append(p) or p], [path], [tf.string])
            return read_file(seen)

        monkeypatch.setattr(tf.io, "read_file", reading)
        return paths

    @pytest.mark.parametrize("sizes", [[(8, 8)], [(8, 12), (30, 20)]], ids=["squares", "photos"])
    def test_slices_are_decoded_once(self, tmp_path, decoded, sizes):
        files = [encoded(photo(i, *sizes[i % len(sizes)]), "PNG") for i in range(16)]
        files[5] = encoded(photo(5, *sizes[0]), "GIF")
        name = write(tmp_path / "set", files)
        options = {"image_size": 8, "cache_on_demand": True}
        worker = data.ReplicaSlice(0, 1, 2)
        source, plain = data.load(name, **options), streamed(name, image_size=8)
        assert not source.cached and source._memory is not None
        assert not source._memory.filled.any()
        list(source.epochs(8, 3, shuffle=False, replica_slice=worker).take(8))
        assert np.flatnonzero(source._memory.filled).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
        stream = source.epochs(8, 3, replica_slice=worker)
        expected = plain.epochs(8, 3, replica_slice=worker).take(12)
        decoded.clear()
        for _ in range(2):
            for one, other in zip(stream.take(12), expected):
                np.testing.assert_array_equal(*map(image_of, (one, other)))
        assert source._memory.filled.all()
        decoded.clear()
        list(stream.take(12))
        assert not decoded, "all from memory"
        for one, other in zip(source.arrays(), plain.arrays()):
            np.testing.assert_array_equal(one, other)

    def test_unreadable_files_are_not_kept(self, tmp_path):
        source = data.load(
            damaged_set(tmp_path / "set"), max_corrupt_share=0.2, cache_on_demand=True
        )
        for _ in range(2):
            images = np.concatenate(list(source.epochs(5, 0, shuffle=False).take(4)))
            whole = [photo(i, 8, 8) for i in range(20) if i not in (3, 11)]
            np.testing.assert_array_equal(images, [*whole, *whole[:2]])
        assert np.flatnonzero(~source._memory.filled).tolist() == [3, 11]


def image_of(batch):
    return batch["image"] if isinstance(batch, dict) else batch
