"""Rules on negatives against the loss written out pair by pair, in every softmax loss that takes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta.mechanisms import row_blocks, streaming_similarity
from keras_sslmeta.negatives import (
    ExcludeByGuide,
    ExcludeNearDuplicates,
    ExcludeSameLabel,
    Hardest,
    NegativeRule,
    WeighPairs,
)

RNG = np.random.default_rng(0)
BATCH, DIM, TEMPERATURE = 6, 5, 0.3
VIEWS = RNG.normal(size=(BATCH, 2, DIM))
VIEWS[5, 0] = 1.1 * VIEWS[2, 0]  # A near-duplicate.
LABELS = np.array([0, 1, 0, 2, 1, 0])
GUIDE = RNG.normal(size=(BATCH, 2, 4))
AGES = np.array([20.0, 21.0, 40.0, 41.0, 60.0, 61.0])
HELD = RNG.normal(size=(4, DIM))
KNOWN = {
    "labels": LABELS,
    "guide": GUIDE,
    "age": AGES,
    "memory": HELD,
    "memory_labels": np.array([0, 7, 1, 1]),
    "memory_guide": RNG.normal(size=(4, 4)),
    "memory_age": np.array([30.0, 50.0, 20.0, 70.0]),
}


@keras.saving.register_keras_serializable(package="tests")
def kernel(a, b):
    """1 at a large difference of ages, 0 at none."""
    return 1 - tf.exp(-tf.square(a - b) / 50)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Case:
    """A rule, and the weight that it gives a pair, written out for anchor (i, v) and a key."""

    def __init__(self, rules, weight):
        self.rules, self.weight = rules, weight


def key_of(k, w):
    """What is known of a key: of view w of sample k, or of entry w of the memory where k is None."""
    if k is None:
        names = ("memory", "memory_labels", "memory_guide", "memory_age")
        return tuple(KNOWN[name][w] for name in names)
    return VIEWS[k, w], LABELS[k], GUIDE[k, w], AGES[k]


def same_label(i, v, k, w):
    return 0.0 if key_of(k, w)[1] == LABELS[i] else 1.0


def near_duplicate(i, v, k, w):
    return 0.0 if unit(VIEWS[i, v]) @ unit(key_of(k, w)[0]) > 0.6 else 1.0


def closer_by_guide(margin):
    def weight(i, v, k, w):
        anchor = unit(GUIDE[i, v])
        positive = anchor @ unit(GUIDE[i, 1 - v])
        return 0.0 if anchor @ unit(key_of(k, w)[2]) > positive - margin else 1.0

    return weight


def by_age(i, v, k, w):
    return 1 - np.exp(-((AGES[i] - key_of(k, w)[3]) ** 2) / 50)


def hardest(count, before=lambda *_: 1.0):
    def weight(i, v, k, w):
        def similarity(key):
            return unit(VIEWS[i, v]) @ unit(key_of(*key)[0])

        kept = sorted((similarity(key) for key in keys(i) if before(i, v, *key) > 0), reverse=True)
        is_among = similarity((k, w)) >= kept[min(count, len(kept)) - 1] - 1e-9
        return before(i, v, k, w) * is_among

    return weight


def keys(i, memory=True):
    others = [(k, w) for k in range(BATCH) for w in range(2) if k != i]
    return others + ([(None, m) for m in range(4)] if memory else [])


CASES = {
    "labels": Case([ExcludeSameLabel()], same_label),
    "duplicates": Case([ExcludeNearDuplicates(0.6)], near_duplicate),
    "guide": Case([ExcludeByGuide()], closer_by_guide(0.0)),
    "guide with a margin": Case([ExcludeByGuide(margin=0.3)], closer_by_guide(0.3)),
    "weights": Case([WeighPairs(kernel, key="age")], by_age),
    "hardest": Case([Hardest(3)], hardest(3)),
    "hardest of other labels": Case([ExcludeSameLabel(), Hardest(3)], hardest(3, same_label)),
    "all together": Case(
        [ExcludeSameLabel(), ExcludeNearDuplicates(0.6), WeighPairs(kernel, "age"), Hardest(3)],
        hardest(3, lambda *pair: same_label(*pair) * near_duplicate(*pair) * by_age(*pair)),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def oracle(weight):
    """NT-Xent of the views with weighted negatives, one value a sample."""
    values = np.zeros(BATCH)
    for i in range(BATCH):
        for v in range(2):
            anchor = unit(VIEWS[i, v])
            positive = np.exp(anchor @ unit(VIEWS[i, 1 - v]) / TEMPERATURE)
            negatives = sum(
                weight(i, v, *key) * np.exp(anchor @ unit(key_of(*key)[0]) / TEMPERATURE)
                for key in keys(i)
            )
            values[i] += np.log(1 + negatives / positive) / 2
    return values


@pytest.fixture(params=["dense", "tiles"])
def path(request, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(streaming_similarity, "DENSE_PAIRS", 0)
        monkeypatch.setattr(row_blocks, "TILE", 4)


@pytest.mark.first(4)
@every_case
def test_each_rule_pair_by_pair(case, path, check_gradient):
    loss = ksm.losses.NTXent(TEMPERATURE, negatives=case.rules, reduction=None, dtype="float64")
    np.testing.assert_allclose(loss(KNOWN, VIEWS), oracle(case.weight), rtol=1e-9)
    check_gradient(
        ksm.losses.NTXent(TEMPERATURE, negatives=case.rules, dtype="float64"),
        KNOWN,
        VIEWS,
        rtol=1e-4,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[] if name == "all together" else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_every_softmax_loss_takes_every_rule(case, value_and_gradient):
    """A rule changes the value, dense and in tiles alike; eager, in a graph, and after saving."""
    keys_alone = {k: v for k, v in KNOWN.items() if not k.startswith("memory")}
    for build, known in (
        (ksm.losses.NTXent, KNOWN),
        (ksm.losses.DecoupledContrastive, KNOWN),
        (ksm.losses.DebiasedContrastive, KNOWN),
        (ksm.losses.HardNegative, KNOWN),
        (ksm.losses.SupervisedContrastive, KNOWN),
        (ksm.losses.InfoNCE, KNOWN),
        (ksm.losses.CLIP, keys_alone),
        (ksm.losses.NPairs, keys_alone),
    ):
        loss = build(negatives=case.rules)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
        z = tf.constant(VIEWS, tf.float32)
        eager = value_and_gradient(loss, known, z)
        graph = tf.function(lambda z, loss=loss, known=known: value_and_gradient(loss, known, z))(z)
        for got in (graph, value_and_gradient(again, known, z)):
            np.testing.assert_allclose(got[0], eager[0], rtol=1e-5)
            np.testing.assert_allclose(got[1], eager[1], rtol=1e-4, atol=1e-6)
        assert np.isfinite(eager[1]).all()
        by_label = (ksm.losses.SupervisedContrastive, ksm.losses.NPairs)
        if build in by_label and isinstance(case.rules[0], ExcludeSameLabel):
            continue  # Its negatives have other labels anyway.
        assert abs(eager[0] - build()(known, z)) > 1e-4, build


def test_rules_see_explicit_hard_negatives():
    """Same label as their sample's for weights; none for labels, which leave them in."""
    stack = np.concatenate([VIEWS, RNG.normal(size=(BATCH, 2, DIM))], axis=1)
    anchors, others = unit(stack[:, 0]), unit(stack[:, 1:])
    terms = np.exp(np.einsum("id,jhd->ijh", anchors, others) / TEMPERATURE)
    own = np.eye(BATCH, dtype=bool)
    positive = terms[:, :, 0][own]
    different = LABELS[:, None] != LABELS
    terms_left = (terms[:, :, 0] * different).sum(1) + terms[:, :, 1:].sum((1, 2))
    loss = ksm.losses.InfoNCE(
        TEMPERATURE, negatives=[ExcludeSameLabel()], reduction=None, dtype="float64"
    )
    np.testing.assert_allclose(loss(LABELS, stack), np.log(1 + terms_left / positive), rtol=1e-9)
    ages = 1 - np.exp(-((AGES[:, None] - AGES) ** 2) / 50)
    weighted = (terms[:, :, 0] * ~own * ages).sum(1) + (terms[:, :, 1:] * ages[..., None]).sum(
        (1, 2)
    )
    loss = ksm.losses.InfoNCE(
        TEMPERATURE, negatives=[WeighPairs(kernel, "age")], reduction=None, dtype="float64"
    )
    np.testing.assert_allclose(
        loss({"age": AGES}, stack), np.log(1 + weighted / positive), rtol=1e-9
    )


def test_a_rule_of_ones_own(value_and_gradient):
    """The class of the documentation: negatives that come before the anchor do not count."""

    @keras.saving.register_keras_serializable(package="tests")
    class ExcludeEarlier(NegativeRule):
        def of_pairs(self, negatives):
            return negatives.of_samples("time")

        def log_weights(self, similarity, of_rows, of_keys):
            return tf.where(of_keys[None] < of_rows[:, None], -np.inf, 0.0)

    loss = ksm.losses.NTXent(TEMPERATURE, negatives=ExcludeEarlier(), reduction=None)
    time = np.arange(BATCH)
    values, got = value_and_gradient(loss, {"time": time}, VIEWS.astype("float32"))
    z = unit(VIEWS)
    for i in range(BATCH):
        expected = 0
        for v in range(2):
            later = np.exp(z[i + 1 :].reshape(-1, DIM) @ z[i, v] / TEMPERATURE).sum()
            positive = np.exp(z[i, 0] @ z[i, 1] / TEMPERATURE)
            expected += np.log(1 + later / positive) / 2
        np.testing.assert_allclose(values[i], expected, rtol=1e-5, atol=1e-7)
    assert values[-1] == 0 and np.isfinite(got).all()  # The last has no negatives left.


def test_no_gradient_goes_through_a_rule(path, value_and_gradient):
    """Dense or in tiles, also of what a rule makes of the embeddings, or of a variable."""
    factor = tf.Variable(1.0)

    class ByProduct(NegativeRule):
        def of_pairs(self, negatives):
            return negatives.rows, negatives.keys

        def log_weights(self, similarity, of_rows, of_keys):
            product = tf.matmul(of_rows, of_keys, transpose_b=True)
            return -tf.abs(product) * tf.cast(factor, product.dtype)

    loss = ksm.losses.NTXent(TEMPERATURE, negatives=[ByProduct()], dtype="float64")
    with tf.GradientTape() as tape:
        value = loss(None, tf.constant(VIEWS))
    assert tape.gradient(value, factor) is None
    _, got = value_and_gradient(loss, None, VIEWS)
    z = tf.constant(unit(VIEWS).reshape(-1, DIM) / TEMPERATURE**0.5)
    weights = np.exp(-np.abs(z @ tf.transpose(z)))
    own = np.arange(12)[:, None] // 2 == np.arange(12) // 2

    def by_hand(_, views):
        z = tf.reshape(tf.math.l2_normalize(views, -1), [-1, DIM]) / TEMPERATURE**0.5
        s = z @ tf.transpose(z)
        positive = tf.gather(s, np.arange(12) ^ 1, batch_dims=1)
        rest = tf.reduce_sum(tf.where(own, tf.zeros_like(s), tf.exp(s) * weights), axis=1)
        return tf.reduce_mean(tf.math.log(tf.exp(positive) + rest) - positive)

    _, expected = value_and_gradient(by_hand, None, VIEWS)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize("known", [np.array(list("abacba")), AGES.astype("uint16"), AGES[:, None]])
def test_pairs_are_weighed_by_strings_and_any_number(known, monkeypatch):
    """In a graph that does not know the batch, where the last tile is padded."""
    monkeypatch.setattr(row_blocks, "TILE", 4)
    monkeypatch.setattr(streaming_similarity, "DENSE_PAIRS", 0)
    loss = ksm.losses.NTXent(negatives=[WeighPairs(lambda a, b: tf.where(a == b, 0.3, 1.0))])
    known, z = tf.constant(known), tf.constant(VIEWS, tf.float32)
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in (known, z)]
    graph = tf.function(lambda known, z: loss(known, z), input_signature=signature)
    monkeypatch.setattr(streaming_similarity, "DENSE_PAIRS", 10**6)
    expected = loss(known, z)
    monkeypatch.setattr(streaming_similarity, "DENSE_PAIRS", 0)
    np.testing.assert_allclose(graph(known, z), expected, rtol=1e-5)


def test_hard_negatives_that_the_guide_did_not_see_stay_in():
    stack = np.concatenate([VIEWS, RNG.normal(size=(BATCH, 1, DIM))], axis=1)
    guide = GUIDE.copy()
    guide[:, 1] = -guide[:, 0]  # The positive is opposite: every negative is closer.
    rules = [ExcludeByGuide()]
    loss = ksm.losses.InfoNCE(TEMPERATURE, negatives=rules, in_batch_negatives=False)
    plain = ksm.losses.InfoNCE(TEMPERATURE, in_batch_negatives=False)
    np.testing.assert_allclose(loss(guide, stack), plain(None, stack), rtol=1e-5)


def test_negative_weights_do_not_pass_for_none():
    loss = ksm.losses.NTXent(negatives=[WeighPairs(lambda a, b: -tf.abs(a - b))])
    assert np.isnan(loss(AGES, VIEWS))


def test_everything_left_out_is_finite(value_and_gradient):
    rules = [ExcludeNearDuplicates(-2.0)]
    for build in (ksm.losses.NTXent, ksm.losses.DebiasedContrastive, ksm.losses.HardNegative):
        value, got = value_and_gradient(build(negatives=rules), None, VIEWS)
        assert value == 0
        np.testing.assert_array_equal(got, np.zeros_like(VIEWS))
    for build in (ksm.losses.DecoupledContrastive, ksm.losses.CLIP, ksm.losses.InfoNCE):
        value, got = value_and_gradient(build(negatives=rules), None, VIEWS)
        assert np.isfinite(value) and np.isfinite(got).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hardest(0), r"`k` must be a positive integer\. Received: k=0"),
        (lambda: ExcludeNearDuplicates("near"), "`similarity` must be a finite number"),
        (lambda: ExcludeByGuide(margin=None), "`margin` must be a finite number"),
        (lambda: WeighPairs(3), "`function` must be callable"),
        (lambda: ksm.losses.NTXent(negatives=["labels"]), "`negatives` must be a list of rules"),
        (lambda: ksm.losses.CLIP(negatives=3), "`negatives` must be a list of rules"),
    ],
)
def test_refuses_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("rule", "known", "message"),
    [
        (ExcludeSameLabel(), None, "A rule on negatives needs `labels`.*None"),
        (ExcludeSameLabel(), {"label": LABELS}, "A rule on negatives needs `labels`.*label"),
        (ExcludeSameLabel(), LABELS * 1.0, "cast floats to the integers"),
        (ExcludeSameLabel("clip"), {"labels": LABELS}, "A rule on negatives needs `clip`"),
        (ExcludeSameLabel(), LABELS[:3], r"one label for each of the 6 samples.*\(3,\)"),
        (WeighPairs(kernel), AGES[:3], r"one entry for each of the 6 samples.*\(3,\)"),
        (ExcludeByGuide(), GUIDE[:, 0], r"`guide` must hold a guide's embedding.*\(6, 4\)"),
        (ExcludeByGuide(), GUIDE[:, :1], r"`guide` must hold a value for each view"),
        (ExcludeSameLabel(), {"labels": LABELS, "memory": HELD}, "needs `memory_labels`"),
    ],
)
def test_refuses_what_is_missing(rule, known, message):
    with pytest.raises(ValueError, match=message):
        ksm.losses.NTXent(negatives=[rule])(known, VIEWS)


def test_refuses_one_tensor_for_rules_of_different_needs():
    loss = ksm.losses.NTXent(negatives=[ExcludeSameLabel(), ExcludeByGuide()])
    with pytest.raises(ValueError, match="need different things, `guide`, `labels`: pass a dict"):
        loss(LABELS, VIEWS)
