"""Asserts of every public loss that replicas compute what one device does; prints a line for each.

Run by `every_loss_on_replicas_test.py`:  python every_loss_on_replicas_worker.py [PART OF A NAME]
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import pytest

import keras_sslmeta as ksm

BATCH, DIM = 12, 6
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, size=BATCH)
KNOWN = {
    "labels": LABELS,
    "guide": RNG.normal(size=(BATCH, 2, 4)).astype("float32"),
    "time": RNG.normal(size=BATCH).astype("float32"),
}
MEMORY = RNG.normal(size=(8, DIM)).astype("float32")
STATISTICS = ("AlignmentUniformity", "BarlowTwins", "KoLeo", "LeJEPA", "SIGReg", "VICReg")
BY_LABEL = (
    *("SupervisedContrastive", "NPairs", "MultiSimilarity"),
    *("TripletAll", "TripletHard", "TripletSemiHard"),
)


@keras.saving.register_keras_serializable(package="tests")
def later(a, b):
    return 1 / (1 + (a - b) ** 2)


def cases():
    """Name → loss, `y_true` (None: what the loss takes is found out), whether it takes weights."""
    parents = [name for name in ksm.losses.__all__ if name.endswith("Loss")]
    for name in ksm.losses.__all__:
        if name in parents:
            continue
        build = getattr(ksm.losses, name)
        loss = build(ksm.losses.NTXent(0.5), dims=[3, DIM]) if name == "Matryoshka" else build()
        yield name, loss, LABELS if name in BY_LABEL else None, name not in STATISTICS
    yield "strings", ksm.losses.SupervisedContrastive(), np.array(list("abcaabbcbacb")), True
    yield "weighted", ksm.losses.DecoupledContrastive(weighted=True), None, True
    yield "triplets, soft", ksm.losses.TripletHard(soft=True), LABELS, True
    rules = {
        "labels": ksm.negatives.ExcludeSameLabel(),
        "guide": ksm.negatives.ExcludeByGuide(),
        "weights": ksm.negatives.WeighPairs(later, "time"),
        "hardest": ksm.negatives.Hardest(3),
    }
    for name, rule in rules.items():
        known = {"guide": KNOWN["guide"], "weights": KNOWN["time"]}.get(name, LABELS)
        yield f"rule {name}", ksm.losses.NTXent(negatives=[rule]), known, True
    rules = [rules["labels"]]
    yield "rule in CLIP", ksm.losses.CLIP(negatives=rules), LABELS, True
    yield "rule in SupCon", ksm.losses.SupervisedContrastive(negatives=rules), LABELS, True


def main(part=""):
    ksm.testing.configure_replicas(4)
    check = ksm.testing.assert_batch_invariant
    for name, loss, y_true, takes_weights in cases():
        if part not in name:
            continue
        settings = {"y_true": y_true, "batch_size": BATCH}
        check(loss, replicas=[2, 4], **settings)
        if takes_weights:
            weights = np.linspace(0.2, 2.0, BATCH).astype("float32")
            check(loss, replicas=2, sample_weight=weights, **settings)
        # Gradients in half precision are rounded to eleven bits, and so are sums of theirs.
        check(loss, replicas=2, dtype="float16", rtol=2e-2, **settings)
        report(f"same: {name}")
        if getattr(loss, "gather", False):
            config = {**loss.get_config(), "gather": False}
            with pytest.raises(AssertionError, match="local"):
                check(type(loss).from_config(config), replicas=2, uneven=False, **settings)
            report(f"local by choice: {name}")


def report(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
