"""Whitening of h: against scikit-learn and NumPy, in Keras's files, exports, embed, evaluate."""

import json

import numpy as np
import pytest
import tensorflow as tf
from sklearn.decomposition import PCA
from tensorflow import keras

from runs import untrained_run
from simclr_tf import ResNet, cli, embeddings, encoders, errors, evaluate, export
from simclr_tf.commands import build, pretrain
from simclr_tf.commands.layers import Layers
from simclr_tf.encoders.whitening import without_whitening
from simclr_tf.export import tflite

RNG = np.random.default_rng(5)
SIZE = 12
PIXELS = RNG.integers(0, 256, [40, SIZE, SIZE, 3], np.uint8)
H = (RNG.normal(size=[300, 6]) @ RNG.normal(size=[6, 6]) + 5).astype(np.float32)


def small(size=SIZE):
    """A functional encoder to 5 numbers."""
    layers = keras.layers
    stack = [layers.Conv2D(5, 3), layers.BatchNormalization(), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((size, size, 3)), *stack])


def by_svd(h, floor):
    """ZCA from the singular values of the centred rows, in float64: a function of rows."""
    h = h.astype(np.float64)
    _, singular, rows = np.linalg.svd(h - h.mean(0), full_matrices=False)
    variances = singular**2 / len(h)
    scale = np.maximum(variances, floor * variances.mean()) ** -0.5
    return lambda x: ((x - h.mean(0)) @ rows.T * scale) @ rows


class Given(keras.Model):
    """An "encoder" that returns the first pixels of an image."""

    def call(self, images, training=None):
        return tf.reshape(images, [tf.shape(images)[0], -1])[:, :6]


# -- the map ----------------------------------------------------------------------------------


def test_it_is_scikit_learns_pca_whitening_turned_back():
    """PCA to variance 1, then back along the same directions; scikit-learn divides by n - 1."""
    pca = PCA(whiten=True, svd_solver="full").fit(H)
    expected = pca.transform(H) @ pca.components_ * np.sqrt(len(H) / (len(H) - 1))
    whitening = encoders.zca(H.mean(0), np.cov(H.T, bias=True), floor=1e-9)
    np.testing.assert_allclose(whitening.apply(H), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(whitening.matrix, whitening.matrix.T, atol=1e-5)


@pytest.mark.parametrize("floor", [0.05, 1.0])
def test_small_variances_are_floored_at_a_fraction_of_the_mean(floor):
    """Against singular values; the variance of a floored direction stays below 1."""
    mean, covariance = H.mean(0), np.cov(H.T, bias=True)
    variances = np.linalg.eigvalsh(covariance)
    assert (variances < floor * variances.mean()).any()
    white = encoders.zca(mean, covariance, floor).apply(H)
    np.testing.assert_allclose(white, by_svd(H, floor)(H), rtol=1e-3, atol=1e-3)
    expected = np.minimum(variances / (floor * variances.mean()), 1)
    np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(white.T, bias=True)), expected, rtol=1e-3)


def test_features_that_are_all_equal_stay_finite():
    """All zero, in place of NaN."""
    h = np.full([9, 4], 3.0, np.float32)
    whitening = encoders.zca(h.mean(0), np.cov(h.T))
    np.testing.assert_array_equal(whitening.apply(h), np.zeros([9, 4]))


def test_moments_of_a_stream_are_those_of_all_rows():
    """Batches of unequal size; far from 0, where a sum of squares would lose the deviations."""
    images = np.zeros([70, 2, 2, 3], np.float32)
    images.reshape(70, -1)[:] = 0.5 + 1e-4 * RNG.normal(size=[70, 12])
    rows = images.reshape(70, -1)[:, :6]
    got = evaluate.fit_whitening(Given(), [images[:1], images[1:40], images[40:]], floor=0.2)
    np.testing.assert_allclose(got.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.apply(rows), by_svd(rows, 0.2)(rows), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.zeros(2), np.zeros([3, 3])),
            r"mean must be \[D\] and covariance \[D, D\]; got shapes",
        ),
        ((np.array([np.nan, 0]), np.eye(2)), "mean and covariance must be finite"),
        ((np.zeros(2), np.eye(2), 0), "floor must be a finite number above 0; got 0"),
    ],
)
def test_arguments_of_zca(arguments, message):
    """A line that names the argument."""
    with pytest.raises(errors.ArgumentError, match=message):
        encoders.zca(*arguments)


def test_save_and_load(tmp_path):
    """Equal arrays; another file is an error."""
    whitening = encoders.zca(H.mean(0), np.cov(H.T))
    whitening.save(tmp_path / "whitening.npz")
    again = encoders.Whitening.load(tmp_path / "whitening.npz")
    np.testing.assert_array_equal(again.matrix, whitening.matrix)
    np.testing.assert_array_equal(again.mean, whitening.mean)
    for content in (b"", b"no archive", (tmp_path / "whitening.npz").read_bytes()[:300]):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(errors.ArgumentError, match="path must be a file of Whitening"):
            encoders.Whitening.load(tmp_path / "other.npz")
    with pytest.raises(errors.StorageError, match="cannot be read"):
        encoders.Whitening.load(tmp_path / "none.npz")


# -- the layer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    """With a space-to-depth stem and moving statistics of its images."""
    encoder = ResNet(14, width=1 / 16, stem="space_to_depth", bn_momentum=0.1)
    encoder.build((None, SIZE, SIZE, 3))
    for _ in range(3):
        encoder(PIXELS / np.float32(255), training=True)
    return encoder


@pytest.fixture(scope="module")
def whitening(resnet):
    """Of its h."""
    return evaluate.fit_whitening(resnet, [PIXELS])


@pytest.fixture(scope="module")
def expected(resnet, whitening):
    """Whitened h in NumPy."""
    return whitening.apply(resnet(PIXELS / np.float32(255), training=False))


def assert_near(got, expected, fraction=1e-3):
    np.testing.assert_allclose(got, expected, rtol=0, atol=fraction * np.abs(expected).max())


def test_the_last_layer_of_a_resnet_whitens(resnet, whitening, expected, tmp_path):
    """Stock layers that share the weights; plain Keras loads the file."""
    model = encoders.whitened(resnet, whitening)
    assert_near(model(PIXELS / np.float32(255), training=False), expected)
    assert type(model.layers[-1]) is keras.layers.Dense
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    model.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    assert_near(loaded(PIXELS / np.float32(255), training=False), expected)
    np.testing.assert_allclose(np.cov(expected.T, bias=True).diagonal().max(), 1, atol=0.3)


def test_an_export_and_a_lite_file_whiten(resnet, whitening, expected, tmp_path):
    """The signatures of the folded encoder, its encoder.keras, and TensorFlow Lite."""
    model = encoders.whitened(resnet, whitening)
    path = export.export_encoder(model, tmp_path / "1", (SIZE, SIZE, 3))
    assert_near(export.load_exported(path)(PIXELS), expected)
    loaded, size = export.load_trainable(path)
    assert size == SIZE
    assert_near(loaded(PIXELS / np.float32(255), training=False), expected)
    file = export.export_tflite(model, tmp_path / "it.tflite", (SIZE, SIZE, 3))
    assert_near(tflite.run(file.read_bytes(), PIXELS / np.float32(255)), expected)


def test_a_functional_encoder_and_one_in_bfloat16_are_whitened():
    """The whitening is in float32 whatever the policy."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    encoder = small()
    whitening = evaluate.fit_whitening(encoder, [PIXELS])
    model = encoders.whitened(encoder, whitening)
    assert model.layers[-1].compute_dtype == "float32"
    got = model(PIXELS / np.float32(255))
    expected = whitening.apply(tf.cast(encoder(PIXELS / np.float32(255)), tf.float32))
    assert got.dtype == tf.float32
    assert_near(got, expected)


def test_the_layer_can_be_taken_off(resnet, whitening):
    """What is left returns h; an encoder without such a layer is left as it is."""
    plain = without_whitening(encoders.whitened(resnet, whitening))
    np.testing.assert_allclose(plain(PIXELS / np.float32(255)), resnet(PIXELS / np.float32(255)))
    assert without_whitening(plain) is plain


def test_what_cannot_be_whitened_is_told(whitening):
    """A subclass without a functional form; a whitening of another encoder."""
    with pytest.raises(errors.ArgumentError, match="an Airbench or a functional encoder; got a"):
        encoders.whitened(Given(), whitening)
    with pytest.raises(errors.ArgumentError, match="encoder's 5 features; got one of 16"):
        encoders.whitened(small(), whitening)


# -- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An npz of 40 labelled images."""
    path = tmp_path_factory.mktemp("images") / "set.npz"
    labels = np.arange(40) % 2
    np.savez(path, x_train=PIXELS, y_train=labels, x_test=255 - PIXELS, y_test=labels)
    return path


@pytest.fixture(scope="module")
def run(images, tmp_path_factory, quick_runs):
    """The directory of a run, its whitening, and (h, whitened h) of the training images."""
    path = tmp_path_factory.mktemp("runs") / "run"
    model = untrained_run(path, images, SIZE)
    whitening = evaluate.fit_whitening(model.encoder, [PIXELS], 0.1)
    whitening.save(path / "whitening.npz")
    h = model.encoder(PIXELS / np.float32(255), training=False).numpy()
    return path, h, whitening.apply(h)


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_a_run_measures_its_whitening_at_the_end(images, tmp_path, monkeypatch, capsys):
    """On training images, with the encoder of the last epoch; the export has it.

    That 40 images are few for the covariance of 32 features is said before training.
    """
    exported = []

    def export_encoder(encoder, path, *_):
        path.mkdir(parents=True)
        exported.append(encoder)

    monkeypatch.setattr(pretrain, "export_encoder", export_encoder)
    words = ["pretrain", f"--dataset=npz:{images}", f"--run_dir={tmp_path / 'run'}", "--epochs=1"]
    words += ["--batch_size=16", "--precision=float32", "--probe_every_epochs=-1", "--whitening"]
    words += ["--whitening_floor=0.2"]
    assert cli.main(words) == 0
    assert "measured on 40 images, and h has 32. Pass a smaller" in capsys.readouterr().err
    (encoder,) = exported
    h = without_whitening(encoder)(PIXELS / np.float32(255)).numpy()
    expected = by_svd(h, 0.2)(h)
    np.testing.assert_allclose(encoder(PIXELS / np.float32(255)), expected, rtol=0.02, atol=0.02)
    whitening = encoders.Whitening.load(tmp_path / "run" / "whitening.npz")
    np.testing.assert_allclose(whitening.apply(h), expected, rtol=0.02, atol=0.02)
    assert cli.main(words) == 0 and len(exported) == 1
    assert cli.main([*words, "--whitening_floor=0.1"]) == 2


@pytest.mark.end_to_end
def test_evaluate_scores_h_and_whitened_h(run, capsys):
    """By default both; --layer=all has one row more; each is that of the features."""
    path, _, _ = run
    assert cli.main(["evaluate", f"--run_dir={path}", "--knn_k=3"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["layers"]) == ["h", "whitened"] and result["layer"] == "h"
    assert cli.main(["evaluate", f"--run_dir={path}", "--layer=all", "--knn_k=3"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["layers"]) == ["h", "whitened", "head1", "z"]


def test_layers_side_by_side(resnet, whitening, expected):
    """What evaluate scores: the columns of h and of whitened h."""
    loaded = build.LoadedEncoder(resnet, SIZE, "run_dir", "runs/a", {}, None, whitening)
    layers = Layers(loaded, "whitened,h")
    images = PIXELS / np.float32(255)
    columns = layers.split(layers.encoder(images).numpy())
    assert_near(columns["whitened"], expected)
    np.testing.assert_allclose(columns["h"], resnet(images, training=False), atol=1e-6)
    assert_near(layers.only("whitened")(images), expected)


@pytest.mark.end_to_end
def test_embed_and_export_whiten_unless_h_is_asked_for(run, tmp_path, capsys):
    """The same images through both commands."""
    path, h, white = run
    for flags, expected in (([], white), (["--layer=h"], h)):
        name = "h" if flags else "whitened"
        output = tmp_path / f"{name}.npz"
        words = [f"--run_dir={path}", *flags]
        assert cli.main(["embed", *words, f"--output={output}", "--split=train"]) == 0
        assert_near(embeddings.read(output).h, expected)
        output = tmp_path / f"{name}.tflite"
        assert cli.main(["export", *words, "--format=tflite", f"--output={output}"]) == 0
        assert_near(tflite.run(output.read_bytes(), PIXELS / np.float32(255)), expected)
    assert "(whitened)" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_a_run_without_whitening_says_so(images, tmp_path, quick_runs, capsys):
    """One line, with the way out."""
    untrained_run(tmp_path / "run", images, SIZE)
    output = f"--output={tmp_path / 'x.npz'}"
    for words in (["evaluate"], ["embed", output], ["export", f"--output={tmp_path / 'x'}"]):
        words = [*words, f"--run_dir={tmp_path / 'run'}", "--layer=whitened"]
        assert cli.main(words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert "--layer=whitened needs" in lines[-1] and "Pass --layer=h." in lines[-1]
    words = ["embed", f"--run_dir={tmp_path / 'run'}", output, "--layer=h,z"]
    assert cli.main(words) == 2
    assert "--layer must be one layer; got 'h,z'" in capsys.readouterr().err
