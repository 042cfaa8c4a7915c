"""What every test starts from: four logical CPUs, one seed, float32."""

import pytest

from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

# Before TensorFlow is first used: afterwards the number of devices is fixed.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(autouse=True)
def same_start():
    """Seeds Python, NumPy and TensorFlow, and undoes a precision policy that a test set."""
    tf.keras.utils.set_random_seed(0)
    # Every strategy of a process counts its collectives from the same number, so that one with two
    # replicas would meet those of an earlier one with four. TensorFlow's own tests do likewise.
    tf.distribute.MirroredStrategy._collective_key_base += 1000
    yield
    tf.keras.mixed_precision.set_global_policy("float32")
