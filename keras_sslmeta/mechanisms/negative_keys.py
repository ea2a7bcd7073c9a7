"""`NegativeKeys`: what each row of a batch is compared with, of all replicas, less what rules leave out."""

import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica, label_ids, streaming_similarity
from keras_sslmeta.mechanisms.pair_selection import Rule, Selection


def flat(x):
    """`(batch, slots, …)` → `(batch · slots, …)`, also of an empty share."""
    rows = None if x.shape[0] is None else x.shape[0] * x.shape[1]
    return tf.reshape(x, [-1 if rows is None else rows, *x.shape[2:]])


class NegativeKeys:
    """The negatives of each row, whose log-sum-exps are the denominators of softmax losses.

    Keys stand in this order: those of the batch, of all replicas; explicit hard negatives, likewise; and a
    memory, which is the same on every replica.

    Args:
        rows: `(batch, slots, dim)`, scaled so that products are similarities over the temperature.
        keys: `(batch, dim)`, one positive a row (slots is 1), or None where rows are each other's keys.
        hard: `(batch, h, dim)`, further keys of each sample that are negatives, or None.
        memory: `(m, dim)`, further keys, or None.
        in_batch: whether the other samples' keys and hard negatives are negatives, too.
        unit: what a product is multiplied by to be a cosine.
        bound: a number that no |product| exceeds, or None.
        gather: whether keys come from all replicas.
        rules: `keras_sslmeta.negatives` rules, in their order.
        information: what rules know of samples: a dict, a tensor (for every rule alike) or None.
        row_slots, key_slots: which slots of `(batch, slots, …)` information belong to rows and to keys.
    """

    def __init__(
        self,
        rows,
        keys=None,
        hard=None,
        memory=None,
        in_batch=True,
        *,
        unit,
        bound,
        gather,
        rules=(),
        information=None,
        row_slots=None,
        key_slots=None,
    ):
        self.batch, self.slots, self.group = tf.shape(rows)[0], rows.shape[1], 1
        self.known_batch = rows.shape[0]
        self.hard, self.memory, self.in_batch = hard, memory, in_batch
        self.bound, self.several = bound, gather and cross_replica.replica_context() is not None
        self.information = information
        self.rows, self.keys, self.own_key = flat(rows), None, None
        if keys is None:
            self.group = self.slots
        self.row_slots = list(range(self.slots)) if row_slots is None else row_slots
        self.key_slots = self.row_slots if key_slots is None else key_slots
        if keys is not None or self.several or hard is not None or memory is not None or rules:
            own = self.rows if keys is None else keys
            self.keys = self._all_keys(own)
        given = [] if in_batch or hard is None else [self._own_hard_ones()]
        self.selection: Selection | None = None
        if given or rules:
            self.selection = self._selection(given, rules, unit)

    def _all_keys(self, own):
        blocks = []
        if self.in_batch:
            self.own_key = self.first() * self.group
            blocks.append(self.gathered(own))
        if self.hard is not None:
            blocks.append(self.gathered(flat(self.hard)))
        if self.memory is not None:
            blocks.append(tf.cast(self.memory, own.dtype))
        return blocks[0] if len(blocks) == 1 else tf.concat(blocks, axis=0)

    def gathered(self, x):
        return cross_replica.gather(x) if self.several else x

    def first(self):
        """Where this replica's samples begin among the gathered ones."""
        return cross_replica.first_row(self.batch) if self.several else 0

    def _own_hard_ones(self):
        """Of the hard negatives each row meets its own sample's alone; a memory is everyone's."""
        samples = cross_replica.gather(self.batch[None]) if self.several else self.batch[None]
        of_keys = tf.repeat(tf.range(tf.reduce_sum(samples)), self.hard.shape[1])
        memory = 0 if self.memory is None else tf.shape(self.memory)[0]
        of_keys = tf.concat([of_keys, tf.fill([memory], -1)], axis=0)
        of_rows = tf.repeat(self.first() + tf.range(self.batch), self.slots)

        def log_weights(similarity, of_rows, of_keys):
            meets = (of_rows[0][:, None] == of_keys[0]) | (of_keys[0] < 0)
            return tf.where(meets, tf.zeros([], similarity.dtype), -np.inf)

        return Rule(log_weights, [of_rows], [of_keys])

    def _selection(self, prepared, rules, unit):
        for rule in rules:
            self.selection = Selection(prepared, unit)  # What a rule leaves to the next one.
            prepared = [*prepared, rule.prepare(self)]
        return Selection(prepared, unit)

    # ------------------------------------------------------------------ sums

    def log_sum_exp(self, exponent: float = 1.0) -> tf.Tensor:
        """``log Σ_j e^{exponent · s_ij}`` over the negatives of each row, `(batch, slots)`."""
        rows, keys, selection = self.rows, self.keys, self.selection
        bound = self.bound
        if selection is not None:
            selection = selection.with_exponent(exponent)
        elif exponent != 1:
            scale = exponent**0.5
            rows, keys = rows * scale, None if keys is None else keys * scale
            bound = None if bound is None else bound * exponent
        value = streaming_similarity.log_sum_exp(
            rows, keys, self.own_key, bound, self.group, selection
        )
        return tf.reshape(value, [self.batch, self.slots])

    def log_count(self) -> tf.Tensor:
        """The logarithm of the number of negatives (their weight, where rules weigh them)."""
        if self.selection is not None:
            return tf.stop_gradient(self.log_sum_exp(exponent=0.0))
        keys = tf.shape(self.rows if self.keys is None else self.keys)[0]
        own = self.group if self.in_batch else 0
        return tf.math.log(tf.cast(keys - own, self.rows.dtype))

    def kth_largest(self, k: int) -> tf.Tensor:
        """The k-th largest similarity among the negatives that rules so far leave, a row each."""
        selection = self.selection or Selection([])
        value = streaming_similarity.kth_largest(
            self.rows, self.keys, self.own_key, self.group, selection, k
        )
        return value * selection.unit

    # ------------------------------------------------------------------ what rules ask

    def about(self, name, required=True):
        """The information of that name; a tensor serves for any name, unless it is a memory's."""
        if isinstance(self.information, dict):
            found = self.information.get(name)
        else:
            found = None if name.startswith("memory_") else self.information
        if found is None and required:
            raise ValueError(
                f"A rule on negatives needs `{name}`: pass it as `y_true`, or in a dict with the key "
                f"{name!r}. Received: y_true={_described(self.information)}"
            )
        return found

    def of_memory(self, name):
        """The information on the memory's keys; None where there is no memory."""
        return None if self.memory is None else self.about(f"memory_{name}")

    def labels(self, name) -> "tuple[tf.Tensor, tf.Tensor]":
        """Labels as numbers, of rows and of keys; explicit hard negatives have −1."""
        labels = label_ids.check(name, self.about(name), self.known_batch)
        memory = self.of_memory(name)
        more = () if memory is None else (label_ids.check(f"memory_{name}", memory),)
        everyone, *of_memory = label_ids.ids(labels, *more, gather=self.several)
        first = self.first()
        own = everyone[first : first + self.batch]
        hard = 0 if self.hard is None else self.hard.shape[1]
        blocks = [tf.repeat(everyone, self.group)] if self.in_batch else []
        blocks += [tf.fill([tf.shape(everyone)[0] * hard], -1)] if hard else []
        return tf.repeat(own, self.slots), tf.concat([*blocks, *of_memory], axis=0)

    def of_samples(self, name) -> "tuple[tf.Tensor, tf.Tensor]":
        """Information `(batch, …)`, one entry a sample, of rows and of keys."""
        x = tf.stop_gradient(tf.convert_to_tensor(self.about(name)))
        if x.shape.rank == 0 or not x.shape[:1].is_compatible_with([self.known_batch]):
            raise ValueError(
                f"`{name}` must hold one entry for each of the {self.known_batch} samples. "
                f"Received: shape={x.shape}"
            )
        if x.shape.rank == 2 and x.shape[1] == 1:
            x = x[:, 0]
        if x.dtype == tf.uint16:  # TensorFlow cannot repeat it.
            x = tf.cast(x, tf.int32)
        everyone = self.gathered(x)
        hard = 0 if self.hard is None else self.hard.shape[1]
        blocks = [tf.repeat(everyone, self.group, axis=0)] if self.in_batch else []
        blocks += [tf.repeat(everyone, hard, axis=0)] if hard else []
        memory = self.of_memory(name)
        blocks += [] if memory is None else [tf.cast(tf.convert_to_tensor(memory), x.dtype)]
        return tf.repeat(x, self.slots, axis=0), tf.concat(blocks, axis=0)

    def vectors(self, name) -> "tuple[tf.Tensor, tf.Tensor]":
        """Information `(batch, slots, …)` of rows and of keys; that of hard negatives may lack (NaN)."""
        x = tf.stop_gradient(tf.convert_to_tensor(self.about(name)))
        needed = max(*self.row_slots, *self.key_slots) + 1
        is_of_batch = x.shape[:1].is_compatible_with([self.known_batch]) if x.shape.rank else False
        if not is_of_batch or x.shape.rank < 2 or (x.shape[1] or 0) < needed:
            raise ValueError(
                f"`{name}` must hold a value for each view or key of a sample, "
                f"(batch, {needed}, …). Received: shape={x.shape}"
            )
        rows = flat(tf.gather(x, self.row_slots, axis=1))
        blocks = []
        if self.in_batch:
            blocks.append(self.gathered(flat(tf.gather(x, self.key_slots, axis=1))))
        if self.hard is not None:
            hard = self.hard.shape[1]
            given = x[:, needed : needed + hard]
            if given.shape[1] != hard:
                nothing = float("nan") if x.dtype.is_floating else 0
                given = tf.fill([tf.shape(x)[0], hard, *x.shape[2:]], tf.cast(nothing, x.dtype))
            blocks.append(self.gathered(flat(given)))
        memory = self.of_memory(name)
        if memory is not None:
            blocks.append(tf.cast(tf.convert_to_tensor(memory), x.dtype))
        return rows, tf.concat(blocks, axis=0)


def _described(information):
    if isinstance(information, dict):
        return f"a dict with keys {sorted(information)}"
    return repr(information)
