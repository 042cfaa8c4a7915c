"""Class-balanced subsets: balance, nesting and determinism, for every reader of examples."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclr_tf import data, errors
from simclr_tf.data import subsets
from simclr_tf.data.arrays import Arrays
from simclr_tf.data.examples import Subset
from simclr_tf.data.folder import Folder
from simclr_tf.data.tfrecord import read_tfrecord

SIZES = {0: 40, 1: 7, 2: 100, 3: 1}  # examples by class


def of_labels(labels, **options):
    images = np.zeros([len(labels), 2, 2, 3], np.uint8)
    return Arrays(images, np.asarray(labels), **options)


@pytest.fixture
def examples():
    """148 examples of four classes of different sizes, mixed."""
    labels = np.repeat(list(SIZES), list(SIZES.values()))
    return of_labels(np.random.default_rng(0).permutation(labels))


def ids(examples):
    return [examples.id(i) for i in range(len(examples))]


def counts(examples):
    labels, sizes = np.unique(examples.labels(), return_counts=True)
    return dict(zip(labels.tolist(), sizes.tolist()))


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.001, {0: 1, 1: 1, 2: 1, 3: 1}),
        (0.1, {0: 4, 1: 1, 2: 10, 3: 1}),
        (0.5, {0: 20, 1: 4, 2: 50, 3: 1}),
        (1, SIZES),
    ],
)
def test_a_fraction_is_taken_of_each_class(examples, fraction, expected):
    """Rounded to the closest number of examples, at least one."""
    assert counts(subsets.balanced(examples, fraction)) == expected


def test_a_count_is_taken_of_each_class():
    """The same number of examples of each class, however large the class."""
    examples = of_labels([0] * 5 + [1] * 50 + [7] * 9)
    assert counts(subsets.balanced(examples, count=5)) == {0: 5, 1: 5, 7: 5}


def test_smaller_subsets_are_contained_in_larger_ones(examples):
    """By fraction, and by count, with the same seed."""
    for name, values in [("fraction", (0.01, 0.1, 0.3, 0.31, 1.0)), ("count", (1, 2, 7))]:
        large_enough = of_labels(examples.labels()[examples.labels() != 3])
        chosen = [set(ids(subsets.balanced(large_enough, **{name: v}, seed=3))) for v in values]
        assert all(one <= other for one, other in zip(chosen, chosen[1:]))
        assert len(chosen[0]) < len(chosen[-1])


def test_the_choice_depends_on_labels_and_seed_alone(examples):
    """The same seed chooses the same examples, another seed others; the order is the source's."""
    first, again, other = (ids(subsets.balanced(examples, 0.2, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first)
    renamed = Arrays(np.ones([148, 3, 3, 3], np.uint8), examples.labels(), prefix="x")
    assert [i.split("/")[1] for i in ids(subsets.balanced(renamed, 0.2, seed=1))] == [
        i.split("/")[1] for i in first
    ]
    # Printed by `ids(...)` of this very call, NumPy 1.26.
    assert ids(subsets.balanced(of_labels([0, 1] * 10), count=2)) == [
        f"train/{i:05d}" for i in (1, 8, 18, 19)
    ]


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full([4, 4, 3], value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def record(image, label):
    features = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))}
    if label is not None:
        features["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


LABELS = [0, 1, 1, 0, 0, 1, 1, 0]


def as_arrays(path):
    return of_labels(LABELS)


def as_folder(path):
    """The images cannot be decoded: labels are those of the folders."""
    for i, label in enumerate(LABELS):
        (path / str(label)).mkdir(exist_ok=True)
        (path / str(label) / f"{i}.png").write_bytes(b"not an image")
    return Folder(path, "train")


def as_records(path):
    """The images cannot be decoded: labels are those of the records."""
    with tf.io.TFRecordWriter(str(path / "a")) as writer:
        for label in LABELS:
            writer.write(record(b"not an image", label))
    return read_tfrecord(str(path / "a"), "train")


@pytest.mark.parametrize("reader", [as_arrays, as_folder, as_records])
def test_every_reader_knows_its_labels_without_decoding(reader, tmp_path):
    """`labels` of a reader, of a subset of it, and a subset of that."""
    examples = reader(tmp_path)
    labels = examples.labels()
    assert labels.dtype == np.int64 and sorted(labels) == sorted(LABELS)
    np.testing.assert_array_equal(examples.labels(np.array([5, 2])), labels[[5, 2]])
    part = Subset(examples, np.array([6, 1, 0, 7]))
    np.testing.assert_array_equal(part.labels(), labels[[6, 1, 0, 7]])
    np.testing.assert_array_equal(part.labels(np.array([3, 0])), labels[[7, 6]])
    assert counts(subsets.balanced(examples, count=2)) == {0: 2, 1: 2}


def test_records_without_a_readable_label_are_never_chosen(tmp_path):
    """A record that is no example, and one without a label where others have one."""
    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        for content in (record(b"", 0), record(b"", None), b"\xff\xff", record(b"", 1)):
            writer.write(content)
    examples = read_tfrecord(str(tmp_path / "a"), "all")
    assert examples.labels().tolist() == [0, -1, -1, 1]
    assert ids(subsets.balanced(examples, fraction=1.0)) == ["a__0", "a__3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of fraction and count must be passed; got fraction=None and count=None"),
        ({"fraction": 0.5, "count": 1}, "exactly one .* got fraction=0.5 and count=1"),
        ({"fraction": 0}, r"fraction must be in \(0, 1\]; got 0"),
        ({"fraction": 1.01}, r"fraction must be in \(0, 1\]; got 1.01"),
        ({"fraction": float("nan")}, r"fraction must be in \(0, 1\]; got nan"),
        ({"count": 0}, "count must be a whole number of at least 1; got 0"),
        ({"count": 1.5}, "count must be a whole number of at least 1; got 1.5"),
        ({"count": 2}, "count must be at most .* got 2, and class 3 has 1. Lower count"),
        ({"count": 1, "seed": -1}, r"seed must be a whole number in \[0, .* got -1"),
    ],
)
def test_a_value_out_of_range_is_named(examples, arguments, message):
    """The error says which argument, its rule and the value received."""
    with pytest.raises(errors.ArgumentError, match=message):
        subsets.balanced(examples, **arguments)


def test_a_class_that_is_too_small_is_called_by_its_name():
    """Where class names are known."""
    examples = of_labels([0, 0, 1], class_names=["cat", "dog"])
    with pytest.raises(errors.ArgumentError, match="class 'dog' has 1"):
        subsets.balanced(examples, count=2)


def test_examples_without_labels_are_an_error():
    """The message names the argument that needs labels."""
    examples = Arrays(np.zeros([4, 2, 2, 3], np.uint8))
    with pytest.raises(errors.ArgumentError, match="fraction needs a data set with labels"):
        subsets.balanced(examples, 0.5)


class TestLoad:
    @pytest.fixture
    def name(self, tmp_path):
        images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], [40, 4, 4, 3])
        np.savez(tmp_path / "a.npz", x=images, y=np.arange(40) % 4)
        return f"npz:{tmp_path / 'a.npz'}"

    @pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
    def test_a_source_of_few_labels(self, name, cache_bytes):
        """Of the split's own slice; the images belong to their labels."""
        source = data.load(name, "train[:50%]", labels_per_class=2, cache_bytes=cache_bytes)
        images, labels, chosen = source.arrays()
        assert source.num_examples == 8
        assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3]
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 4, labels)
        assert set(chosen) <= set(data.load(name, "train[:50%]").arrays()[2])

    def test_a_fraction_and_a_seed(self, name):
        sources = [data.load(name, label_fraction=0.2, label_seed=seed) for seed in (0, 0, 1)]
        first, again, other = (source.arrays()[2].tolist() for source in sources)
        assert len(first) == 8 and first == again != other

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"label_fraction": 2}, "label_fraction must be in"),
            ({"labels_per_class": 11}, "Lower labels_per_class"),
            ({"labels_per_class": 1, "label_seed": -1}, "label_seed must be"),
            (
                {"labels_per_class": 1, "label_fraction": 0.1},
                "exactly one of label_fraction and labels_per_class",
            ),
        ],
    )
    def test_errors_name_the_arguments_of_load(self, name, arguments, message):
        with pytest.raises(errors.ArgumentError, match=message):
            data.load(name, **arguments)
