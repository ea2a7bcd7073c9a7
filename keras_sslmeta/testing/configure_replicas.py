"""`configure_replicas`: several logical devices on one CPU, to test replicas on."""

import tensorflow as tf

from keras_sslmeta.mechanisms import arguments


def configure_replicas(count: int = 2) -> None:
    """Divides the CPU into logical devices, on which replicas of `tf.distribute` can run.

    TensorFlow reads this once, when it makes its first tensor or lists its logical devices: call it
    before, for instance at the top of `conftest.py`. Calling it again changes nothing.

    Args:
        count: number of logical devices, from 2. Defaults to 2.

    Raises:
        ValueError: if `count` is not an integer from 2.
        RuntimeError: if TensorFlow has been initialised with fewer devices.

    Example:

    ```python
    # conftest.py
    import keras_sslmeta as ksm

    ksm.testing.configure_replicas(2)
    ```
    """
    count = arguments.count("count", count, least=2)
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or []
    if len(configured) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"TensorFlow has been initialised with {max(1, len(configured))} logical CPU device(s), "
            f"and their number is fixed since: call `configure_replicas({count})` before the first "
            "tensor, variable or model is made, at the top of `conftest.py` or of the program."
        ) from error
