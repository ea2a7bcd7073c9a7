"""Classifiers that are fitted to the few labelled features of each episode, all episodes at once.

A head is any callable `head(support_features, support_labels, query_features) → scores`. Write your
own as a function of that form:

- `support_features`: `(tasks, s, dim)`, and `query_features`: `(tasks, q, dim)`, float32 arrays.
- `support_labels`: `(tasks, s)`, integers from 0 to `ways - 1`.
- scores: `(tasks, q, ways)`; a query goes to the class of the highest.

Features come at unit length unless `few_shot` is told `normalize=False`. A head sees no more than
these arrays, so the encoder stays as it is.
"""

import dataclasses

import numpy as np

from keras_sslmeta.mechanisms import arguments

_MOST_ITERATIONS = 1000  # Of L-BFGS, as in Tian et al.'s code.


@dataclasses.dataclass(frozen=True)
class Prototype:
    """The nearest prototype, the mean of a class's support features.

    ```
    score(q, c) = 2 q·p_c - |p_c|²,    p_c = mean of the support features of class c
    ```

    which is `-|q - p_c|²` up to a number that all classes of a query share. A class without
    a finite prototype has -inf.

    Example:
    >>> head = Prototype()
    >>> support, query = [[[0.0, 0.0], [4.0, 0.0]]], [[[1.0, 1.0]]]
    >>> head(support, [[0, 1]], query)
    array([[[ 0., -8.]]])

    Reference:
        - Snell, Swersky and Zemel 2017, Prototypical Networks for Few-shot Learning
    """

    def __call__(self, support_features, support_labels, query_features) -> np.ndarray:
        """Scores of the queries, `(tasks, q, ways)` in float64."""
        support, labels, query = _checked(support_features, support_labels, query_features)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            # Float64, since |p|² - 2 q·p cancels where all features share a large mean.
            prototypes = _means(support, labels)  # (tasks, ways, dim)
            points = query.astype("float64")
            lengths = (prototypes**2).sum(-1)[:, np.newaxis]
            # -|q - p|² without -|q|², the same for every prototype.
            scores = 2 * points @ np.swapaxes(prototypes, 1, 2) - lengths
        return np.where(np.isnan(scores), -np.inf, scores)


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Ridge regression on one-hot labels, in closed form.

    ```
    min over W, b of  Σ_i |y_i - W x_i - b|² + alpha |W|²
    ```

    with an intercept `b` that is not penalised, as `sklearn.linear_model.Ridge` has it. Solved with
    a matrix of the support's size, or of the features' where these are fewer.

    Args:
        alpha: of the penalty. Defaults to 1, scikit-learn's. R2-D2's code starts from 50, on
            features that are not of unit length.

    Raises:
        ValueError: if `alpha` is not a positive number.

    Example:
    >>> support, query = [[[0.0, 1.0], [1.0, 0.0]]], [[[0.0, 1.0]]]
    >>> Ridge(alpha=1.0)(support, [[0, 1]], query)
    array([[[0.75, 0.25]]])

    Reference:
        - Bertinetto et al. 2019, Meta-learning with Differentiable Closed-form Solvers, Eq. 4 and 6
    """

    alpha: float = 1.0

    def __post_init__(self):
        arguments.positive_number("alpha", self.alpha)

    def __call__(self, support_features, support_labels, query_features) -> np.ndarray:
        """Scores of the queries, `(tasks, q, ways)` in float64; NaN where the support has a NaN."""
        support, labels, query = _checked(support_features, support_labels, query_features)
        x, y = support.astype("float64"), _one_hot(labels)
        with np.errstate(invalid="ignore", over="ignore"):
            mean_x, mean_y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
            x, y = x - mean_x, y - mean_y
            transposed = np.swapaxes(x, 1, 2)
            if x.shape[1] <= x.shape[2]:  # Woodbury: fewer samples than features.
                weights = transposed @ np.linalg.solve(self._penalised(x @ transposed), y)
            else:
                weights = np.linalg.solve(self._penalised(transposed @ x), transposed @ y)
            return (query.astype("float64") - mean_x) @ weights + mean_y

    def _penalised(self, products: np.ndarray) -> np.ndarray:
        return products + self.alpha * np.eye(products.shape[-1])


@dataclasses.dataclass(frozen=True)
class Logistic:
    """Logistic regression, fitted to each episode by scikit-learn.

    ```
    min over W, b of  Σ_i cross-entropy(y_i, softmax(W x_i + b)) + |W|² / (2 C)
    ```

    that is `sklearn.linear_model.LogisticRegression(C=C)` with L-BFGS; of two classes, with one
    weight vector. With features of unit length this is the head of "a good embedding is all you
    need". 600 episodes of 5 ways and 128 numbers take one or two seconds of one core.

    Args:
        C: inverse of the penalty, from above 0. Defaults to 1, scikit-learn's, as Tian et al. have
            it.

    Raises:
        ValueError: if `C` is not a positive number.

    Example:
    >>> support, query = [[[0.0, 1.0], [1.0, 0.0]]], [[[0.1, 0.9], [0.9, 0.1]]]
    >>> Logistic()(support, [[0, 1]], query).argmax(axis=-1)
    array([[0, 1]])

    Reference:
        - Tian et al. 2020, Rethinking Few-Shot Image Classification: A Good Embedding Is All You
          Need?, section 3.2, and its code (L-BFGS, C = 1, unit features)
    """

    C: float = 1.0

    def __post_init__(self):
        arguments.positive_number("C", self.C)

    def __call__(self, support_features, support_labels, query_features) -> np.ndarray:
        """Scores of the queries, `(tasks, q, ways)` in float64; NaN where the support or the query
        is not finite, -inf for a class without support."""
        from threadpoolctl import threadpool_limits

        support, labels, query = _checked(support_features, support_labels, query_features)
        support, query = support.astype("float64"), query.astype("float64")
        scores = np.full((*query.shape[:2], int(labels.max()) + 1), np.nan)
        # At so few samples threads mostly wait for each other.
        with threadpool_limits(1):
            for task in np.flatnonzero(np.isfinite(support).all(axis=(1, 2))):
                usable = np.isfinite(query[task]).all(axis=1)
                if usable.any():
                    scores[task, usable] = -np.inf
                    present, values = self._fitted(support[task], labels[task], query[task, usable])
                    scores[task, np.flatnonzero(usable)[:, np.newaxis], present] = values
        return scores

    def _fitted(self, x, y, query) -> tuple[np.ndarray, np.ndarray]:
        """The classes that one episode has, and the queries' scores for each of them."""
        from sklearn.linear_model import LogisticRegression

        present = np.unique(y)
        if len(present) == 1:  # Which scikit-learn refuses.
            return present, np.zeros((len(query), 1))
        model = LogisticRegression(C=self.C, max_iter=_MOST_ITERATIONS).fit(x, y)
        values = model.decision_function(query)
        if len(present) == 2:  # One number a query, the logit of the second class.
            values = np.stack([-values, values], axis=1) / 2
        return present, values


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A linear softmax layer, trained on the support by some steps of gradient descent from zero.

    ```
    W, b ← W, b - learning_rate · gradient of  mean_i cross-entropy(y_i, softmax(W x_i + b))
    ```

    on the whole support set at each step. This adapts the last layer alone: the features are frozen,
    as in the Baseline of "a closer look". What MAML does to a whole network is what a `MAML` given
    to `few_shot` is measured on.

    Args:
        steps: of gradient descent, from 1. Defaults to 100, Chen et al.'s passes over the support.
        learning_rate: defaults to 1. On features of unit length the loss then falls at every step:
            the largest curvature of the loss is (|x|² + 1) / 2 = 1. Chen et al. have 0.01 (with
            batches of 4, momentum and weight decay) on features that are not of unit length.

    Raises:
        ValueError: if `steps` is not a positive integer or `learning_rate` not a positive number.

    Example:
    >>> support, query = [[[0.0, 1.0], [1.0, 0.0]]], [[[0.0, 1.0]]]
    >>> Adapted(steps=1, learning_rate=1.0)(support, [[0, 1]], query)
    array([[[ 0.25, -0.25]]])

    Reference:
        - Chen et al. 2019, A Closer Look at Few-shot Classification, section 3.2 (Baseline)
    """

    steps: int = 100
    learning_rate: float = 1.0

    def __post_init__(self):
        arguments.count("steps", self.steps)
        arguments.positive_number("learning_rate", self.learning_rate)

    def __call__(self, support_features, support_labels, query_features) -> np.ndarray:
        """Scores of the queries, `(tasks, q, ways)` in float64; NaN where the support has a NaN."""
        support, labels, query = _checked(support_features, support_labels, query_features)
        x, y = support.astype("float64"), _one_hot(labels)
        columns = np.swapaxes(x, 1, 2)
        rate = self.learning_rate / x.shape[1]
        with np.errstate(invalid="ignore", over="ignore"):
            # From zero, W = Σ_i a_i x_iᵀ and b = Σ_i a_i at every step: steps in `a` are steps in
            # (W, b), and cost nothing in the number of features. 1 + x·x' is the bias's share too.
            products = x @ columns + 1  # (tasks, s, s)
            coefficients = np.zeros_like(y)
            for _ in range(self.steps):
                coefficients += rate * (y - _softmax(products @ coefficients))
            return (query.astype("float64") @ columns + 1) @ coefficients


def _checked(support_features, support_labels, query_features) -> tuple:
    """Arrays of shapes that agree; features keep their dtype."""
    support, query = np.asarray(support_features), np.asarray(query_features)
    labels = np.asarray(support_labels)
    agree = (
        support.ndim == query.ndim == 3
        and support.shape[::2] == query.shape[::2]
        and labels.shape == support.shape[:2]
        and labels.size > 0
    )
    if not agree:
        raise ValueError(
            "A head takes features (tasks, s, dim), labels (tasks, s) and features (tasks, q, dim). "
            f"Received: shapes {support.shape}, {labels.shape} and {query.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            "`support_labels` must be integers from 0 to ways - 1. "
            f"Received: dtype={labels.dtype}, from {labels.min()}"
        )
    return support, labels, query


def _means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean of each class, `(tasks, ways, dim)` in float64; NaN for a class without samples."""
    tasks, samples, dim = features.shape
    ways = int(labels.max()) + 1
    order = np.argsort(labels, axis=1, kind="stable")
    expected = np.repeat(np.arange(ways), samples // ways)
    is_even = samples % ways == 0 and (np.take_along_axis(labels, order, 1) == expected).all()
    if is_even:  # As many samples of each class, as is usual.
        by_class = np.take_along_axis(features, order[..., np.newaxis], axis=1)
        return by_class.reshape(tasks, ways, -1, dim).mean(axis=2, dtype="float64")
    means = np.full((tasks, ways, dim), np.nan)
    for task, way in np.ndindex(tasks, ways):
        members = features[task, labels[task] == way]
        if len(members):
            means[task, way] = members.mean(axis=0, dtype="float64")
    return means


def _one_hot(labels: np.ndarray) -> np.ndarray:
    """`(tasks, s, ways)` in float64."""
    return np.eye(int(labels.max()) + 1)[labels]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
