"""Every method on two replicas: run by `replicas_test.py` in a process of its own."""

import sys
from pathlib import Path

import keras

import keras_sslmeta as ksm


def main(cases):
    ksm.testing.configure_replicas(2)
    sys.path.insert(0, str(Path(__file__).parent))
    from small_methods import LABELS, METHODS, VIEWS

    for case in cases:
        name, _, size = case.partition("/")
        rate = {"BarlowTwins": 0.01, "VICReg": 0.01}.get(name, 0.1)
        keras.utils.set_random_seed(0)
        model = METHODS[name](micro_batch_size=int(size) if size else None)
        model.compile(keras.optimizers.SGD(rate))
        ksm.testing.assert_batch_invariant(
            model, VIEWS, LABELS if name == "SupCon" else None, rtol=2e-5, learning_rate=rate
        )
        sys.stdout.write(f"same: {case}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
