"""A linear classifier on frozen features."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sslmeta.data.labelled_arrays import labelled_arrays
from keras_sslmeta.evaluation.features import encode
from keras_sslmeta.evaluation.linear_probe_result import LinearProbeResult
from keras_sslmeta.mechanisms import arguments, sample_nest

_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_HELD_OUT = 0.2  # Of the training samples, to choose C on.
_LONG = 10**6  # Numbers of features, above which choosing C takes more than some seconds.
_MOST_ITERATIONS = 1000  # Of L-BFGS.


def linear_probe(
    encoder: Any,
    train: Any,
    test: Any,
    C: float | Sequence[float] | None = None,  # noqa: N803 (scikit-learn's name)
    fraction: float = 1.0,
    classifier: Any = None,
    batch_size: int = 256,
    seed: int = 0,
    verbose: int | str = "auto",
) -> LinearProbeResult:
    """Measures how well a linear classifier tells classes apart on an encoder's frozen features.

    ```
    min over W, b of  Σ_i cross-entropy(y_i, softmax(W x_i + b)) + |W|² / (2 C)
    ```

    with x the features less their mean, divided by their standard deviation, both of the training
    samples. This is scikit-learn's `LogisticRegression`, fitted to convergence by L-BFGS, and so
    without the learning rate and the schedule that SGD probes have to be tuned by. `C` is chosen
    among several on a fifth of the training samples, held out and stratified; the classifier is
    then fitted to them all. No test sample takes part in that choice. Each `C` of the six costs
    one fit: at 10,000 samples of 128 numbers and 10 classes some seconds, all together, of 1,024 numbers a
    minute or more; a single `C` fits once.

    Training samples whose features are not finite are left out, and such test samples count as
    wrong, as do those of a class that no training sample has.

    Args:
        encoder: a `keras.Model`, whose `predict` gives the features (that of our self-supervised
            models gives the encoder's output); another callable from an array of samples to
            features; or None where the samples are features already.
        train: `(x, y)`, samples `(n, …)`, for encoders of several inputs a dictionary or tuple of such
            arrays, and a label of each, `(n,)`, integers or strings; or a finite `tf.data.Dataset` of
            such pairs, batched or not.
        test: the same, of the samples that are predicted.
        C: inverse of the penalty; or several, to choose from. Default: from 1e-4 to 10 by factors
            of 10.
        fraction: part of the training samples that are used, drawn from each class alike, one
            sample a class at least; 0.1 and 0.01 are the usual ones. Defaults to 1.
        classifier: a scikit-learn classifier with `decision_function` or `predict_proba`, of which
            a clone is fitted to the standardised features. Default: logistic regression.
        batch_size: samples encoded at a time. Defaults to 256.
        seed: of the draws of samples. Defaults to 0.
        verbose: 0 for silence, 1 for a progress bar over the fits, 2 for a line at the end. Defaults to
            "auto", which is 1 for a choice of `C` on a million numbers or more.

    Returns:
        A `LinearProbeResult`: `accuracy`, `half_interval`, `macro_accuracy`, `top_k_accuracy(k)`,
        `paired_difference(other)` and the `C` that was chosen.

    Raises:
        ValueError: if an argument is out of range, shapes don't fit, a training set has a single
            class, or both `C` and `classifier` are given.

    Example:
    >>> random = np.random.default_rng(0)
    >>> y = np.repeat(["ant", "bee"], 50)
    >>> x = random.normal(size=(100, 4)) + 6 * (y == "bee")[:, np.newaxis]
    >>> linear_probe(None, (x[::2], y[::2]), (x[1::2], y[1::2]), C=1.0).accuracy
    1.0

    Reference:
        - Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations,
          section 4.2 and appendix B.8 (L-BFGS on frozen features). https://arxiv.org/abs/2002.05709
        - Kornblith, Shlens and Le 2019, Do Better ImageNet Models Transfer Better?, appendix A.4
          (the choice of the penalty). https://arxiv.org/abs/1805.08974
    """
    grid = _checked_grid(C, classifier)
    _check_fraction(fraction)
    arguments.count("batch_size", batch_size)
    random = np.random.default_rng(arguments.seed(seed))
    arguments.verbosity(verbose)
    train_x, train_y = labelled_arrays(train, "train")
    test_x, test_y = labelled_arrays(test, "test")
    if (train_y.dtype.kind in "US") != (test_y.dtype.kind in "US"):
        raise ValueError(
            "`train` and `test` must have labels of one type. "
            f"Received: {train_y.dtype} and {test_y.dtype}"
        )
    if fraction < 1:
        kept = stratified(train_y, fraction, random)
        train_x, train_y = sample_nest.take(train_x, kept), train_y[kept]
    features, asked = encode(encoder, train_x, batch_size), encode(encoder, test_x, batch_size)
    if features.shape[1] != asked.shape[1]:
        raise ValueError(
            "`test` must give features of as many numbers as `train`. "
            f"Received: {asked.shape[1]} and {features.shape[1]}"
        )
    finite = np.isfinite(features).all(axis=1)
    features, train_y = features[finite], train_y[finite]
    classes, class_ids = np.unique(train_y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            "`train` must hold finite features of two classes at least. "
            f"Received: {len(features)} of them, of {len(classes)} classes"
        )
    fits = len(grid) + 1 if len(grid) > 1 else 1
    is_short = fits == 1 or features.size < _LONG
    bar = keras.utils.Progbar(fits, verbose=arguments.verbosity(verbose, is_short), unit_name="fit")
    chosen = None
    if classifier is None:
        chosen = _best(features, class_ids, grid, random, bar)
        model = _logistic(chosen)
    else:
        from sklearn.base import clone

        model = clone(classifier)
    pipeline = _standardised(model).fit(features, class_ids)
    bar.update(fits)
    ranks = _ranks(pipeline, classes, asked, test_y)
    return LinearProbeResult(ranks, test_y, len(classes), chosen, len(features))


def stratified(labels: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """Indices of that part of each class, one sample at least, in increasing order."""
    kept = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        kept.append(random.permutation(members)[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(kept))


def _best(features, labels, grid, random, bar) -> float:
    """The C that is most accurate on held-out samples; of equals the smallest."""
    if len(grid) == 1:
        return grid[0]
    learnt = stratified(labels, 1 - _HELD_OUT, random)
    held = np.setdiff1d(np.arange(len(labels)), learnt)
    if len(held) == 0:
        raise ValueError(
            "`train` must hold samples to choose `C` on, three of a class at least; or pass one "
            f"number, `C=`. Received: {len(labels)} samples of {len(np.unique(labels))} classes"
        )
    scores = []
    with warnings.catch_warnings():
        # Of values of C that are not taken; the last fit says it for itself.
        warnings.filterwarnings("ignore", category=_convergence_warning())
        for number, strength in enumerate(grid, 1):
            model = _standardised(_logistic(strength)).fit(features[learnt], labels[learnt])
            scores.append(model.score(features[held], labels[held]))
            bar.update(number)
    return grid[int(np.argmax(scores))]


def _logistic(strength: float):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=_MOST_ITERATIONS)


def _standardised(model):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    # Float64: in float32, the line search of L-BFGS stops early.
    return make_pipeline(FunctionTransformer(_as_float64), StandardScaler(), model)


def _as_float64(features: np.ndarray) -> np.ndarray:
    return features.astype("float64")


def _convergence_warning():
    from sklearn.exceptions import ConvergenceWarning

    return ConvergenceWarning


def _ranks(model, classes, features, labels) -> np.ndarray:
    """How many classes score above the true one; of equal scores the first class is above."""
    ranks = np.full(len(features), len(classes))
    places = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    usable = np.isfinite(features).all(axis=1) & (classes[places] == labels)
    if not usable.any():
        return ranks
    score = getattr(model, "decision_function", None) or model.predict_proba
    scores = np.asarray(score(features[usable]))
    if scores.ndim == 1:  # Of two classes: the score of the second.
        scores = np.stack([-scores, scores], axis=1)
    place = places[usable][:, np.newaxis]
    own = np.take_along_axis(scores, place, axis=1)
    is_before = np.arange(len(classes)) < place
    ranks[usable] = ((scores > own) | ((scores == own) & is_before)).sum(axis=1)
    return ranks


def _checked_grid(value, classifier) -> tuple[float, ...]:
    """The values of C to choose from, in increasing order."""
    if classifier is not None:
        if value is not None:
            raise ValueError(
                f"`C` must be left alone where a `classifier` is given. Received: C={value!r}"
            )
        has_scores = any(hasattr(classifier, n) for n in ("decision_function", "predict_proba"))
        if not hasattr(classifier, "fit") or not has_scores:
            raise ValueError(
                "`classifier` must be a scikit-learn classifier with `decision_function` or "
                f"`predict_proba`. Received: {classifier!r}"
            )
        return ()
    values = _GRID if value is None else value if isinstance(value, (list, tuple)) else (value,)
    if not values:
        raise ValueError("`C` must be a positive number, or several. Received: C=[]")
    return tuple(sorted(arguments.positive_number("C", number) for number in values))


def _check_fraction(fraction) -> None:
    if not arguments.is_number(fraction) or not 0 < fraction <= 1:
        raise ValueError(
            f"`fraction` must be a number above 0, up to 1. Received: fraction={fraction!r}"
        )
