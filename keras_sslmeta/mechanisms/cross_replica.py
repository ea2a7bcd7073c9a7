"""What a loss or layer needs to know about the other replicas, and nothing else of `tf.distribute`.

Every function also works where there is no replica context (eager code, Keras's symbolic build
under a strategy, a `tf.data` pipeline): there is one replica then, and what it sees is all there is.

How a loss that compares samples stays exact on any number of replicas R: its local rows meet the
gathered rows of all replicas, the gradient of the gathering sums over replicas, and Keras divides the
loss by R. That is the global batch's mean where all shares are equal; where they are not, replica r's
gradient must weigh n_r · R / N more (`scale_gradient` with `share`).
"""

import tensorflow as tf


def replica_context() -> "tf.distribute.ReplicaContext | None":
    """The current replica context where there is more than one replica, else None."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def sees_whole_batch() -> bool:
    """Whether the batch at hand is the global one: not so in a replica, nor in Keras's symbolic
    build under a strategy, which runs outside any replica on a share of the batch."""
    return count() == 1


def replica_id() -> "int | tf.Tensor":
    """Rank of this replica: 0, or a scalar int32 tensor where there are several replicas."""
    context = replica_context()
    return 0 if context is None else tf.cast(context.replica_id_in_sync_group, tf.int32)


def count() -> int:
    """Number of replicas."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def total(x: tf.Tensor) -> tf.Tensor:
    """`x` summed over all replicas, the same on each; its gradient sums over replicas too."""
    context = replica_context()
    return x if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def largest(x: tf.Tensor) -> tf.Tensor:
    """The element-wise largest over all replicas; no gradient is asked of it."""
    # Strategies reduce by sum and mean alone.
    return tf.reduce_max(gather(x[None]), axis=0)


def gather(x: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas, in order of rank; its gradient sums over replicas.

    Args:
        x: `(n, …)`; n may differ between replicas, and be 0.

    Returns:
        `(N, …)`, the same on every replica; `x` itself where there is one replica.
    """
    context = replica_context()
    if context is None:
        return x
    # `all_gather` forgets the static shape.
    return tf.ensure_shape(context.all_gather(x, axis=0), [None, *x.shape[1:]])


def first_row(count: "int | tf.Tensor") -> "int | tf.Tensor":
    """Where this replica's `count` rows begin among the gathered ones."""
    context = replica_context()
    if context is None:
        return 0
    counts = gather(tf.reshape(tf.cast(count, tf.int32), [1]))
    return tf.reduce_sum(counts[: replica_id()])


def share(amount: "tf.Tensor") -> "tf.Tensor | None":
    """How much this replica holds against an equal share: ``amount · R / Σ_r amount_r``.

    Args:
        amount: scalar: number of samples, or sum of their weights.

    Returns:
        A scalar, 0 where there is nothing anywhere; None where there is one replica.
    """
    context = replica_context()
    if context is None:
        return None
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, amount)
    return tf.math.divide_no_nan(amount * context.num_replicas_in_sync, total)


def scale_gradient(value: tf.Tensor, factor: "tf.Tensor | None") -> tf.Tensor:
    """`value` with its gradient times `factor`: Keras's history weighs values by samples itself."""
    if factor is None:
        return value
    scaled = value * tf.cast(factor, value.dtype)
    return tf.stop_gradient(value - scaled) + scaled


def shuffled(x, step: "int | tf.Tensor"):
    """As many rows as there were here, of a shuffle of the rows of all replicas; and the order.

    Args:
        x: nest of `(n, …)`.
        step: integer that the order follows from, the same on every replica.

    Returns:
        `(x, order)`, the latter for `sorted_again`; where there is one replica `x` itself, and None.
    """
    if replica_context() is None:
        return x, None
    tensors = tf.nest.flatten(x)
    count = tf.shape(tensors[0])[0]
    first = first_row(count)
    gathered = [gather(tensor) for tensor in tensors]
    seed = tf.stack([tf.cast(step, tf.int64), tf.constant(0, tf.int64)])
    order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(gathered[0])[0]), seed)
    mine = order[first : first + count]
    return tf.nest.pack_sequence_as(x, [tf.gather(rows, mine) for rows in gathered]), order


def sorted_again(x: tf.Tensor, order: "tf.Tensor | None") -> tf.Tensor:
    """What was computed of shuffled rows, as the rows were before: `(n, …)` of this replica's own."""
    if order is None:
        return x
    count = tf.shape(x)[0]
    first = first_row(count)
    mine = tf.math.invert_permutation(order)[first : first + count]
    return tf.gather(gather(x), mine)
