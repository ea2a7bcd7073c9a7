"""Why a loss is not the same on replicas: known faults, each tried against what was found.

Every fault predicts gradients, computed on one device. The reason given is the one whose prediction the
replicas' gradients equal, be it up to a division that is missing or done twice.
"""

import numpy as np

from keras_sslmeta.testing import comparison
from keras_sslmeta.testing.loss_runs import LossRuns, Outcome

DIVIDED_TWICE = (
    "divided twice: the gradient is 1/{count} of one device's. Keras's `Loss` already divides by the number "
    "of replicas, and the strategy sums their gradients: leave out any division by "
    "`num_replicas_in_sync`, and any mean over replicas."
)
NOT_DIVIDED = (
    "not divided: the gradient is {count} times one device's. Keras divides by the number of replicas only "
    "what it reduces itself: let `call` return one value a sample, `(batch,)`, instead of a scalar."
)
SCALED = (
    "scaled: the gradient is {factor:.4g} times one device's. Something divides or multiplies by what "
    "differs between replicas and one device, the size of a share for instance."
)
LOCAL_NEGATIVES = (
    "local negatives or statistics: each replica compares, or takes statistics of, its own samples only. "
    "Gather those of all replicas inside the loss "
    "(`tf.distribute.get_replica_context().all_gather(x, axis=0)`, whose gradient sums over replicas; "
    "in losses of keras_sslmeta, `gather=True`)."
)
LOCAL_STATISTICS = (
    "local statistics: each replica takes means, variances or the like over its own samples only. Sum them "
    "over replicas inside the loss (`tf.distribute.get_replica_context().all_reduce`), or gather the "
    "samples (`all_gather`)."
)
LOCAL_EITHER = (
    "local negatives or local statistics: each replica compares, or takes statistics of, its own samples "
    "only. Gather those of all replicas inside the loss "
    "(`tf.distribute.get_replica_context().all_gather(x, axis=0)`)."
)
GATHERED_WITHOUT_GRADIENT = (
    "gathered without gradient: the loss agrees, but a sample gets no gradient from its part in the losses "
    "of other replicas. Gather by something differentiable "
    "(`tf.distribute.get_replica_context().all_gather`), and put neither `stop_gradient` nor the replica's "
    "own rows over the result."
)
UNEVEN = (
    "uneven shares are weighed alike: the gradient is the mean of the replicas' means, so that samples of a "
    "small share count for more. Keras does so with every loss, its own included: drop the remainder of "
    "the last batch, scale the gradient of a replica by n_r · R / N (subclasses of "
    "`keras_sslmeta.losses.BatchLoss` do), or check even shares alone by `uneven=False`."
)
OWN_WEIGHTS = (
    "local weights: each replica divides by the sum of its own sample weights, as Keras does under "
    "`mean_with_sample_weight`. Use `sum_over_batch_size`, or a subclass of `keras_sslmeta.losses.BatchLoss`."
)
EMPTY_SHARE = (
    "a replica without samples, as the last batch of an epoch may leave it, gives NaN or infinity: a mean "
    "over no samples, for instance. Divide by `tf.math.divide_no_nan`, or leave such shares out by "
    "`empty=False`."
)
NOT_FINITE = (
    "NaN or infinity on a small share: a variance over one sample, for instance, or the logarithm of an "
    "empty sum."
)
RANDOM = (
    "random numbers or state: two runs on one device differ already. Let the loss keep nothing from call to "
    "call, and draw from a fixed seed (`tf.random.stateless_normal`), the same on all replicas."
)
VALUE_ALONE = (
    "the gradients agree, and the value does not: something without a gradient (a constant, or a part under "
    "`stop_gradient`) is divided or multiplied by the number of replicas or the size of a share."
)
GRADIENT_ALONE = (
    "the loss agrees and its gradient does not: some part is shared between replicas without its gradient "
    "(`stop_gradient`, a variable, or a collective that is not differentiable)."
)
UNKNOWN = (
    "none of those that are known (divided twice or not at all, local negatives, local statistics, gathered "
    "without gradient, uneven shares weighed alike)."
)
MICRO_BATCHES = (
    "the loss of a sample depends on others of its batch, so micro-batches are other batches. Accumulated "
    "gradients cannot mend that: the embeddings of all micro-batches must meet in one loss."
)


def of_loss(runs: LossRuns, shares, got: Outcome, expected: Outcome, rtol: float) -> str:
    """The likely reason for what differs."""
    replicas = len(shares)
    vector, reference = as_vector(got), as_vector(expected)
    if not np.isfinite(vector).all() or not np.isfinite(got.value):
        return EMPTY_SHARE if 0 in shares else NOT_FINITE
    loose = max(10 * rtol, 1e-4)
    if comparison.are_close(vector, reference, rtol):
        return VALUE_ALONE
    factor = ratio(vector, reference)
    value_agrees = abs(got.value - expected.value) <= loose * max(abs(expected.value), 0.1)
    if comparison.are_close(vector, factor * reference, loose):
        scaled = of_factor(factor, replicas)
        return (
            f"{scaled} Or: {GATHERED_WITHOUT_GRADIENT}" if value_agrees and factor < 1 else scaled
        )
    if runs.divides_by_weights():
        return OWN_WEIGHTS
    for reason, predicted in _predictions(runs, shares, loose):
        for scale in (1.0, 1 / replicas, float(replicas)):
            if comparison.are_close(vector, scale * predicted, loose):
                return reason if scale == 1 else f"{reason} Also {of_factor(scale, replicas)}"
    return GRADIENT_ALONE if value_agrees else UNKNOWN


def of_factor(factor: float, replicas: int) -> str:
    """What makes the gradient a multiple of the right one."""
    if abs(factor * replicas - 1) < 1e-2:
        return DIVIDED_TWICE.format(count=replicas)
    if abs(factor / replicas - 1) < 1e-2:
        return NOT_DIVIDED.format(count=replicas)
    return SCALED.format(factor=factor)


def ratio(vector: np.ndarray, reference: np.ndarray) -> float:
    """The factor by which `reference` comes closest to `vector`."""
    norm = float(reference @ reference)
    return float(vector @ reference) / norm if norm else 0.0


def as_vector(outcome: Outcome) -> np.ndarray:
    """All gradients, sample by sample."""
    count = len(next(iter(outcome.gradients.values())))
    parts = [x.reshape(count, -1) for x in outcome.gradients.values() if len(x) == count]
    return np.concatenate(parts, axis=1).ravel()


def _predictions(runs, shares, rtol):
    """Faults with the gradients that they would give, the likelier first."""
    replicas, samples = len(shares), sum(shares)
    starts = np.cumsum([0, *shares[:-1]])
    of_equal_replicas = [samples / (replicas * n) if n else 0.0 for n in shares]
    if runs.is_mean and len(set(shares)) > 1:
        weighed = _on_weighed_batch(runs, np.repeat(of_equal_replicas, shares))
        if weighed is not None:
            yield UNEVEN, as_vector(weighed)

    alone = [runs.on_rows(start, n) for start, n in zip(starts, shares, strict=True) if n]
    alone = [as_vector(x) for x in alone]
    equal = 1 / replicas if runs.is_mean else 1.0
    parts = [n / samples if runs.is_mean else 1.0 for n in shares if n]
    of_samples = np.concatenate([x * part for x, part in zip(alone, parts, strict=True)])
    reference = as_vector(runs.on_rows(0, samples))
    if comparison.are_close(of_samples, reference, rtol):
        yield UNEVEN, np.concatenate(alone) * equal
    else:
        reason = _which_is_local(runs)
        yield reason, np.concatenate(alone) * equal
        yield reason, of_samples

    for weights in (of_equal_replicas, [1.0] * replicas):
        own = _without_others(runs, shares, weights if runs.is_mean else [1.0] * replicas)
        if own is not None:
            yield GATHERED_WITHOUT_GRADIENT, own


def _without_others(runs, shares, weights):
    """The gradient of each sample from the losses of its own replica's samples alone."""
    rows = []
    for rank, (n, weight) in enumerate(zip(shares, weights, strict=True)):
        only = np.repeat([weight if r == rank else 0.0 for r in range(len(shares))], shares)
        outcome = _on_weighed_batch(runs, only)
        if outcome is None:
            return None
        start = sum(shares[:rank])
        rows.append(as_vector(outcome).reshape(sum(shares), -1)[start : start + n])
    return np.concatenate(rows).ravel()


def _on_weighed_batch(runs, weights):
    """One device, with sample weights; None where the loss takes none."""
    padded = np.zeros(runs.samples)
    padded[: len(weights)] = weights
    given = runs.batch.get("sample_weight")
    if given is not None:
        padded = padded.reshape([-1] + [1] * (given.ndim - 1)) * given
    batch = {
        **runs.batch,
        "sample_weight": padded.astype("float32" if given is None else given.dtype),
    }
    try:
        return runs.on_rows(0, len(weights), batch)
    except Exception:
        return None


def _which_is_local(runs):
    """Negatives give each sample a value of its own, statistics all the same one."""
    try:
        values = runs.values()
    except Exception:
        return LOCAL_EITHER
    if values.ndim == 0 or len(values) < 2:
        return LOCAL_EITHER
    first = np.broadcast_to(values[:1], values.shape)
    return LOCAL_STATISTICS if comparison.are_close(values, first, 1e-5) else LOCAL_NEGATIVES
