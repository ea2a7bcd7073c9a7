import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as ScikitRidge

from keras_sslmeta.evaluation import heads

TASKS, WAYS, QUERIES = 4, 3, 5
HEADS = [heads.Prototype(), heads.Ridge(0.3), heads.Logistic(2.0), heads.Adapted(7, 0.4)]
EACH = pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)


def tasks_of(dim, shots=2, seed=0, ways=WAYS, dtype="float32"):
    """Support sets in another order of labels each, and queries."""
    random = np.random.default_rng(seed)
    labels = np.stack([random.permutation(np.repeat(np.arange(ways), shots)) for _ in range(TASKS)])
    centers = random.normal(size=(TASKS, ways, dim))
    support = np.take_along_axis(centers, labels[..., None], axis=1)
    support = support + random.normal(size=support.shape)
    query = random.normal(size=(TASKS, QUERIES, dim))
    return support.astype(dtype), labels, query.astype(dtype)


def expected_prototype(support, labels, query):
    prototypes = [
        sum(row for row, label in zip(support, labels, strict=True) if label == way)
        / list(labels).count(way)
        for way in range(WAYS)
    ]
    # Less |q|², which all classes share.
    return [[sum(q * q) - math.dist(q, p) ** 2 for p in prototypes] for q in query]


def expected_ridge(support, labels, query):
    return ScikitRidge(alpha=0.3).fit(support, np.eye(WAYS)[labels]).predict(query)


def expected_logistic(support, labels, query):
    model = LogisticRegression(C=2.0, max_iter=1000).fit(support, labels)
    return model.decision_function(query)


def expected_adapted(support, labels, query):
    """Gradient descent on weights and bias, one sample at a time."""
    weights, bias = np.zeros((support.shape[1], WAYS)), np.zeros(WAYS)
    for _ in range(7):
        gradient, of_bias = np.zeros_like(weights), np.zeros_like(bias)
        for x, label in zip(support, labels, strict=True):
            powers = np.exp(x @ weights + bias)
            error = powers / powers.sum() - np.eye(WAYS)[label]
            gradient += np.outer(x, error) / len(labels)
            of_bias += error / len(labels)
        weights, bias = weights - 0.4 * gradient, bias - 0.4 * of_bias
    return query @ weights + bias


ORACLES = [expected_prototype, expected_ridge, expected_logistic, expected_adapted]


@pytest.mark.parametrize(
    ("head", "oracle"),
    list(zip(HEADS, ORACLES, strict=True)),
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize("dim", [2, 40])  # Fewer features than samples, and more.
def test_equals_its_oracle_task_by_task(head, oracle, dim):
    support, labels, query = tasks_of(dim)
    scores = head(support, labels, query)
    assert scores.shape == (TASKS, QUERIES, WAYS) and scores.dtype == np.float64
    for task in range(TASKS):
        wide = [array[task].astype("float64") for array in (support, query)]
        expected = oracle(wide[0], labels[task], wide[1])
        np.testing.assert_allclose(scores[task], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("head", "oracle"),
    [(heads.Prototype(), expected_prototype), (heads.Ridge(0.3), expected_ridge)],
)
def test_classes_of_different_numbers_of_samples(head, oracle):
    support, labels, query = tasks_of(6, shots=3, dtype="float64")
    labels[:, :] = [0, 0, 0, 0, 1, 2, 2, 1, 0]
    scores = head(support, labels, query)
    for task in range(TASKS):
        expected = oracle(support[task], labels[task], query[task])
        np.testing.assert_allclose(scores[task], expected, rtol=1e-8)


@EACH
def test_order_of_support_and_other_tasks_do_not_matter(head):
    support, labels, query = tasks_of(6)
    scores = head(support, labels, query)
    order = np.random.default_rng(1).permutation(labels.shape[1])
    np.testing.assert_allclose(head(support[:, order], labels[:, order], query), scores, atol=1e-4)
    alone = head(support[2:3], labels[2:3], query[2:3])
    np.testing.assert_allclose(alone, scores[2:3], rtol=1e-9, atol=1e-9)


def test_two_classes():
    support, labels, query = tasks_of(6, ways=2)
    scores = heads.Logistic(0.5)(support, labels, query)
    for task in range(TASKS):
        model = LogisticRegression(C=0.5, max_iter=1000)
        model.fit(support[task].astype("float64"), labels[task])
        likely = np.exp(scores[task]) / np.exp(scores[task]).sum(-1, keepdims=True)
        expected = model.predict_proba(query[task].astype("float64"))
        np.testing.assert_allclose(likely, expected, rtol=1e-6)


@EACH
def test_one_class_is_always_right(head):
    support, labels, query = tasks_of(6, ways=1)
    scores = head(support, labels, query)
    assert scores.shape == (TASKS, QUERIES, 1) and np.isfinite(scores).all()


@EACH
def test_a_class_without_support_in_one_task(head):
    support, labels, query = tasks_of(6)
    labels[1] = [0, 0, 0, 2, 2, 2]
    scores = head(support, labels, query)
    assert not np.isnan(scores).any()
    assert (scores[1].argmax(-1) != 1).all()


@EACH
def test_what_is_not_finite_spoils_its_query_or_its_task(head):
    support, labels, query = tasks_of(6)
    whole = head(support, labels, query)
    spoilt = query.copy()
    spoilt[0, 1, 3] = np.nan
    scores = head(support, labels, spoilt)
    assert not np.isfinite(scores[0, 1]).any()
    scores[0, 1] = whole[0, 1]
    np.testing.assert_allclose(scores, whole, rtol=1e-12)
    for value in (np.nan, np.inf):
        spoilt = support.copy()
        spoilt[3, 0, 2] = value
        scores = head(spoilt, labels, query)
        np.testing.assert_allclose(scores[:3], whole[:3], rtol=1e-12)
        bad = ~np.isfinite(scores[3])
        assert bad[:, labels[3, 0]].all()
        if not isinstance(head, heads.Prototype):
            assert bad.all()


def test_adapted_falls_at_every_step_on_unit_features():
    support, labels, _ = tasks_of(5, shots=4)
    support /= np.linalg.norm(support, axis=-1, keepdims=True)
    losses = []
    for steps in range(1, 40):
        logits = heads.Adapted(steps=steps)(support, labels, support)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-np.take_along_axis(logits, labels[..., None], -1).mean(axis=(1, 2)))
    assert (np.diff(losses, axis=0) < 0).all()


def test_large_alpha_and_small_c_shrink():
    support, labels, query = tasks_of(6)
    np.testing.assert_allclose(heads.Ridge(1e9)(support, labels, query), 1 / 3, atol=1e-6)
    spread = [np.ptp(heads.Logistic(c)(support, labels, query), -1).mean() for c in (1e-6, 1, 100)]
    assert spread[0] < 1e-3 < spread[1] < spread[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heads.Ridge(alpha=0), "`alpha` must be a positive number. Received: alpha=0"),
        (lambda: heads.Logistic(C=-1.0), "`C` must be a positive number. Received: C=-1.0"),
        (lambda: heads.Adapted(steps=0), "`steps` must be a positive integer"),
        (lambda: heads.Adapted(learning_rate=math.inf), "`learning_rate` must be a positive"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@EACH
def test_bad_input(head):
    support, labels, query = tasks_of(6)
    for wrong in (
        (support[0], labels, query),
        (support, labels[:, 1:], query),
        (support, labels, query[:2]),
        (support, labels, query[..., 1:]),
        (support[:, :0], labels[:, :0], query),
    ):
        with pytest.raises(ValueError, match="A head takes features"):
            head(*wrong)
    for bad in (labels - 1, labels.astype("float32")):
        with pytest.raises(ValueError, match="`support_labels` must be integers from 0"):
            head(support, bad, query)
