"""Of every public loss: replicas compute what one device does, and without `gather` they do not."""

import keras
import numpy as np
import pytest

import keras_sslmeta as ksm

BATCH, DIM = 12, 6
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, size=BATCH)
KNOWN = {
    "guide": RNG.normal(size=(BATCH, 2, 4)).astype("float32"),
    "time": RNG.normal(size=BATCH).astype("float32"),
}
STATISTICS = ("AlignmentUniformity", "BarlowTwins", "KoLeo", "LeJEPA", "SIGReg", "VICReg")
BY_LABEL = (
    *("SupervisedContrastive", "NPairs", "MultiSimilarity"),
    *("TripletAll", "TripletHard", "TripletSemiHard"),
)


@keras.saving.register_keras_serializable(package="tests")
def later(a, b):
    return 1 / (1 + (a - b) ** 2)


def cases():
    """Name, loss, `y_true` (None: what the loss takes is found out), whether it takes weights."""
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


EVERY = {name: case for name, *case in cases()}
# One of each way to share work between replicas; in the others only the formula is another.
REPRESENTATIVES = (
    *("NTXent", "CLIP", "SigLIP", "SupervisedContrastive"),
    *("MultiSimilarity", "TripletHard", "VICReg", "KoLeo"),
)


def check(loss, y_true, **settings):
    ksm.testing.assert_batch_invariant(loss, y_true=y_true, batch_size=BATCH, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_is_exact(name):
    """Value, gradient of each sample, three steps: even, uneven and empty shares of four replicas."""
    loss, y_true, takes_weights = EVERY[name]
    weights = np.linspace(0.2, 2.0, BATCH).astype("float32") if takes_weights else None
    check(loss, y_true, replicas=4, sample_weight=weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_without_weights_and_in_half_precision(name):
    loss, y_true, _ = EVERY[name]
    check(loss, y_true, replicas=2)
    # Gradients in half precision are rounded to eleven bits, and so are sums of theirs.
    check(loss, y_true, replicas=2, dtype="float16", rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, (loss, *_) in EVERY.items() if getattr(loss, "gather", False)]
)
def test_local_by_choice(name):
    loss, y_true, _ = EVERY[name]
    config = {**loss.get_config(), "gather": False}
    with pytest.raises(AssertionError, match="local"):
        check(type(loss).from_config(config), y_true, replicas=2, uneven=False)
