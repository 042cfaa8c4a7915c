"""The examples run: the functions that each `main` calls, at a small size."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from simclr_tf import cli, data, embeddings, evaluate

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.usefixtures("quick_runs", "no_export"),
]
EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def load(name):
    """Imports examples/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources():
    """Training and test images: 64 and 32 drawn shapes."""
    return data.load("shapes", "train[:64]"), data.load("shapes", "test[:32]")


def test_cifar10_trains_and_scores(sources):
    """One epoch of two steps, then both protocols on every test image."""
    example = load("cifar10")
    encoder = example.train(sources[0], epochs=1, batch_size=32, feature_dim=16).encoder
    for each in (encoder, example.whiten(encoder, sources[0])):
        assert all(0.0 <= accuracy <= 1.0 for accuracy in example.score(each, *sources))


def test_own_images_finds_similar_images(sources):
    """The nearest neighbours of an image, most similar first, without the image itself."""
    example = load("own_images")
    model = example.train(sources[0], epochs=1, batch_size=32, width=1 / 16)
    features = evaluate.extract_features(model.encoder, sources[1].batches(16))
    found = example.most_similar(features, 3, count=4)
    assert len(found) == 4 and features.ids[3] not in [name for name, _ in found]
    assert sorted((s for _, s in found), reverse=True) == [s for _, s in found]
    assert np.isfinite([s for _, s in found]).all()


@pytest.mark.parametrize("start", ["simclr", "random"])
def test_keep_color_compares_two_methods(start, monkeypatch):
    """One epoch of two steps each, then linear classifiers of every attribute."""
    example = load("keep_color")
    small = ["--epochs=1", "--width=0.0625", "--batch_size=32", f"--start={start}"]
    train, kernels = example.train, []

    def watched(model, *arguments):
        kernels.append(model.encoder.get_weights()[0])
        kernels.append(train(model, *arguments).encoder.get_weights()[0])

    monkeypatch.setattr(example, "train", watched)
    rows = example.compare(
        example.parse([*small, "--train_split=train[:64]", "--test_split=test[:32]"])
    )
    _, after_simclr, before_looc, _ = kernels
    assert np.array_equal(after_simclr, before_looc) == (start == "simclr")
    assert list(rows) == ["random", "simclr, h", "looc, h", "looc, spaces"]
    for row in rows.values():
        assert sorted(row) == ["class", "color", "orientation"]
        assert all(0.0 <= accuracy <= 1.0 for accuracy in row.values())


def test_rotated_images_are_those_of_the_data_set_by_two_labels(tmp_path):
    """Turned back, each image is the one of the data set."""
    original = data.load("shapes", "test")
    batches = original.batches(1000)
    images = np.concatenate([batch["image"].numpy() for batch in batches])
    example = load("rotated_images")
    example.write(example.parse(["--dataset=shapes", f"--output={tmp_path}"]))
    with np.load(tmp_path / "by_class.npz") as one, np.load(tmp_path / "by_turns.npz") as other:
        np.testing.assert_array_equal(one["y_test"], original.labels())
        assert set(other["y_test"]) == {0, 1, 2, 3}
        for each in (one["x_test"], other["x_test"]):
            back = [np.rot90(image, -count) for image, count in zip(each, other["y_test"])]
            np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize("kind", ["npz", "parquet", "tfrecord"])
def test_neighbours_are_the_most_similar_of_a_file(kind, tmp_path):
    """Equal to a full sort of all cosines, without the query, though some embeddings are equal."""
    example = load("neighbours")
    rng = np.random.default_rng(0)
    h, labels = rng.normal(size=[40, 6]).astype(np.float32), np.arange(40) % 3
    h[[5, 6, 7]] = h[4]
    with embeddings.Writer(tmp_path / f"h.{kind}") as file:
        file.write(evaluate.Features(h, labels, np.array([f"é/{i}.png" for i in range(40)])))
    features = embeddings.read(tmp_path / f"h.{kind}")
    index = example.build_index(features.h)
    found, similarity = example.nearest_neighbours(index, features.h, range(40), 2)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9 * np.eye(40)
    np.testing.assert_allclose(similarity, -np.sort(-cosines)[:, :2], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosines, found, 1), similarity, atol=1e-5)
    same = np.mean([labels[i] == labels[j] for i in range(40) for j in found[i]])
    assert example.precision_at_k(index, h, labels, 2) == pytest.approx(same)
    assert example.query_rows(features, ["é/7.png"], 5).tolist() == [7]
    with pytest.raises(ValueError, match="must be an id of the file, such as 'é/0\\.png'; got 'x'"):
        example.query_rows(features, ["x"], 5)


def test_neighbours_of_a_folder_and_of_an_npz_are_drawn(tmp_path):
    """The picture has a row for each query."""
    example = load("neighbours")
    images = np.random.default_rng(0).integers(0, 256, [32, 8, 8, 3], np.uint8)
    labels = np.arange(32) % 3
    np.savez(tmp_path / "set.npz", x_test=images, y_test=labels)
    (tmp_path / "test").mkdir()
    names = [f"test/{row:05d}" for row in range(len(images))]
    for name, image in zip(names, images):
        Image.fromarray(image).save(tmp_path / name, "PNG")
    features = evaluate.Features(images.reshape(32, -1) / 255.0, labels, np.array(names))
    rows = example.query_rows(features, [], 3)
    index = example.build_index(features.h)
    found, _ = example.nearest_neighbours(index, features.h, rows, 4)
    for path in (tmp_path, tmp_path / "set.npz"):
        image_of = example.image_reader(path, "test")
        np.testing.assert_array_equal(np.asarray(image_of(names[9])), images[9])
        example.draw(tmp_path / "n.png", features, rows, found, image_of)
        width, height = Image.open(tmp_path / "n.png").size
        assert width > height > 300


def test_the_demo_ends_with_the_table(tmp_path, capsys):
    """Pretrains, evaluates with the baselines, and names the files of the run."""
    small = ["--train_steps=1", "--warmup_epochs=0", "--width=0.0625", "--batch_size=32"]
    small += ["--train_split=train[:200]", "--test_split=test[:50]"]
    assert load("demo").run(tmp_path / "run", *small) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(json.loads(line) for line in lines if line.startswith("{"))
    assert {"raw_pixels", "random_encoder", "knn", "linear"} <= set(row)
    assert lines[-2].startswith("Finished in ") and (tmp_path / "run" / "views.png").exists()


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("recipes/*.cfg")), ids=lambda p: p.stem)
def test_recipes_parse(recipe):
    """Every flag of a recipe exists and is in range; preview and studies take it too."""
    for words in (["pretrain", "--run_dir=x"], ["preview"], ["study", "strength", "--out=x"]):
        command, values = cli.parse([*words, f"--flagfile={recipe}"])
        assert command == words[0] and cli.options_of(values).epochs > 0
