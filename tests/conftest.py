"""Every test starts with four logical CPUs, one seed and float32; fixtures make runs small."""

import contextlib
import gc

import pytest

from simclr_tf import _quiet


def pytest_configure(config):
    """Four logical CPUs; a process that only distributes tests does not load TensorFlow."""
    if getattr(config.option, "numprocesses", None):
        return
    with _quiet.native_noise_hidden():
        tf = _quiet.import_tensorflow()
    # Before TensorFlow is first used: afterwards the number of devices is fixed.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    # Tracing makes many objects that live on; Python would visit them all time and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(autouse=True)
def same_start():
    """Seeds Python, NumPy and TensorFlow, and undoes a precision policy that a test set."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(0)
    # Every strategy of a process counts its collectives from the same number, so that one with two
    # replicas would meet those of an earlier one with four. TensorFlow's own tests do likewise.
    tf.distribute.MirroredStrategy._collective_key_base += 1000
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


@contextlib.contextmanager
def fewer_residual_blocks():
    """The same kinds of residual blocks, fewer of each: Keras's time per layer dominates a test."""
    from simclr_tf.encoders import resnet

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BASIC_BLOCKS, 18, (2, 1, 1, 1))
        patch.setitem(resnet.BOTTLENECK_BLOCKS, 50, (2, 1, 1, 1))
        yield


@pytest.fixture
def shallow():
    """ResNets with fewer residual blocks, for one test."""
    with fewer_residual_blocks():
        yield


@contextlib.contextmanager
def views_without_xla():
    """Random views that XLA does not compile, which takes longer than training here.

    test_augment.py compiles views.
    """
    from simclr_tf import augment

    *defaults, jit_compile = augment.RandomView.__init__.__defaults__
    assert jit_compile in (True, False), "jit_compile is the last argument"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment.RandomView.__init__, "__defaults__", (*defaults, False))
        yield


@pytest.fixture(scope="module")
def quick_runs():
    """Runs with fewer residual blocks on fewer shapes, whose views are not compiled by XLA.

    test_resnet.py tests whole networks.
    """
    from simclr_tf.data import by_name

    with fewer_residual_blocks(), views_without_xla(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_name, "SHAPES_SPLITS", {"train": (600, 1), "test": (60, 2)})
        yield


@pytest.fixture
def two_replicas(monkeypatch):
    """`--strategy=mirrored` is over two of the logical CPUs."""
    import tensorflow as tf

    from simclr_tf import distribute

    def mirrored():
        devices, reduction = ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
        return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)

    monkeypatch.setattr(distribute, "_mirrored_strategy", mirrored)


@pytest.fixture
def no_export(monkeypatch):
    """Runs end with an empty directory instead of the encoder's SavedModel."""
    from simclr_tf.commands import pretrain

    monkeypatch.setattr(
        pretrain, "export_encoder", lambda encoder, path, *_: path.mkdir(parents=True)
    )


@pytest.fixture
def one_layer_encoder(monkeypatch, no_export):
    """Runs of one convolution to 32 channels, for tests that do not depend on the encoder."""
    from tensorflow import keras

    from simclr_tf.commands import build, evaluate, pretrain

    def build_encoder(options, image_size):
        layers = keras.layers
        stack = [layers.Conv2D(32, 3), layers.BatchNormalization(), layers.GlobalAveragePooling2D()]
        return keras.Sequential([keras.Input((None, None, 3)), *stack])

    for module in (build, evaluate, pretrain):
        monkeypatch.setattr(module, "build_encoder", build_encoder)


@pytest.fixture
def one_layer(one_layer_encoder):
    """Runs of one convolution whose views are not compiled by XLA."""
    with views_without_xla():
        yield
