"""The check of a model."""

import keras
import numpy as np

from keras_sslmeta.testing import check_loss, comparison, diagnosis, model_runs
from keras_sslmeta.testing.loss_runs import LossRuns
from keras_sslmeta.testing.model_runs import ModelRuns
from keras_sslmeta.testing.replica_runs import Plan, is_shared_out

_STEPS = 3
_MICRO_BATCH_SIZES = (2, 3)

RANDOM = (
    "random numbers: the model draws some in training (dropout, augmentation, noise), and replicas draw "
    "others than one device does. Build it without those layers, or with a rate of 0, to check the rest."
)
LOCAL_BATCH_NORMALIZATION = (
    "local statistics: {layers} normalises by the mean and variance of each replica's own share. Use "
    "`keras.layers.BatchNormalization(synchronized=True)`, or a normalisation within samples."
)
LOCAL = (
    "local negatives or local statistics: each replica compares, or takes statistics of, its own samples "
    "only, in the loss or in a layer. Gather those of all replicas, or sum the statistics over replicas."
)
STATE = (
    "local state: the gradients agree, and what is kept from step to step (a queue, a centre, a moving "
    "average) is updated from each replica's own share. Gather the samples of all replicas, or sum over "
    "replicas, before the update."
)
MICRO_BATCHES_SCALED = (
    "the gradients of micro-batches are {what} where the mean over all samples is due: weigh each by its "
    "share of the samples."
)
MICRO_BATCHES = (
    "the loss of a sample, or a layer, depends on the other samples of its micro-batch (negatives or "
    "statistics of the micro-batch alone)."
)


def make_batch(x, y, sample_weight, batch_size, plan: Plan, seed) -> dict:
    """The rows that the model is trained on."""
    batch = {"x": x, "y": y, "sample_weight": sample_weight}
    samples = len(keras.tree.flatten(x)[0])
    if isinstance(sample_weight, str) or sample_weight is True:
        rng = np.random.default_rng(seed)
        batch["sample_weight"] = rng.uniform(0.2, 2.0, samples).astype("float32")
    if batch["sample_weight"] is not None and y is None:
        batch["y"] = np.zeros(samples, "float32")  # Keras would drop the weights.
    batch = {name: value for name, value in batch.items() if value is not None}
    rows = plan.batch_size(batch_size, samples, most=12)
    batch = keras.tree.map_structure(_as_array, batch)
    return keras.tree.map_structure(lambda x: x[:rows] if is_shared_out(x, samples) else x, batch)


def run(source, batch: dict, plan: Plan, micro_batches, rtol: float, learning_rate: float) -> None:
    """Raises AssertionError where training depends on the division of the batch."""
    source = _built(source, batch)
    one = ModelRuns(source, batch, 1, learning_rate)
    for count in plan.counts:
        several = ModelRuns(source, batch, count, learning_rate, one.start)
        cases = plan.cases_of(one.samples, count)
        _assert_plan(one, several, [cases[0]] * _STEPS, rtol)
        if cases[1:]:
            # Three steps too, each with another last batch.
            _assert_plan(one, several, [*cases[1:], *cases[1:] * 2][:_STEPS], rtol)
    _assert_micro_batches(source, one, batch, micro_batches, rtol, learning_rate)


def _assert_plan(one, several, shares_of_steps, rtol):
    expected = one.steps([(sum(shares),) for shares in shares_of_steps])
    _check_finite(expected)
    got = several.steps(shares_of_steps)
    for k, (mine, other) in enumerate(zip(got, expected, strict=True)):
        found = model_runs.differences(mine, other, rtol)
        if found:
            shares = shares_of_steps[k]
            reason = _reason(one, shares, k, mine, other, found, rtol)
            where = f"step {k + 1} of {len(got)} {comparison.place(shares)}"
            raise AssertionError(
                comparison.report(type(one.model).__name__, where, found[:8], reason)
            )


def _reason(one, shares, step, got, expected, found, rtol):
    loose = max(10 * rtol, 1e-4)
    vector, reference = model_runs.gradient_vector(got), model_runs.gradient_vector(expected)
    if got.drew:
        return RANDOM
    if not np.isfinite(vector).all():
        return diagnosis.EMPTY_SHARE if 0 in shares else diagnosis.NOT_FINITE
    of_loss = _reason_in_loss(one, shares, step, rtol)
    if of_loss:
        return f"in the loss, {of_loss}"
    factor = diagnosis.ratio(vector, reference)
    agree = comparison.are_close(vector, reference, loose)
    if not agree and comparison.are_close(vector, factor * reference, loose):
        return diagnosis.of_factor(factor, len(shares))
    layers = _local_batch_normalizations(one.model)
    if layers:
        return LOCAL_BATCH_NORMALIZATION.format(layers=", ".join(layers))
    if agree:
        return (
            STATE if any(x.quantity.startswith("state") for x in found) else diagnosis.VALUE_ALONE
        )
    return _reason_by_shares(one, shares, step, vector, reference, loose)


def _reason_by_shares(one, shares, step, vector, reference, loose):
    if step == 0:
        starts = np.cumsum([0, *shares[:-1]])
        alone = [
            model_runs.gradient_vector(one.steps([(n,)], start)[0]) * (1.0 if n else 0.0)
            for start, n in zip(starts, shares, strict=True)
            if n
        ]
        sizes = [n for n in shares if n]
        mean_of_replicas = sum(alone) / len(shares)
        of_samples = sum(n * x for n, x in zip(sizes, alone, strict=True)) / sum(sizes)
        compares = not comparison.are_close(of_samples, reference, loose)
        for predicted in (mean_of_replicas, of_samples):
            if comparison.are_close(vector, predicted, loose):
                return LOCAL if compares else diagnosis.UNEVEN
    return (
        diagnosis.UNKNOWN
        if len(set(shares)) == 1
        else f"{diagnosis.UNEVEN} (A guess: even shares agree.)"
    )


def _reason_in_loss(one, shares, step, rtol):
    """What is wrong with the model's loss on its own outputs, if anything is."""
    config = one.model._compile_config.config
    try:
        loss = check_loss.as_loss(config.get("loss"))
        batch = model_runs.rolled(one.batch, one.samples, step)
        y_pred = one.model(batch["x"], training=False)
        example = {**batch, "y_pred": keras.tree.map_structure(_as_array, y_pred)}
        if "y" in example:
            example["y_true"] = example.pop("y")
        example.pop("x")
        return check_loss.find(LossRuns(loss, example), shares, rtol)[1]
    except Exception:  # A loss for each output, or what only the model's own step can feed.
        return ""


def _assert_micro_batches(source, one, batch, asked, rtol, learning_rate):
    has_it = hasattr(one.model, "micro_batch_size")
    if asked and not has_it:
        raise ValueError(
            "`micro_batches=True` needs a model with an attribute `micro_batch_size`. "
            f"Received: {type(one.model).__name__}"
        )
    if not has_it or asked is False:
        return
    plan = [(one.samples,)] * _STEPS
    whole = ModelRuns(source, batch, 1, learning_rate, one.start, micro_batch_size=None)
    expected = whole.steps(plan)
    for size in _MICRO_BATCH_SIZES:
        runs = ModelRuns(source, batch, 1, learning_rate, one.start, micro_batch_size=size)
        for k, (mine, other) in enumerate(zip(runs.steps(plan), expected, strict=True)):
            found = model_runs.differences(mine, other, rtol)
            if found:
                where = f"step {k + 1} of {_STEPS} on one device with micro_batch_size={size}"
                reason = _micro_batch_reason(mine, other, -(-one.samples // size), rtol)
                raise AssertionError(
                    comparison.report(
                        type(one.model).__name__, where, found[:8], reason, "micro_batch_size=None"
                    )
                )


def _micro_batch_reason(got, expected, count, rtol):
    if got.drew:
        return RANDOM
    vector, reference = model_runs.gradient_vector(got), model_runs.gradient_vector(expected)
    factor = diagnosis.ratio(vector, reference)
    if comparison.are_close(vector, factor * reference, max(10 * rtol, 1e-4)):
        if abs(factor / count - 1) < 1e-2:
            return MICRO_BATCHES_SCALED.format(what="summed")
        if abs(factor * count - 1) < 1e-2:
            return MICRO_BATCHES_SCALED.format(what="divided twice")
        return diagnosis.SCALED.format(factor=factor)
    return MICRO_BATCHES


def _local_batch_normalizations(model):
    return [
        f"BatchNormalization '{layer.name}'"
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and not layer.synchronized
        and layer.trainable
    ]


def _built(source, batch):
    if isinstance(source, keras.Model):
        if not source.built:
            source(batch["x"])
        return source
    if not callable(source):
        raise ValueError(
            "With `x`, the first argument must be a compiled keras.Model or a function that returns one. "
            f"Received: {source!r}"
        )
    return source


def _as_array(x):
    x = x.numpy() if hasattr(x, "numpy") else x
    x = np.asarray(x)
    return x.astype("float32") if x.dtype == "float64" else x


def _check_finite(steps):
    for step in steps:
        if not np.isfinite(model_runs.gradient_vector(step)).all():
            raise ValueError(
                "On one device the gradient is NaN or infinite already: there is nothing to compare with. "
                "Pass other data, or a smaller `learning_rate`."
            )
