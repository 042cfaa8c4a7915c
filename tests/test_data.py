"""Data sets by name: every source, on tiny data made here, against Pillow and NumPy."""

import io
import logging
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclr_tf import data, errors, images
from simclr_tf.data import by_name, splits
from simclr_tf.data.decode import CorruptImageError, decode, decode_whole
from simclr_tf.data.tfrecord import Fields, Records, Shard


def picture(seed, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, [height, width, 3], np.uint8)


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, file_format, **options
    )
    return buffer.getvalue()


def smooth(height, width):
    """A gradient that differs in x and y and between the channels."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / (width - 1), 255 * y / (height - 1), np.full([height, width], 40)]
    return np.stack(channels, -1).astype(np.uint8)


@pytest.fixture
def flowers(tmp_path):
    """PATH/train/{b,a,c}/NN.png, 12 images of 8 pixels, 4 a class; PATH/test/{a,c}, 2 a class."""
    for split, classes, per_class in [("train", "bac", 4), ("test", "ac", 2)]:
        for name in classes:
            folder = tmp_path / "flowers" / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                seed = ord(name) * 100 + i + (50 if split == "test" else 0)
                (folder / f"{i:02d}.png").write_bytes(encoded(picture(seed)))
    return tmp_path / "flowers"


@pytest.fixture
def numbered(tmp_path):
    """An .npz of 23 images of 4 pixels, image i filled with i, label i % 5."""
    images = np.broadcast_to(np.arange(23, dtype=np.uint8)[:, None, None, None], [23, 4, 4, 3])
    path = tmp_path / "numbered.npz"
    np.savez(path, images=images, labels=np.arange(23) % 5)
    return f"npz:{path}"


def values(stream, num_batches):
    """Which images of `numbered` the batches hold."""
    return [batch[:, 0, 0, 0] for batch in stream.take(num_batches).as_numpy_iterator()]


def same(a, b):
    for x, y in zip(a.arrays(), b.arrays()):
        np.testing.assert_array_equal(x, y)


class TestDecode:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
    def test_every_mode_gives_what_pillow_gives(self, mode):
        image = Image.fromarray(picture(1, 9, 9)).convert(mode)
        data_bytes = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
        expected = np.asarray(Image.open(io.BytesIO(data_bytes)).convert("RGB"))
        np.testing.assert_array_equal(decode(data_bytes, 9), expected)

    @pytest.mark.parametrize("alpha, expected", [(255, 30), (0, 255), (51, 210)])
    def test_transparency_is_laid_on_white(self, alpha, expected):
        image = np.full([4, 4, 4], 30, np.uint8)
        image[..., 3] = alpha
        np.testing.assert_array_equal(decode(encoded(image), 4), np.full([4, 4, 3], expected))

    def test_transparent_palette_colour_is_laid_on_white(self):
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        assert decode(encoded(image), 4)[0, 0].tolist() == [10, 20, 30]
        assert decode(encoded(image, transparency=1), 4)[0, 0].tolist() == [255, 255, 255]

    def test_sixteen_bit_grey_keeps_its_upper_eight_bits(self):
        grey = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
        np.testing.assert_array_equal(decode(encoded(grey), 4)[..., 1], grey // 256)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, orientation):
        upright = smooth(16, 16)
        undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
        undo |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
        stored = Image.fromarray(upright)
        if orientation > 1:
            stored = stored.transpose(Image.Transpose[undo[orientation]])
        exif = Image.Exif()
        exif[0x0112] = orientation
        got = decode(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0), 16)
        assert np.abs(got.astype(int) - upright).max() < 12

    @pytest.mark.parametrize("height, width", [(40, 100), (100, 40), (64, 64), (7, 5), (16, 30)])
    def test_resized_centre_square_agrees_with_pillows_bicubic(self, height, width):
        image = smooth(height, width)
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        square = Image.fromarray(image).crop((left, top, left + side, top + side))
        expected = np.asarray(square.resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(decode(encoded(image), 16) - expected).max() <= 1
        np.testing.assert_array_equal(decode(image, 16), decode(encoded(image), 16))

    @pytest.mark.parametrize("size", [16, 31, 48])
    @pytest.mark.parametrize(
        "height, width",
        [
            (40, 100),
            (101, 40),
            (64, 64),
            (96, 96),
            (7, 5),
            (31, 48),
            (48, 31),
            (375, 500),
            (3, 900),
        ],
    )
    def test_pixels_are_those_that_serving_computes(self, height, width, size):
        """To the last bit, eagerly and in a graph: `images.centre_square` of the whole image."""
        image = picture(height + width, height, width)
        expected = images.centre_square(image[None], size)[0]
        in_a_graph = tf.function(lambda batch: images.centre_square(batch, size))
        got = decode(encoded(image), size)
        assert got.dtype == np.uint8 and got.shape == (size, size, 3)
        np.testing.assert_array_equal(got / np.float32(255), expected)
        served = in_a_graph(tf.constant(image[None]))[0]
        np.testing.assert_array_equal(got, np.rint(served * 255))
        np.testing.assert_array_equal(decode(image, size), got)
        of_floats = images.centre_square(image[None] / np.float32(255), size)[0]
        np.testing.assert_array_equal(got / np.float32(255), of_floats)

    def test_a_large_jpeg_is_decoded_whole(self):
        """Serving has every pixel of it, so evaluation has too."""
        jpeg = encoded(smooth(640, 800), "JPEG", quality=95)
        whole = np.asarray(Image.open(io.BytesIO(jpeg)))
        expected = images.centre_square(whole[None], 32)[0]
        np.testing.assert_array_equal(decode(jpeg, 32) / np.float32(255), expected)

    def test_extreme_proportions_stay_small(self):
        assert decode(encoded(smooth(2, 30000)), 224).shape == (224, 224, 3)

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
    def test_truncated_file_is_corrupt(self, file_format):
        whole = encoded(picture(3, 64, 64), file_format)
        decode(whole, 64)
        with pytest.raises(CorruptImageError):
            decode(whole[: len(whole) // 2], 64)

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
    def test_what_is_no_image_is_corrupt(self, content):
        with pytest.raises(CorruptImageError):
            decode(content, 8)

    def test_damaged_pixels_are_corrupt(self):
        png = bytearray(encoded(picture(3, 32, 32)))
        png[len(png) // 2] ^= 0xFF
        with pytest.raises(CorruptImageError):
            decode(bytes(png), 32)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [10_000, 60_000])
    def test_decompression_bomb_is_corrupt(self, side):
        def chunk(kind, content):
            crc = zlib.crc32(kind + content)
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        png = (
            b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
        with pytest.raises(CorruptImageError, match=r"limit|exceed"):
            decode(png, 8)


class TestSplits:
    @pytest.mark.parametrize("slices", [["[:90%]", "[90%:]"], ["[:7]", "[7:-4]", "[-4:]"]])
    def test_slices_are_disjoint_and_complete(self, slices):
        taken = [splits.take(splits.parse("train" + s), 23) for s in slices]
        assert sorted(np.concatenate(taken)) == list(range(23))

    @pytest.mark.parametrize(
        "text, count",
        [("[:90%]", 90), ("[10%:20%]", 10), ("[-5%:]", 5), ("[3:10]", 7)],
    )
    def test_slices_have_the_size_asked_for(self, text, count):
        assert len(splits.take(splits.parse("train" + text), 100)) == count

    def test_terms_are_joined(self):
        joined = splits.take(splits.parse("train[:5%] + train[50%:]"), 100)
        ends = [splits.take(splits.parse(f"train{s}"), 100) for s in ("[:5%]", "[50%:]")]
        np.testing.assert_array_equal(joined, np.concatenate(ends))

    @pytest.mark.parametrize("text", ["", "train[", "train[:x]", "train[1]", "train[:10%", "a+b"])
    def test_what_is_no_split_is_an_error(self, text):
        with pytest.raises(ValueError, match="split"):
            splits.parse(text)

    def test_slice_of_sorted_classes_has_them_all(self, flowers):
        source = data.load(f"folder:{flowers}", "train[:50%]")
        assert source.num_examples == 6
        assert set(source.arrays()[1]) == {0, 1, 2}


class TestFolder:
    def test_class_folders(self, flowers):
        source = data.load(f"folder:{flowers}")
        images, labels, ids = source.arrays()
        assert (source.num_examples, source.image_size, source.labelled) == (12, 8, True)
        assert source.class_names == ["a", "b", "c"]
        assert ids[:2].tolist() == ["train/a/00.png", "train/a/01.png"]
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        np.testing.assert_array_equal(images[4], picture(ord("b") * 100))

    def test_a_class_missing_from_a_split_does_not_shift_labels(self, flowers):
        source = data.load(f"folder:{flowers}", "test")
        assert source.class_names == ["a", "b", "c"]
        assert source.arrays()[1].tolist() == [0, 0, 2, 2]

    @pytest.mark.parametrize("folder", ["val", "valid", "validation"])
    def test_validation_has_synonyms(self, flowers, folder):
        (flowers / "test").rename(flowers / folder)
        for split in ("val", "validation", "valid"):
            assert data.load(f"folder:{flowers}", split).num_examples == 4

    def test_any_nesting_format_and_mode(self, tmp_path):
        """Formats, modes and sizes mixed, upper-case names; hidden files are left out."""
        image = picture(0, 30, 20)
        files = {
            "x.JPG": encoded(image, "JPEG"),
            "one/two/three/y.webp": encoded(image, "WEBP"),
            "one/z.Bmp": encoded(image[:20], "BMP"),
            "grey.jpeg": encoded(image[..., 0], "JPEG"),
            "cmyk.jpg": encoded(Image.fromarray(image).convert("CMYK"), "JPEG"),
            "moving.gif": encoded(
                image, "GIF", save_all=True, append_images=[Image.new("RGB", (20, 30))]
            ),
            ".hidden.png": encoded(image),
            ".cache/a.png": encoded(image),
            "notes.txt": b"not an image",
        }
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        source = data.load(f"folder:{tmp_path}")
        images, labels, ids = source.arrays()
        assert set(ids) == set(files) - {".hidden.png", ".cache/a.png", "notes.txt"}
        assert images.shape == (6, 224, 224, 3)
        assert labels is None and source.class_names is None and not source.labelled
        assert "label" not in source.batches(2).element_spec

    def test_one_folder_is_no_class(self, tmp_path):
        """A label that all images have would make every accuracy 100 %."""
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.png").write_bytes(encoded(picture(0)))
        assert not data.load(f"folder:{tmp_path}").labelled

    def test_links_are_followed_but_not_round_and_round(self, flowers, tmp_path):
        linked = tmp_path / "linked"
        linked.mkdir()
        (linked / "a").symlink_to(flowers / "train" / "a")
        (linked / "b").symlink_to(flowers / "train" / "b")
        (flowers / "train" / "b" / "loop").symlink_to(flowers / "train" / "b")
        source = data.load(f"folder:{linked}", "all")
        assert (source.num_examples, source.class_names) == (8, ["a", "b"])

    def test_whole_folder_without_splits(self, flowers):
        root = f"folder:{flowers / 'train'}"
        same(data.load(root, "all"), data.load(root, "train"))
        with pytest.raises(ValueError, match=r"all\[90%:\]"):
            data.load(root, "test")

    @pytest.mark.parametrize(
        "split, message",
        [("validation", "train, test"), ("all", "train, test"), ("tset", "train, test")],
    )
    def test_missing_split_names_those_there(self, flowers, split, message):
        with pytest.raises(ValueError, match=message):
            data.load(f"folder:{flowers}", split)

    def test_missing_or_empty_folder_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="existing folder"):
            data.load(f"folder:{tmp_path / 'nowhere'}")
        with pytest.raises(ValueError, match="at least one image"):
            data.load(f"folder:{tmp_path}")
        with pytest.raises(ValueError, match="path after the colon"):
            data.load("folder:")


class TestFoldersOfUsers:
    """Folders as people have them: other suffixes and cases, rubbish, names in any encoding."""

    @staticmethod
    def make(root, *names):
        for i, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            suffix = path.suffix.lower()
            kind = {".tif": "TIFF", ".tiff": "TIFF", ".jfif": "JPEG", ".png": "PNG"}.get(suffix)
            path.write_bytes(encoded(picture(i), kind) if kind else b"something else")
        return f"folder:{root}"

    def test_tiff_and_jfif_are_images(self, tmp_path):
        source = data.load(self.make(tmp_path, "a.tif", "b.TIFF", "c.jfif"))
        images, _, ids = source.arrays()
        assert ids.tolist() == ["a.tif", "b.TIFF", "c.jfif"]
        np.testing.assert_array_equal(images[:2], [picture(0), picture(1)])

    @pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
    def test_other_files_are_counted_by_suffix(self, tmp_path, cache_bytes):
        names = ["a.png", "b/c.HEIC", "b/d.heic", "e.txt", "README", "Thumbs.db", ".DS_Store"]
        name = self.make(tmp_path, *names)
        source = data.load(name, "train[:100%]", cache_bytes=cache_bytes)
        assert source.skipped_suffixes == {"": 1, ".heic": 2, ".txt": 1}
        assert data.load("shapes", "test[:3]").skipped_suffixes == {}

    def test_only_folders_with_an_image_are_classes(self, tmp_path):
        names = ["cat/deep/er/1.png", "dog/1.png", "notes/a.txt", "empty/deep/b.csv"]
        name = self.make(tmp_path, *names, "__MACOSX/cat/1.png", "@eaDir/1.png", ".git/1.png")
        source = data.load(name)
        assert source.class_names == ["cat", "dog"] and source.num_examples == 2
        assert source.arrays()[1].tolist() == [0, 1]
        assert source.description.endswith("split train: 2 classes")

    def test_split_names_ignore_case(self, tmp_path):
        name = self.make(tmp_path, "Train/a/1.png", "Train/b/2.png", "TEST/a/3.png", "Val/b/4.png")
        for split, num_examples in [("train", 2), ("Test", 1), ("VALIDATION", 1), ("val[:1]", 1)]:
            source = data.load(name, split)
            assert source.num_examples == num_examples
            assert source.class_names == ["a", "b"]
        source = data.load(name, "train")
        assert source.description.endswith(
            "split train: folder 'Train'; other splits: validation, test; 2 classes"
        )

    @pytest.mark.parametrize("folder", ["unlabeled", "Unlabelled"])
    def test_unlabelled_is_a_split(self, tmp_path, folder):
        names = ["train/a/1.png", "train/b/2.png", f"{folder}/x/1.png", f"{folder}/y/2.png"]
        name = self.make(tmp_path, *names, f"{folder}/z/3.png")
        for split in ("unlabeled", "unlabelled"):
            source = data.load(name, split)
            assert source.num_examples == 3 and not source.labelled
            assert source.description.endswith("no labels: the split has none")
        assert data.load(name).class_names == ["a", "b"]

    def test_unlabelled_alone_is_the_whole(self, tmp_path):
        source = data.load(self.make(tmp_path, "unlabeled/1.png", "unlabeled/2.png"))
        assert source.num_examples == 2 and not source.labelled

    @pytest.mark.parametrize(
        ("names", "reason"),
        [
            (["1.png", "2.png"], "no labels: no class folders"),
            (["photos/1.png"], "no labels: only one class folder, 'photos'"),
            (
                ["a/1.png", "b/2.png", "3.png"],
                "no labels: 1 of 3 images are outside class folders, such as '3.png'",
            ),
        ],
    )
    def test_the_description_tells_why_there_are_no_labels(self, tmp_path, names, reason):
        assert reason in data.load(self.make(tmp_path, *names)).description

    @pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
    def test_names_need_not_be_utf8(self, tmp_path, cache_bytes):
        """Files and classes are read by their real names; ids and class names are text."""
        root = os.fsencode(tmp_path)
        for name in (b"caf\xe9", "café".encode()):
            os.mkdir(os.path.join(root, name))
            for i in range(2):
                with open(os.path.join(root, name, b"\xff%d.png" % i), "wb") as file:
                    file.write(encoded(picture(i)) if name.isascii() or i else b"damaged")
        options = dict(max_corrupt_share=0.5, cache_bytes=cache_bytes)
        source = data.load(f"folder:{tmp_path}", **options)
        images, labels, ids = source.arrays()
        assert ids.tolist() == ["café/\\xff1.png", "caf\\xe9/\\xff1.png"]
        assert source.class_names == ["café", "caf\\xe9"] and labels.tolist() == [0, 1]
        np.testing.assert_array_equal(images, [picture(1)] * 2)
        assert [name for name, _ in source.corrupt] == ["café/\\xff0.png", "caf\\xe9/\\xff0.png"]
        "\n".join([*ids, *source.class_names, source.description]).encode()


class TestNpz:
    def load(self, tmp_path, split="train", **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return data.load(f"npz:{tmp_path / 'a.npz'}", split)

    def test_train_and_test(self, tmp_path):
        x = np.stack([picture(i) for i in range(5)])
        arrays = dict(x_train=x[:3], y_train=np.array([[0], [1], [2]]), x_test=x[3:])
        images, labels, ids = self.load(tmp_path, **arrays).arrays()
        np.testing.assert_array_equal(images, x[:3])
        assert (labels.tolist(), labels.dtype) == ([0, 1, 2], np.int64)
        assert ids.tolist() == ["train/00000", "train/00001", "train/00002"]
        images, labels, ids = self.load(tmp_path, "test", **arrays).arrays()
        np.testing.assert_array_equal(images, x[3:])
        assert labels is None and ids[0] == "test/00000"
        with pytest.raises(ValueError, match=r"has x_train, y_train, x_test; .* needs x_val"):
            self.load(tmp_path, "validation", **arrays)

    @pytest.mark.parametrize("key", ["x_unlabeled", "x_unlabelled"])
    def test_a_split_without_labels(self, tmp_path, key):
        """As STL-10 has it: it is trained on, and the others are for evaluation."""
        x = np.stack([picture(i) for i in range(5)])
        arrays = {"x_train": x[:2], "y_train": np.array([0, 1]), key: x[2:]}
        source = self.load(tmp_path, "unlabeled", **arrays)
        assert source.num_examples == 3 and not source.labelled
        assert self.load(tmp_path, "train", **arrays).labels().tolist() == [0, 1]

    @pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("image", "label")])
    def test_one_split(self, tmp_path, keys):
        arrays = dict(zip(keys, [np.zeros([3, 4, 4, 3], np.uint8), np.arange(3)]))
        assert self.load(tmp_path, "all", **arrays).labelled
        assert self.load(tmp_path, "train[:2]", **arrays).num_examples == 2
        with pytest.raises(ValueError, match="got 'test', which needs x_test"):
            self.load(tmp_path, "test", **arrays)

    @pytest.mark.parametrize("shape", [(2, 6, 6), (2, 6, 6, 1)])
    def test_grey_gets_three_channels(self, tmp_path, shape):
        grey = np.arange(72, dtype=np.uint8).reshape(shape)
        images = self.load(tmp_path, x=grey).arrays()[0]
        np.testing.assert_array_equal(images, np.stack([grey.reshape(2, 6, 6)] * 3, -1))

    def test_float_in_the_unit_interval_becomes_uint8(self, tmp_path):
        x = np.linspace(0, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
        np.testing.assert_array_equal(
            self.load(tmp_path, x=x).arrays()[0], np.rint(x * 255).astype(np.uint8)
        )

    @pytest.mark.parametrize(
        "x, message",
        [
            (
                np.full([2, 4, 4, 3], 200.0),
                r"float images must lie in \[0, 1\]; got values from 200 to 200",
            ),
            (np.full([2, 4, 4, 3], -0.5), "got values from -0.5 to -0.5"),
            (np.full([2, 4, 4, 3], np.nan), "nan"),
            (np.full([2, 4, 4, 3], 256), "got values from 256 to 256"),
            (np.zeros([2, 3, 4, 4], np.uint8), r"moveaxis"),
            (np.zeros([2, 4], np.uint8), r"\[2, 4\]"),
            (np.zeros([2, 4, 4, 3], complex), "complex"),
            (np.zeros([0, 4, 4, 3], np.uint8), "at least one example"),
        ],
    )
    def test_other_arrays_are_an_error(self, tmp_path, x, message):
        with pytest.raises(ValueError, match=message):
            self.load(tmp_path, x=x)

    @pytest.mark.parametrize("y", [np.arange(3), np.zeros(2), np.zeros([2, 10], int)])
    def test_other_labels_are_an_error(self, tmp_path, y):
        with pytest.raises(ValueError, match="labels must be integers"):
            self.load(tmp_path, x=np.zeros([2, 4, 4, 3], np.uint8), y=y)

    def test_one_hot_labels_are_converted(self, tmp_path):
        images = np.zeros([3, 4, 4, 3], np.uint8)
        for y in (np.eye(4)[[2, 0, 3]], np.array([[2], [0], [3]])):
            assert self.load(tmp_path, x=images, y=y).arrays()[1].tolist() == [2, 0, 3]
        assert not self.load(tmp_path, x=images, y=-np.ones(3, int)).labelled

    def test_pickled_objects_and_other_files_are_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="allow_pickle"):
            self.load(tmp_path, x=np.array([{}, {}]))
        whole = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(whole.replace(b"NUMPY", b"numpi"))
        with pytest.raises(ValueError, match="undamaged"):
            data.load(f"npz:{tmp_path / 'a.npz'}")
        (tmp_path / "a.npz").write_bytes(whole[20:])  # the directory points before the start
        with pytest.raises(ValueError, match="undamaged"):
            data.load(f"npz:{tmp_path / 'a.npz'}")
        with (
            zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
            archive.open("x.npy", "w") as file,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": (2**60,)}
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(ValueError, match="fit into memory"):
            data.load(f"npz:{tmp_path / 'a.npz'}")
        (tmp_path / "b.npz").write_bytes(b"something else")
        with pytest.raises(ValueError, match=r"numpy\.savez"):
            data.load(f"npz:{tmp_path / 'b.npz'}")
        np.save(tmp_path / "c.npy", np.zeros(3))
        with pytest.raises(ValueError, match=r"numpy\.savez"):
            data.load(f"npz:{tmp_path / 'c.npy'}")
        with pytest.raises(ValueError, match="existing file"):
            data.load(f"npz:{tmp_path / 'nowhere.npz'}")


def write_records(path, examples, **options):
    with tf.io.TFRecordWriter(str(path), **options) as writer:
        for features in examples:
            writer.write(record(features))


def record(features):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {key: feature(value) for key, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


class TestTFRecord:
    @pytest.mark.parametrize(
        "image_key, label_key", [("image", "label"), ("image/encoded", "image/class/label")]
    )
    def test_files_in_sorted_order(self, tmp_path, image_key, label_key):
        for part in (1, 0):
            write_records(
                tmp_path / f"p-{part}.tfrecord",
                [{image_key: encoded(picture(10 * part + i)), label_key: i} for i in range(3)],
            )
        source = data.load(f"tfrecord:{tmp_path}/p-*.tfrecord", "all")
        images, labels, ids = source.arrays()
        np.testing.assert_array_equal(images, [picture(i) for i in (0, 1, 2, 10, 11, 12)])
        assert labels.tolist() == [0, 1, 2] * 2
        assert ids[-1] == "p-1.tfrecord__2"

    def test_names_need_not_be_utf8(self, tmp_path):
        """Neither those of files nor ids that an example holds."""
        write_records(tmp_path / "a", [{"image": encoded(picture(0))}])
        os.rename(tmp_path / "a", os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
        assert data.load(f"tfrecord:{tmp_path}/*").arrays()[2].tolist() == ["caf\\xe9__0"]
        write_records(tmp_path / "b", [{"image": encoded(picture(0)), "name": b"\xff"}])
        records = Records([Shard(str(tmp_path / "b"), "b")], Fields(id=("name",)))
        assert records[0].id == "\\xff"

    def test_some_labels_may_be_minus_1(self, tmp_path):
        """As TFDS writes it: the example is there, without a label."""
        found = [{"image": encoded(picture(i)), "label": label} for i, label in enumerate([-1, 4])]
        write_records(tmp_path / "a", found)
        source = data.load(f"tfrecord:{tmp_path}/a")
        assert source.labelled and source.arrays()[1].tolist() == [-1, 4] and not source.corrupt

    def test_labels_may_be_missing(self, tmp_path):
        write_records(tmp_path / "a", [{"image": encoded(picture(0))}])
        assert data.load(f"tfrecord:{tmp_path}/a").arrays()[1] is None

    def test_damaged_examples_are_listed(self, tmp_path):
        good = {"image": encoded(picture(0)), "label": 1}
        bad = [{"label": 1}, {"image": b"no", "label": 1}, {"image": good["image"]}]
        write_records(tmp_path / "a", [good, *bad, good, good])
        whole = (tmp_path / "a").read_bytes()
        (tmp_path / "a").write_bytes(whole[:-20])
        source = data.load(f"tfrecord:{tmp_path}/a", max_corrupt_share=0.8)
        assert source.num_examples == 2
        reasons = dict(source.corrupt)
        assert list(reasons) == [f"a__{i}" for i in (1, 2, 3, 5)]
        assert "no encoded image" in reasons["a__1"]
        assert "identify" in reasons["a__2"]
        assert "no label" in reasons["a__3"]
        assert "ends within" in reasons["a__5"]

    def test_compressed_file_no_match_and_other_splits_are_errors(self, tmp_path):
        write_records(tmp_path / "a.gz", [{"image": b""}], options="GZIP")
        with pytest.raises(ValueError, match="uncompressed"):
            data.load(f"tfrecord:{tmp_path}/a.gz")
        with pytest.raises(ValueError, match="none does"):
            data.load(f"tfrecord:{tmp_path}/*.tfrecord")
        with pytest.raises(ValueError, match="'test'"):
            data.load(f"tfrecord:{tmp_path}/a.gz", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two data sets in TFDS's format: `tiny`, in colour with labels and ids; `grey`, without."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")

    def store(name, features, examples):
        def stream(examples):
            spec = {
                key: tf.TensorSpec([None] if key.startswith("labels") else [], tf.int64)
                for key in features
            }
            for key, shape in (("image", features["image"].shape), ("id", [])):
                if key in features:
                    dtype = tf.uint8 if key == "image" else tf.string
                    spec[key] = tf.TensorSpec(shape, dtype)
            return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=spec)

        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets={split: stream(part) for split, part in examples.items()},
            data_dir=root,
            disable_shuffling=True,
        )

    tiny = [{"image": picture(i), "label": i % 3, "id": f"no{i}"} for i in range(30)]
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
        "id": tfds.features.Text(),
    }
    store("tiny", features, {"train": tiny[:20], "test": tiny[20:]})
    several = [[], [1, 2], [0], [0, 1, 2]]
    store(
        "several",
        {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=["x", "y", "z"])),
            "labels_no_difficult": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)),
        },
        {
            "train": [
                {"image": picture(i), "labels": classes, "labels_no_difficult": classes[-1:]}
                for i, classes in enumerate(several)
            ]
        },
    )
    grey = [{"image": picture(i)[..., :1]} for i in range(4)]
    store("grey", {"image": tfds.features.Image(shape=(8, 8, 1))}, {"train": grey})
    return root


class TestTFDS:
    def test_as_tfds_reads_it(self, prepared):
        import tensorflow_datasets as tfds

        for split in ("train", "test", "train[:25%]+test[5:]", "train[-5:]"):
            expected = list(tfds.as_numpy(tfds.load("tiny", split=split, data_dir=prepared)))
            images, labels, ids = data.load("tiny", split, data_dir=prepared).arrays()
            np.testing.assert_array_equal(images, [example["image"] for example in expected])
            assert labels.tolist() == [example["label"] for example in expected]
            assert ids.tolist() == [example["id"].decode() for example in expected]

    def test_class_names_and_size(self, prepared):
        source = data.load("tiny", "train", data_dir=prepared)
        assert (source.class_names, source.image_size) == (["x", "y", "z"], 8)

    @pytest.mark.parametrize("cache_bytes", [0, 2**20])
    def test_images_of_several_classes(self, prepared, cache_bytes):
        """1 for a class, -1 where it is difficult: in `labels`, not in `labels_no_difficult`."""
        source = data.load("several", "train[1:]", data_dir=prepared, cache_bytes=cache_bytes)
        assert source.multi_label and not source.labelled and source.labels() is None
        assert source.class_names == ["x", "y", "z"]
        assert "3 classes, several per image" in source.description
        assert source.targets().tolist() == [[0, -1, 1], [1, 0, 0], [-1, -1, 1]]
        assert not data.load("tiny", data_dir=prepared).multi_label

    def test_grey_without_labels(self, prepared):
        source = data.load("grey", data_dir=prepared)
        images, labels, ids = source.arrays()
        assert labels is None and not source.labelled
        np.testing.assert_array_equal(images[1], np.repeat(picture(1)[..., :1], 3, -1))
        assert ids[1] == "grey-train.tfrecord-00000-of-00001__1"

    def test_records_that_a_damaged_file_lacks_count_as_corrupt(self, prepared, tmp_path):
        shutil.copytree(prepared, tmp_path / "copy")
        (file,) = (tmp_path / "copy").rglob("tiny-test.tfrecord*")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"of 10 .*max_corrupt_share"):
            data.load("tiny", "test", data_dir=tmp_path / "copy")
        source = data.load("tiny", "test", data_dir=tmp_path / "copy", max_corrupt_share=0.9)
        assert source.num_examples + len(source.corrupt) == 10

    def test_errors_name_the_way_out(self, prepared):
        with pytest.raises(
            ValueError, match="tfds build cifar10 --data_dir=DIR`, then pass that DIR as data_dir"
        ):
            data.load("cifar10", data_dir=prepared)
        with pytest.raises(ValueError, match=r"folder:PATH.*no_such_set"):
            data.load("no_such_set", data_dir=prepared)
        with pytest.raises(ValueError, match="train, test"):
            data.load("tiny", "validation", data_dir=prepared)

    @pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"no": 1}', b"\xff"])
    def test_damaged_descriptions_are_an_error(self, prepared, tmp_path, file, content):
        shutil.copytree(prepared, tmp_path / "copy")
        next((tmp_path / "copy" / "tiny").rglob(file)).write_bytes(content)
        with pytest.raises(errors.ArgumentError, match="prepare"):
            data.load("tiny", data_dir=tmp_path / "copy")


class TestShapes:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(by_name, "SHAPES_SPLITS", {"train": (20, 1), "test": (10, 2)})

    def test_same_images_for_every_run(self):
        same(data.load("shapes"), data.load("shapes"))

    def test_train_and_test_share_no_image(self):
        train, test = (data.load("shapes", split) for split in ("train", "test"))
        assert (train.num_examples, test.num_examples, train.image_size) == (20, 10, 32)
        assert len(train.class_names) == 10
        assert not {i.tobytes() for i in train.arrays()[0]} & {
            i.tobytes() for i in test.arrays()[0]
        }
        with pytest.raises(ValueError, match="validate"):
            data.load("shapes", "validation")

    def test_drawn_at_the_size_asked_for(self):
        assert data.load("shapes", image_size=48).arrays()[0].shape == (20, 48, 48, 3)


class TestBatches:
    @pytest.mark.parametrize("cache_bytes", [0, 2**30])
    def test_every_last_example_in_order(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        batches = list(source.batches(10).as_numpy_iterator())
        assert [len(batch["image"]) for batch in batches] == [10, 10, 3]
        image = np.concatenate([batch["image"] for batch in batches])
        assert image[:, 0, 0, 0].tolist() == list(range(23))
        label = np.concatenate([batch["label"] for batch in batches])
        assert label.tolist() == [i % 5 for i in range(23)] and label.dtype == np.int64
        assert batches[2]["id"].tolist() == [b"train/00020", b"train/00021", b"train/00022"]
        spec = source.batches(10).element_spec
        assert spec["image"] == tf.TensorSpec([None, 4, 4, 3], tf.uint8)

    @pytest.mark.parametrize("cache_bytes", [0, 2**30])
    def test_limit_takes_evenly_spaced_examples(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        for limit, expected in [(4, [0, 5, 11, 17]), (23, range(23)), (99, range(23))]:
            (batch,) = source.batches(50, limit=limit).as_numpy_iterator()
            assert batch["image"][:, 0, 0, 0].tolist() == list(expected)

    def test_cached_equals_streamed(self, flowers, prepared, numbered):
        for name in (f"folder:{flowers}", "tiny", numbered):
            options = dict(data_dir=prepared, image_size=6)
            cached = data.load(name, **options)
            streamed = data.load(name, cache_bytes=0, **options)
            assert (cached.cached, streamed.cached) == (True, False)
            same(cached, streamed)
            streams = [s.epochs(4, seed=3).take(8).as_numpy_iterator() for s in (cached, streamed)]
            np.testing.assert_array_equal(*[list(stream) for stream in streams])

    def test_native_size_is_kept_and_another_is_made(self, flowers):
        assert data.load(f"folder:{flowers}").image_size == 8
        assert data.load(f"folder:{flowers}", image_size=5).arrays()[0].shape == (12, 5, 5, 3)
        (flowers / "train" / "a" / "wide.png").write_bytes(encoded(picture(0, 8, 9)))
        assert data.load(f"folder:{flowers}").image_size == 224

    @pytest.mark.parametrize(
        "options", [{"image_size": 0}, {"max_corrupt_share": 1.5}, {"max_corrupt_share": -0.1}]
    )
    def test_settings_out_of_range_are_errors(self, numbered, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            data.load(numbered, **options)


@pytest.fixture
def photos(tmp_path):
    """PATH with pictures of several sizes and proportions, as PNG and as JPEG."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (height, width) in enumerate([(40, 60), (60, 40), (20, 20), (33, 90), (64, 64)]):
        (folder / f"{i}.png").write_bytes(encoded(smooth(height, width)))
        (folder / f"{i}.jpg").write_bytes(encoded(smooth(8 * height, 8 * width), "JPEG"))
    return f"folder:{folder}"


class TestWholeImages:
    """Photographs of any size and proportions, which views are cropped from."""

    @pytest.mark.parametrize(
        ("shape", "inside"),
        [((40, 60), (20, 30)), ((60, 40), (30, 20)), ((9, 12), (9, 12)), ((400, 2), (30, 1))],
    )
    def test_they_keep_their_proportions(self, shape, inside):
        image = smooth(*shape)
        square, *extent = decode_whole(encoded(image), 30)
        assert square.shape == (30, 30, 3) and tuple(extent) == inside
        expected = Image.fromarray(image).resize(inside[::-1], Image.Resampling.BICUBIC)
        got = square[: inside[0], : inside[1]].astype(int)
        assert np.abs(got - np.asarray(expected)).max() <= (0 if shape == inside else 3)
        assert not square[inside[0] :].any() and not square[:, inside[1] :].any()

    def test_a_large_jpeg_is_decoded_at_the_scale_needed(self, monkeypatch):
        scales = []
        draft = Image.Image.draft
        monkeypatch.setattr(
            "PIL.JpegImagePlugin.JpegImageFile.draft",
            lambda self, mode, size: scales.append((self.size, size)) or draft(self, mode, size),
        )
        photo = encoded(smooth(800, 1200), "JPEG", quality=95)
        square, height, width = decode_whole(photo, 90)
        assert scales == [((1200, 800), (120, 120))]
        assert (height, width) == (60, 90)
        assert np.abs(square[:60].astype(int) - smooth(60, 90)).max() <= 6

    @pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
    def test_training_sees_them_whole_and_evaluation_the_centre(self, photos, cache_bytes):
        source = data.load(photos, image_size=20, cache_bytes=cache_bytes)
        assert source.whole_side == 30
        (batch,) = source.epochs(10, 0, shuffle=False).take(1).as_numpy_iterator()
        assert batch["image"].shape == (10, 30, 30, 3)
        wanted = [(20, 30), (30, 20), (20, 20), (11, 30), (30, 30)]
        assert [tuple(e) for e in batch["extent"][1::2]] == wanted  # the PNGs; 0.jpg comes first
        squares, _, ids = source.arrays()
        assert squares.shape == (10, 20, 20, 3) and ids[1] == "0.png"
        for square, name in zip(squares, ids):
            file = np.asarray(Image.open(f"{photos.partition(':')[2]}/{name}"))
            expected = images.centre_square(file[None], 20)[0]
            np.testing.assert_array_equal(square / np.float32(255), expected)

    def test_cached_equals_streamed(self, photos):
        cached, streamed = (data.load(photos, image_size=20, cache_bytes=n) for n in (2**30, 0))
        same(cached, streamed)
        for one, other in zip(cached.epochs(5, 3).take(4), streamed.epochs(5, 3).take(4)):
            for key in ("image", "extent"):
                np.testing.assert_array_equal(one[key], other[key])

    def test_views_can_be_cropped_from_larger_ones(self, photos):
        source = data.load(photos, image_size=20, source_size=60)
        (batch,) = source.epochs(10, 0, shuffle=False).take(1).as_numpy_iterator()
        assert batch["image"].shape == (10, 60, 60, 3)
        assert batch["extent"].max() > 30
        assert source.arrays()[0].shape == (10, 20, 20, 3)

    @pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
    def test_nothing_is_logged(self, photos, cache_bytes):
        """TensorFlow has remarks about functions that it cannot read; a user must not see them."""
        said = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())
        tf.get_logger().addHandler(handler)
        try:
            source = data.load(photos, image_size=20, cache_bytes=cache_bytes)
            next(iter(source.batches(5)))
            next(iter(source.epochs(5, 0)))
        finally:
            tf.get_logger().removeHandler(handler)
        assert not said

    def test_shapes_are_static(self, photos):
        for cache_bytes in (0, 2**30):
            spec = (
                data.load(photos, image_size=20, cache_bytes=cache_bytes).epochs(5, 0).element_spec
            )
            assert spec["image"] == tf.TensorSpec([5, 30, 30, 3], tf.uint8)
            assert spec["extent"] == tf.TensorSpec([5, 2], tf.int32)


def test_large_squares_may_be_kept_larger_than_the_views(tmp_path):
    """Squares of 40 pixels, where it is asked for; none is ever enlarged."""
    np.savez(tmp_path / "set.npz", x_train=np.zeros([4, 40, 40, 3], np.uint8))
    name = f"npz:{tmp_path}/set.npz"
    assert data.load(name, image_size=20).whole_side is None
    assert data.load(name, image_size=20, source_size=30).whole_side == 30
    assert data.load(name, image_size=20, source_size=60).whole_side == 40
    assert data.load(name, image_size=40, source_size=60).whole_side is None


@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
class TestEpochs:
    @pytest.mark.parametrize(("epoch", "step"), [(0, 3), (2, 0), (1, 1)])
    def test_a_stream_begins_anywhere(self, numbered, cache_bytes, epoch, step):
        source = data.load(numbered, cache_bytes=cache_bytes)
        whole = values(source.epochs(5, seed=1), 14)
        tail = values(source.epochs(5, seed=1, first_epoch=epoch, first_step=step), 5)
        np.testing.assert_array_equal(tail, whole[4 * epoch + step :][:5])

    def test_workers_read_slices_of_every_batch(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        whole = np.array(values(source.epochs(6, seed=1, first_step=1), 5))  # [steps, 6]
        for first, count in [(0, 1), (2, 1), (1, 2)]:
            share = data.ReplicaSlice(first, count, replicas=3)
            stream = source.epochs(6, seed=1, first_step=1, replica_slice=share)
            assert stream.element_spec.shape[0] == 2
            got = np.array(values(stream, 5 * count)).reshape(5, count, 2)
            np.testing.assert_array_equal(got, whole.reshape(5, 3, 2)[:, first : first + count])

    def test_a_slice_that_does_not_exist_is_an_error(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        for share, message in [
            (data.ReplicaSlice(0, 1, 4), "divisible by the 4 replicas; got 6"),
            (data.ReplicaSlice(2, 2, 3), "first . count <= replicas; got ReplicaSlice"),
        ]:
            with pytest.raises(ValueError, match=message):
                source.epochs(6, seed=1, replica_slice=share)

    def test_each_epoch_is_a_permutation_of_its_own(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        got = values(source.epochs(5, seed=1), 8)
        assert source.steps_per_epoch(5) == 4
        epochs = [np.concatenate(got[i : i + 4]).tolist() for i in (0, 4)]
        assert all(len(set(epoch)) == 20 for epoch in epochs)
        assert epochs[0] != epochs[1]
        assert epochs[0] != sorted(epochs[0])

    def test_the_order_depends_on_the_seed(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        first, again, other = (values(source.epochs(23, seed), 1)[0] for seed in (1, 1, 2))
        assert first.tolist() == again.tolist() != other.tolist()
        assert sorted(first) == sorted(other) == list(range(23))

    def test_a_resumed_stream_is_the_tail(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        whole = values(source.epochs(5, seed=1), 16)
        tail = values(source.epochs(5, seed=1, first_epoch=2), 8)
        np.testing.assert_array_equal(whole[8:], tail)

    def test_without_shuffling_the_order_is_the_sources(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        got = np.concatenate(values(source.epochs(10, 0, shuffle=False), 3))
        assert got.tolist() == [*range(20), *range(10)]

    def test_shape_is_static_and_the_stream_endless(self, numbered, cache_bytes):
        stream = data.load(numbered, cache_bytes=cache_bytes).epochs(5, 0)
        assert stream.element_spec == tf.TensorSpec([5, 4, 4, 3], tf.uint8)
        assert stream.cardinality() == tf.data.INFINITE_CARDINALITY

    def test_fewer_examples_than_a_batch_is_an_error(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        with pytest.raises(ValueError, match=r"23 examples.*batch_size is 24.*Lower batch_size"):
            source.epochs(24, 0)
        with pytest.raises(ValueError, match="at least 1"):
            source.steps_per_epoch(0)


@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
class TestLabelsOfEpochs:
    """With labels=True: image i of `numbered` is filled with i, and its label is i % 5."""

    @staticmethod
    def pairs(stream, num_batches):
        batches = list(stream.take(num_batches).as_numpy_iterator())
        return [(batch["image"][:, 0, 0, 0], batch["label"]) for batch in batches]

    def test_labels_belong_to_their_images(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        stream = source.epochs(5, seed=1, labels=True)
        assert stream.element_spec == {
            "image": tf.TensorSpec([5, 4, 4, 3], tf.uint8),
            "label": tf.TensorSpec([5], tf.int64),
        }
        pairs = self.pairs(stream, 8)
        for image, label in pairs:
            np.testing.assert_array_equal(label, image % 5)
        images = [image for image, _ in pairs]
        np.testing.assert_array_equal(images, values(source.epochs(5, seed=1), 8))

    def test_a_resumed_stream_is_the_tail(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        whole = self.pairs(source.epochs(5, seed=1, labels=True), 12)
        start = dict(first_epoch=1, first_step=2)
        tail = self.pairs(source.epochs(5, seed=1, labels=True, **start), 6)
        np.testing.assert_array_equal(whole[6:], tail)

    def test_slices_of_replicas_make_up_the_whole(self, numbered, cache_bytes):
        source = data.load(numbered, cache_bytes=cache_bytes)
        whole = np.array(self.pairs(source.epochs(6, seed=1, labels=True), 5))  # [steps, 2, 6]
        slices = [data.ReplicaSlice(first, 1, 3) for first in range(3)]
        streams = [source.epochs(6, seed=1, replica_slice=each, labels=True) for each in slices]
        parts = [self.pairs(stream, 5) for stream in streams]
        np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)

    def test_whole_images_have_extents_too(self, tmp_path, cache_bytes):
        for height in (20, 30):
            folder = tmp_path / f"{height}"
            folder.mkdir()
            for i in range(3):
                (folder / f"{i}.png").write_bytes(encoded(picture(height + i, height, 40)))
        source = data.load(f"folder:{tmp_path}", image_size=30, cache_bytes=cache_bytes)
        stream = source.epochs(4, seed=0, labels=True)
        assert stream.element_spec["extent"] == tf.TensorSpec([4, 2], tf.int32)
        for batch in stream.take(3).as_numpy_iterator():
            np.testing.assert_array_equal(
                batch["extent"][:, 0], [20 + 10 * i for i in batch["label"]]
            )

    def test_unreadable_examples_are_left_out(self, flowers, cache_bytes):
        (flowers / "train" / "a" / "01.png").write_bytes(b"")
        options = dict(max_corrupt_share=0.2, cache_bytes=cache_bytes)
        source = data.load(f"folder:{flowers}", **options)
        images, labels, _ = source.arrays()
        label_of = {image.tobytes(): label for image, label in zip(images, labels)}
        for batch in source.epochs(4, seed=0, labels=True).take(6).as_numpy_iterator():
            expected = [label_of[image.tobytes()] for image in batch["image"]]
            assert batch["label"].tolist() == expected

    def test_without_labels_is_an_error(self, tmp_path, cache_bytes):
        np.savez(tmp_path / "a.npz", x=np.zeros([4, 4, 4, 3], np.uint8))
        source = data.load(f"npz:{tmp_path / 'a.npz'}", cache_bytes=cache_bytes)
        with pytest.raises(errors.ArgumentError, match="labels=True needs a data set with labels"):
            source.epochs(2, seed=0, labels=True)


def test_iterators_left_open_do_not_hang_the_interpreter(flowers):
    """A stream that is still being filled when a script ends would wait for Python for ever."""
    script = f"""
from simclr_tf import data
sources = [data.load({f"folder:{flowers}"!r}, cache_bytes=size) for size in (0, 2**30)]
iterators = [iter(source.epochs(4, 0)) for source in sources]
print([next(iterator).shape for iterator in iterators])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class TestCorrupt:
    @pytest.fixture
    def damaged(self, flowers):
        """Two of 12 images cannot be read: one is cut off, one is text."""
        cut = flowers / "train" / "a" / "01.png"
        cut.write_bytes(cut.read_bytes()[:80])
        (flowers / "train" / "c" / "00.png").write_text("not found")
        return f"folder:{flowers}"

    def test_skipped_counted_and_listed(self, damaged):
        source = data.load(damaged, max_corrupt_share=0.2)
        assert source.num_examples == 10
        assert [name for name, _ in source.corrupt] == ["train/a/01.png", "train/c/00.png"]
        assert "identify" in source.corrupt[1][1]
        images, labels, ids = source.arrays()
        assert len(images) == len(labels) == len(ids) == 10
        assert labels.tolist() == [0] * 3 + [1] * 4 + [2] * 3
        np.testing.assert_array_equal(images[1], picture(ord("a") * 100 + 2))
        (epoch,) = source.epochs(10, 0).take(1).as_numpy_iterator()
        assert {image.tobytes() for image in epoch} == {image.tobytes() for image in images}

    def test_found_while_streaming(self, damaged):
        """Steps stay constant, no unreadable image gets in, and what is listed is the same."""
        cached = data.load(damaged, max_corrupt_share=0.2)
        source = data.load(damaged, max_corrupt_share=0.2, cache_bytes=0)
        assert (source.num_examples, source.corrupt, source.steps_per_epoch(4)) == (12, [], 3)
        got = np.concatenate(list(source.epochs(4, 0).take(6).as_numpy_iterator()))
        readable = [image.tobytes() for image in cached.arrays()[0]]
        for epoch in (got[:12], got[12:]):
            assert {image.tobytes() for image in epoch} == set(readable)
        assert source.corrupt == cached.corrupt
        same(source, cached)

    def test_too_many_stop_the_load(self, damaged):
        with pytest.raises(ValueError, match=r"2 of 12.*train/a/01.png.*raise max_corrupt_share"):
            data.load(damaged)

    def test_too_many_stop_the_stream(self, damaged):
        source = data.load(damaged, cache_bytes=0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="raise max_corrupt_share"):
            list(source.batches(4))
        with pytest.raises(ValueError, match="raise max_corrupt_share"):
            source.check_corrupt()

    @pytest.mark.parametrize("cache_bytes", [0, 2**30])
    def test_nothing_readable_stops_whatever_is_allowed(self, tmp_path, cache_bytes):
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="1 of 1"):
            source = data.load(f"folder:{tmp_path}", max_corrupt_share=1.0, cache_bytes=cache_bytes)
            next(iter(source.epochs(1, 0)))
