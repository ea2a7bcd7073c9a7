import keras
import pytest


@pytest.fixture
def double_precision():
    """Models, losses and data in float64, and one seed: what oracles are compared at."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
