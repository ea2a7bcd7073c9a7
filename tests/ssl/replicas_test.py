"""One gradient on one device and on two replicas in even and uneven shares, whole and in micro-batches."""

import keras
import pytest
from small_methods import LABELS, METHODS, VIEWS

import keras_sslmeta as ksm


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 3], ids=["whole", "in parts"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exact_on_replicas(name, size):
    rate = {"BarlowTwins": 0.01, "VICReg": 0.01}.get(name, 0.1)
    keras.utils.set_random_seed(0)
    model = METHODS[name](micro_batch_size=size)
    model.compile(keras.optimizers.SGD(rate))
    ksm.testing.assert_batch_invariant(
        model,
        VIEWS,
        LABELS if name == "SupCon" else None,
        replicas=2,
        micro_batches=False,  # They are tested by `micro_batch_test.py`.
        rtol=2e-5,
        learning_rate=rate,
    )
