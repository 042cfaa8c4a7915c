"""`simclr-tf pretrain --init_from`: a new run that starts from trained weights."""

import re

import numpy as np
import pytest

from runs import untrained_run
from simclr_tf import ProjectionHead, cli, export
from simclr_tf.commands import build, pretrain
from simclr_tf.data import shapes
from test_pretrained import Official

pytestmark = pytest.mark.end_to_end

IMAGES = shapes.draw(50, 0, size=12)[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_runs):
    """A directory with set.npz; "run", a run of pretrain; and "exports/1", its encoder."""
    place = tmp_path_factory.mktemp("place")
    pixels = np.random.default_rng(0).integers(0, 256, [40, 12, 12, 3], np.uint8)
    np.savez(place / "set.npz", x_train=pixels)
    untrained_run(place / "run", place / "set.npz", 12)
    encoder = loaded(place).encoder
    for weight in encoder.weights:  # also the moving statistics, which would be 0 and 1
        weight.assign(np.random.default_rng(1).uniform(0.5, 1.0, weight.shape))
    export.export_encoder(encoder, place / "exports" / "1")
    return place


def loaded(place):
    """What `evaluate --run_dir` would load of the run."""
    trained = cli.options_of_run(place / "run")
    return build.load_encoder(cli.Options(image_size=None), trained, projection_head=True)


def command(place, run_dir, *flags):
    """Words of a run as small as "run", of a single step."""
    encoder = "--resnet_depth=18 --width=0.0625".split()
    words = ["pretrain", f"--dataset=npz:{place}/set.npz", f"--run_dir={run_dir}", *encoder]
    return [*words, "--precision=float32", "--train_steps=1", "--batch_size=20", *flags]


class _StartedError(Exception):
    """Training is about to begin."""


@pytest.fixture
def start(place, monkeypatch):
    """A function of flags that returns the model of a run as its training begins."""
    models = []

    def stop(options, directory, strategy, model, *_):
        models.append(model)
        raise _StartedError

    monkeypatch.setattr(pretrain, "_train", stop)

    def run(tmp_path, *flags):
        with pytest.raises(_StartedError):
            cli.main(command(place, tmp_path / "new", *flags))
        return models[-1]

    return run


def same(ours, theirs):
    """Whether two models give the same numbers for the same images."""
    images = IMAGES / np.float32(255)
    return np.allclose(ours(images), theirs(images), rtol=1e-4)


def test_a_run_gives_encoder_and_head(place, start, tmp_path, capsys):
    """Bit for bit, and a line says so."""
    model = start(tmp_path, f"--init_from={place}/run")
    source = loaded(place)
    for ours, theirs in (
        (model.encoder, source.encoder),
        (model.projection_head, source.projection_head),
    ):
        for a, b in zip(ours.get_weights(), theirs.get_weights()):
            np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == 0
    said = capsys.readouterr().err
    assert f"the weights of the encoder and projection head are those of {place}/run." in said
    other = start(tmp_path, "--seed=5")
    assert not same(other.encoder, source.encoder)


def test_an_export_gives_the_encoder(place, start, tmp_path, capsys):
    """Weights in the order of another class of model, in a strategy; the head is new."""
    model = start(tmp_path, f"--init_from={place}/exports", "--strategy=mirrored")
    assert same(model.encoder, export.load_exported(place / "exports"))
    said = capsys.readouterr().err
    assert f"of the encoder are those of {place}/exports; the projection head starts at" in said


def test_official_weights_give_what_fits(place, start, tmp_path, capsys):
    """The encoder, and the head if it has the shape that the flags name."""
    source = loaded(place)
    head = ProjectionHead(output_dim=4, layers=3)
    head.build((None, 32))
    official = Official(source.encoder, head).save_checkpoint(tmp_path / "official")
    head_flags = ["--projection_layers=3", "--projection_dim=4"]
    model = start(tmp_path, f"--init_from={official}", *head_flags)
    assert same(model.encoder, source.encoder)
    assert "encoder and projection head are those" in capsys.readouterr().err
    model = start(tmp_path, f"--init_from={official}")
    assert same(model.encoder, source.encoder)
    assert "the projection head starts at random weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--init_from={place}/run --width=0.125", r"like the new one, .* --width=0.0625"),
        ("--init_from={place}/run --feature_dim=24", r"like the new one, .* Pass its flags: "),
        ("--init_from={place}/exports --resnet_depth=50", r"Pass the flags of that encoder"),
        ("--init_from={place}/nothing", r"--init_from must be .*nothing"),
        ("--init_from={place}/empty", r"--init_from must "),
    ],
)
def test_a_mistake_is_one_line(place, tmp_path, flags, message, capsys):
    """It says what fits, and no run is begun."""
    (place / "empty").mkdir(exist_ok=True)
    flags = flags.format(place=place).split()
    assert cli.main(command(place, tmp_path / "new", *flags)) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not (tmp_path / "new" / "flags.cfg").exists()


def test_a_resumed_run_does_not_need_the_source(place, no_export, tmp_path, capsys):
    """Its checkpoints have all; another --init_from is refused."""
    flags = [f"--init_from={place}/exports", "--train_steps=2"]
    assert cli.main(command(place, tmp_path / "new", *flags)) == 0
    (place / "exports").rename(place / "gone")
    try:
        assert cli.main(command(place, tmp_path / "new", *flags)) == 0
    finally:
        (place / "gone").rename(place / "exports")
    assert cli.main(command(place, tmp_path / "new", "--train_steps=2")) == 2
    assert "init_from=" in capsys.readouterr().err
