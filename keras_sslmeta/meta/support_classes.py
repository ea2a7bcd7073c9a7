"""The classes of few-shot tasks, read from labels."""

import dataclasses

import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica


@dataclasses.dataclass
class Labels:
    """Labels as integers.

    Attributes:
        ids: `(tasks, samples)` int64.
        width: number of classes that one-hot labels name; None for integers.
        checks: assertions that the labels are what they must be.
    """

    ids: tf.Tensor
    width: "int | tf.Tensor | None"
    checks: list


def label_ids(name: str, labels) -> Labels:
    """Integers `(tasks, samples)` or `(tasks, samples, 1)`, or one-hot `(tasks, samples, ways)`, as integers.

    Raises:
        ValueError: if the labels are neither.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.dtype == tf.bool:
        labels = tf.cast(labels, tf.int32)
    if labels.shape.rank == 3 and labels.shape[2] == 1:
        labels = labels[..., 0]
    is_one_hot = labels.shape.rank == 3
    if not is_one_hot and not (labels.shape.rank == 2 and labels.dtype.is_integer):
        raise ValueError(
            f"`{name}` must be one integer a sample, (tasks, samples), or one-hot, (tasks, samples, ways). "
            f"Received: shape={tuple(labels.shape)}, dtype={labels.dtype.name}"
        )
    if not is_one_hot:
        return Labels(tf.cast(labels, tf.int64), None, [])
    is_row = tf.reduce_all((labels == 0) | (labels == 1), axis=2)
    is_row &= tf.reduce_sum(tf.cast(labels == 1, tf.int32), axis=2) == 1
    message = f"`{name}` must be one-hot rows, one 1 among zeros, or integers. Received:"
    check = tf.debugging.Assert(tf.reduce_all(is_row), [message, labels], summarize=100)
    width = labels.shape[2] or tf.shape(labels)[2]
    return Labels(tf.argmax(labels, axis=2), width, [check])


@dataclasses.dataclass
class SupportClasses:
    """The classes of the support sets of a batch of tasks.

    Attributes:
        ids: `(tasks, samples)` int64.
        ways: number of classes, of the task on any replica that has most.
    """

    ids: tf.Tensor
    ways: "int | tf.Tensor"

    @classmethod
    def of(cls, support_y) -> "SupportClasses":
        """The classes that labels name, checked.

        Raises:
            ValueError: if the labels are neither integers nor one-hot, or there is no sample.
            tf.errors.InvalidArgumentError: if a label is negative, or a row not one-hot.
        """
        labels = label_ids("support_y", support_y)
        if labels.ids.shape[1] == 0:
            raise ValueError("`support_y` must hold a sample at least. Received: none")
        message = "`support_y` must hold classes from 0. Received:"
        is_valid = tf.reduce_all(labels.ids >= 0)
        checks = [*labels.checks, tf.debugging.Assert(is_valid, [message, labels.ids], 100)]
        with tf.control_dependencies([x for x in checks if x is not None]):
            ids = tf.identity(labels.ids)
        ways = labels.width
        if ways is None:
            # At least one, for a replica without tasks.
            ways = cross_replica.largest(tf.reduce_max(tf.concat([[0], tf.reshape(ids, [-1])], 0)))
            ways = tf.cast(ways, tf.int32) + 1
        return cls(ids, ways)

    def one_hot(self, dtype) -> tf.Tensor:
        """Which sample is of which class, `(tasks, samples, ways)`."""
        return tf.one_hot(self.ids, self.ways, dtype=dtype)

    def count(self, dtype) -> tf.Tensor:
        """Number of samples of each class, `(tasks, ways)`."""
        return tf.reduce_sum(self.one_hot(dtype), axis=1)

    def check_of_queries(self, query_y, ignored=None) -> list:
        """Assertions that the queries' labels are classes of their support sets.

        Args:
            query_y: integers or one-hot.
            ignored: an integer that stands for no class, allowed too.
        """
        labels = label_ids("query_y", query_y)
        is_there = self.ids[:, None, :] == labels.ids[:, :, None]  # (tasks, queries, samples)
        is_valid = tf.reduce_any(is_there, axis=2)
        if ignored is not None:
            is_valid |= labels.ids == ignored
        message = "`query_y` must hold classes that its task's `support_y` has samples of. Received: query_y"
        what = [message, labels.ids, "and support_y:", self.ids]
        return [
            *labels.checks,
            tf.debugging.Assert(tf.reduce_all(is_valid), what, summarize=100),
        ]


def logits_of_present(logits, count) -> tf.Tensor:
    """Logits `(tasks, queries, ways)`; those of classes without a sample so low that no query is sent there.

    Args:
        logits: of all classes, finite.
        count: number of samples of each class, `(tasks, ways)`.
    """
    # Finite, as 0 · ∞ would be NaN in a cross-entropy on one-hot labels; half, to leave room for differences.
    lowest = tf.constant(logits.dtype.min / 2, logits.dtype)
    return tf.where(count[:, None, :] > 0, logits, lowest)
