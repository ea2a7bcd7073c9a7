"""The check of a loss."""

from typing import Any

import keras
import numpy as np

from keras_sslmeta.testing import comparison, diagnosis, example_batch
from keras_sslmeta.testing.loss_runs import FunctionLoss, LossRuns
from keras_sslmeta.testing.replica_runs import Plan


def as_loss(loss: Any) -> keras.losses.Loss:
    """A `Loss`, of whatever `compile` takes for one."""
    found = keras.losses.get(loss) if isinstance(loss, (str, dict)) else loss
    if isinstance(found, keras.losses.Loss):
        return found
    if not callable(found) or isinstance(found, type):
        raise ValueError(
            "`loss` must be a keras.losses.Loss, a function of y_true and y_pred, or the name of one; "
            f"or, with `x`, a compiled model or a function that returns one. Received: loss={loss!r}"
        )
    return FunctionLoss(found)


def make_batch(loss, y_true, y_pred, sample_weight, batch_size, plan, dtype, seed):
    """What the loss is run on."""
    given = [x for x in (y_pred, y_true) if x is not None]
    samples = len(keras.tree.flatten(given[0])[0]) if given else plan.batch_size(batch_size, None)
    if given:
        plan.batch_size(samples, samples)
    batch = example_batch.make(loss, y_true, y_pred, sample_weight, samples, dtype, seed)
    if given and batch_size is not None:
        rows = plan.batch_size(batch_size, samples)
        batch = keras.tree.map_structure(lambda x: x[:rows] if len(x) == samples else x, batch)
    return batch


def run(loss, batch: dict, plan: Plan, micro_batches: bool, rtol: float) -> None:
    """Raises AssertionError where the loss depends on the division of the batch."""
    runs = LossRuns(loss, batch)
    subject = loss.name if isinstance(loss, FunctionLoss) else type(loss).__name__
    _assert_repeatable(runs, subject, rtol)
    for shares in plan.cases(runs.samples):
        _assert_case(runs, shares, subject, rtol)
    if micro_batches:
        _assert_micro_batches(runs, subject, rtol)


def find(runs: LossRuns, shares, rtol: float) -> "tuple[list, str]":
    """What differs on these shares, with the likely reason; nothing and "" where all is well."""
    expected = runs.on_rows(0, sum(shares))
    _check_finite(expected, sum(shares))
    got = runs.on_shares(shares)
    found = runs.differences(got, expected, shares, rtol)
    if found:
        return found, diagnosis.of_loss(runs, shares, got, expected, rtol)
    rate = runs.learning_rate(expected)
    expected_weights = runs.after_steps((sum(shares),), rate)
    got_weights = runs.after_steps(shares, rate)
    # Steps amplify the rounding of the first.
    difference = comparison.compare(
        "factors of `y_pred` after three steps", got_weights, expected_weights, rtol
    )
    return ([difference], diagnosis.UNKNOWN) if difference else ([], "")


def _assert_case(runs, shares, subject, rtol):
    found, reason = find(runs, shares, rtol)
    if found:
        raise AssertionError(comparison.report(subject, comparison.place(shares), found, reason))


def _assert_repeatable(runs, subject, rtol):
    once, again = runs.on_rows(0, runs.samples), runs.on_rows(0, runs.samples)
    _check_finite(once, runs.samples)
    found = runs.differences(again, once, (runs.samples,), rtol)
    if found:
        where = "a second run on one device, with the same batch,"
        raise AssertionError(
            comparison.report(subject, where, found, diagnosis.RANDOM, "the first")
        )


def _assert_micro_batches(runs, subject, rtol):
    expected = runs.on_rows(0, runs.samples)
    for size in sorted({max(1, runs.samples // 2), min(3, runs.samples)}, reverse=True):
        sizes = [min(size, runs.samples - start) for start in range(0, runs.samples, size)]
        starts = np.cumsum([0, *sizes[:-1]])
        parts = [runs.on_rows(start, n) for start, n in zip(starts, sizes, strict=True)]
        weights = [n / runs.samples if runs.is_mean else 1.0 for n in sizes]
        got = type(expected)(
            sum(w * part.value for w, part in zip(weights, parts, strict=True)),
            {
                name: np.concatenate(
                    [w * part.gradients[name] for w, part in zip(weights, parts, strict=True)]
                )
                for name in expected.gradients
            },
        )
        found = runs.differences(got, expected, tuple(sizes), rtol, "micro-batch")
        if found:
            where = (
                f"the sum of micro-batches of {', '.join(map(str, sizes))} samples on one device"
            )
            reason = diagnosis.MICRO_BATCHES
            factor = diagnosis.ratio(diagnosis.as_vector(got), diagnosis.as_vector(expected))
            scaled = factor * diagnosis.as_vector(expected)
            if comparison.are_close(diagnosis.as_vector(got), scaled, max(10 * rtol, 1e-4)):
                reason = diagnosis.SCALED.format(factor=factor)
            whole = "the batch as a whole"
            raise AssertionError(comparison.report(subject, where, found, reason, whole))


def _check_finite(outcome, samples):
    gradients = outcome.gradients.values()
    if not np.isfinite(outcome.value) or not all(np.isfinite(x).all() for x in gradients):
        raise ValueError(
            f"On one device, with {samples} samples, the loss or its gradient is NaN or infinite already "
            f"(loss={outcome.value}): there is nothing to compare with. Pass other `y_true=`, `y_pred=`."
        )
