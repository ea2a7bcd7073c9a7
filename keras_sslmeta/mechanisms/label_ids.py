"""Labels compared exactly: integers of any type, or strings, and never as floats."""

from numbers import Integral

import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica, xla


def check(name: str, labels, batch: "int | None" = None) -> tf.Tensor:
    """One integer, truth value or string a sample, `(batch,)`; a trailing axis of one is dropped.

    Raises:
        ValueError: if the labels are floats, in which different labels may have collided before they
            came here, or not one a sample.
    """
    if labels is None:
        raise ValueError(
            f"`{name}` must hold one integer or string a sample. Received: {name}=None"
        )
    labels = _tensor(name, labels)
    if labels.shape.rank == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape.rank is None:  # Of a dataset or function that does not say.
        labels = tf.reshape(labels, [-1])
    if labels.dtype.is_floating and _is_symbolic_build():
        # Keras averages the labels of replicas for that build; their values are not used.
        labels = tf.cast(labels, tf.int64)
    exact = labels.dtype.is_integer or labels.dtype in (tf.string, tf.bool)
    if labels.shape.rank != 1 or not exact:
        raise ValueError(
            f"`{name}` must hold one integer or string a sample, (batch,): cast floats to the integers "
            "that they were, and take the argmax of one-hot rows. "
            f"Received: shape={tuple(labels.shape)}, dtype={labels.dtype.name}"
        )
    if batch is not None and labels.shape[0] not in (None, batch):
        raise ValueError(
            f"`{name}` must hold one label for each of the {batch} samples. "
            f"Received: shape={tuple(labels.shape)}"
        )
    return tf.cast(labels, tf.int32) if labels.dtype == tf.bool else labels


def ids(labels: tf.Tensor, *more: tf.Tensor, gather: bool = True) -> "list[tf.Tensor]":
    """Labels as int32 numbers, equal where the labels are, those of all replicas.

    Args:
        labels: `(n,)`, of this replica.
        *more: further labels of the same type to be numbered alongside, the same on every replica (a
            memory's), which are not gathered.
        gather: whether the labels of all replicas are gathered first.

    Returns:
        A list: the numbers of the (gathered) labels `(N,)`, then those of each of `more`.
    """
    for other in more:
        if (other.dtype == tf.string) != (labels.dtype == tf.string):
            raise ValueError(
                "Labels that are compared must all be integers or all be strings. "
                f"Received: dtypes={labels.dtype.name}, {other.dtype.name}"
            )
    if labels.dtype == tf.string:
        _refuse_xla()
        numbers = _numbers_of_strings(labels, more, gather)
    else:
        own, *others = (_as_int64(x) for x in (labels, *more))
        own = cross_replica.gather(own) if gather else own
        numbers = tf.unique(tf.concat([own, *others], 0))[1]
    sizes = [tf.shape(x)[0] for x in more]
    return tf.split(numbers, [tf.shape(numbers)[0] - sum(sizes), *sizes]) if more else [numbers]


def _tensor(name, labels):
    if isinstance(getattr(labels, "dtype", None), np.dtype) and labels.dtype == object:
        values = np.asarray(labels)
        if values.size and all(isinstance(x, Integral) for x in values.flat):  # A pandas column.
            labels = np.asarray(values.tolist())
    try:
        return tf.convert_to_tensor(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must hold one integer or string a sample, all of one kind. "
            f"Received: {name}={labels!r}"
        ) from error


def _as_int64(labels):
    """Integers of any type in one that holds them and that collectives carry; uint64 by its bits."""
    if labels.dtype == tf.uint64:
        return tf.bitcast(labels, tf.int64)
    return tf.cast(labels, tf.int64)


def _refuse_xla():
    """XLA has no strings, and would say so only in its own words, at the first step."""
    if xla.is_compiling():
        raise ValueError(
            "Labels that are strings cannot be compiled by XLA, which Keras takes on a GPU unless told "
            "otherwise: use `compile(..., jit_compile=False)`, or integers, such as those of "
            "`keras.layers.StringLookup`."
        )


def _numbers_of_strings(labels, more, gather):
    # As bytes, since collectives carry no strings; with their length, since the bytes are padded.
    local = tf.concat([labels, *more], 0)
    longest = cross_replica.largest(tf.reduce_max(tf.strings.length(local), keepdims=True))

    def as_bytes(x):
        letters = tf.io.decode_raw(x, tf.uint8, fixed_length=tf.maximum(longest[0], 1))
        return tf.concat([tf.strings.length(x)[:, None], tf.cast(letters, tf.int32)], 1)

    own = as_bytes(labels)
    if gather:
        own = cross_replica.gather(own)
    everyone = tf.concat([own, *map(as_bytes, more)], 0)
    return tf.raw_ops.UniqueV2(x=everyone, axis=tf.constant([0]))[1]


def _is_symbolic_build():
    """Keras's build of a model under a strategy, outside of any replica."""
    return not cross_replica.sees_whole_batch() and cross_replica.replica_context() is None
