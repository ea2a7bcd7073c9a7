"""`assert_batch_invariant`: whether replicas train as one device does, and if not, why."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.testing import check_loss, check_model, replica_runs


def assert_batch_invariant(
    loss: "keras.losses.Loss | Callable | str | keras.Model",
    x: Any = None,
    y: Any = None,
    *,
    y_true: Any = None,
    y_pred: Any = None,
    sample_weight: Any = None,
    batch_size: "int | None" = None,
    replicas: "int | Sequence[int] | None" = None,
    uneven: bool = True,
    empty: "bool | None" = None,
    micro_batches: "bool | None" = None,
    rtol: float = 1e-5,
    dtype: str = "float32",
    learning_rate: float = 0.05,
    seed: int = 0,
) -> None:
    """Asserts that a loss or model computes the same however the global batch is divided.

    The same batch goes through one device and through N replicas of a `tf.distribute` strategy, in even
    shares and in uneven ones as the last batch of an epoch has them: one sample short, a single sample,
    none. Losses, gradients and weights after three steps must be equal. If they are not, the error tells
    which of them differs by how much, and the likely reason, which is found by trying the known faults
    against the numbers: divided twice or not at all, local negatives, local statistics, gathered without
    gradient, uneven shares weighed alike, random numbers, NaN of an empty share.

    It runs in this process, on its logical devices, as often as you like. Two suffice: call
    `keras_sslmeta.testing.configure_replicas(2)` in `conftest.py`. With more of them, as many replicas as
    there are devices are tested besides two.

    **A loss** needs nothing else. It is given random embeddings, and as `y_true` what it takes: None, labels
    or targets, the first of these; a loss that takes several is tested with the others by `y_true=`. Compared
    are its value (of a sum, the sum over replicas), the gradient of each sample in `y_pred` (and in
    `y_true`, where it is made of floats), and factors on the entries of `y_pred` after three steps of
    gradient descent.

    **A model** comes with data: `assert_batch_invariant(model, x, y)`. It is not changed: copies of it are
    trained by its own `train_step` for three steps, of plain gradient descent, since Adam would hide a
    gradient that is divided twice. Compared are the logs, the gradient and value of each weight, and state
    such as moving averages. Where the copy fails, pass a function that builds and compiles the model. Layers
    that draw random numbers (dropout, augmentation) draw others on replicas: leave them out. A model with an
    attribute `micro_batch_size` is also run on one device with that set to 2 and to 3, against None.

    Keras's own losses, `MeanSquaredError` for one, are exact on even shares alone, and fail for that
    reason unless `uneven=False`.

    Args:
        loss: a `keras.losses.Loss`, a function of `y_true` and `y_pred`, or the name of one; with `x`, a
            compiled `keras.Model` or a function without arguments that returns one.
        x: for a model: inputs, an array or a structure of them.
        y: for a model: targets, likewise, or None.
        y_true: for a loss: targets, an array or a structure of them. What has as many rows as `y_pred` is
            shared out, anything else, and what is named "memory…" in a dict, is given whole to every
            replica. Defaults to None: found out.
        y_pred: for a loss: predictions, likewise. Defaults to None: random embeddings `(batch, 2, 8)`, or
            `(batch, 8)` where the loss refuses those.
        sample_weight: one weight a sample, or `"random"`. Defaults to None.
        batch_size: samples of the global batch. Defaults to None: all rows given, up to 12 of a model's;
            12 random ones, or three a replica where that is more.
        replicas: number of replicas, or several. Defaults to None: 2, and the number of logical devices.
        uneven: whether uneven shares are tested too. Defaults to True.
        empty: whether these include a replica without samples. Defaults to None: as `uneven`.
        micro_batches: for a loss, whether the mean over micro-batches, weighed by their samples, must equal
            the batch, as it does for losses that do not compare samples. For a model, whether its
            `micro_batch_size` is tested, which it must have then. Defaults to None: a model's, if it has one.
        rtol: largest difference allowed, relative to the largest entry expected (of a model: to the largest
            entry of all its gradients, or weights); a fault in a part that is so much smaller than the rest
            goes unseen. Defaults to 1e-5, which suits float32; use about 1e-2
            for float16 and 5e-2 for bfloat16, in which shares are summed in another order.
        dtype: of the embeddings and other floats that a loss gets. Defaults to `"float32"`.
        learning_rate: for a model: of gradient descent. Defaults to 0.05.
        seed: of random data. Defaults to 0.

    Raises:
        AssertionError: if something depends on how the batch is divided.
        RuntimeError: if there are fewer logical devices than replicas, or if called in a strategy's scope.
        ValueError: if an argument is not as described; if the loss cannot be run, or is NaN or infinite,
            on one device.

    Example:

    ```python
    import keras_sslmeta as ksm

    ksm.testing.configure_replicas(2)  # In conftest.py: before TensorFlow makes its first tensor.
    ksm.testing.assert_batch_invariant(ksm.losses.NTXent())
    try:
        ksm.testing.assert_batch_invariant(ksm.losses.NTXent(gather=False))
    except AssertionError as error:
        assert "local negatives" in str(error)
    ```
    """
    _check(rtol, learning_rate)
    seed = arguments.seed(seed)
    counts = replica_runs.replica_counts(replicas)
    plan = replica_runs.Plan(counts, bool(uneven), bool(uneven if empty is None else empty))
    if isinstance(loss, keras.Model) or x is not None:
        _refuse(y_true=y_true, y_pred=y_pred)
        if x is None:
            raise ValueError("A model needs inputs: `assert_batch_invariant(model, x, y)`.")
        batch = check_model.make_batch(x, y, sample_weight, batch_size, plan, seed)
        check_model.run(loss, batch, plan, micro_batches, rtol, learning_rate)
        return
    _refuse(y=y)
    loss = check_loss.as_loss(loss)
    batch = check_loss.make_batch(
        loss, y_true, y_pred, sample_weight, batch_size, plan, dtype, seed
    )
    check_loss.run(loss, batch, plan, bool(micro_batches), rtol)


def _check(rtol, learning_rate):
    arguments.positive_number("rtol", rtol)
    arguments.positive_number("learning_rate", learning_rate)


def _refuse(**given):
    for name, value in given.items():
        if value is not None:
            remedy = "`y_true=` and `y_pred=`" if name == "y" else "`x` and `y`"
            what = "loss" if name == "y" else "model"
            raise ValueError(
                f"A {what} takes {remedy}. Received: {name} of type {type(value).__name__}"
            )
