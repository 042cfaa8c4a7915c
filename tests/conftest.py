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
    yield
    tf.keras.mixed_precision.set_global_policy("float32")
