"""`PairedLoss`: parent of losses between two sets of embeddings, anchors and their keys."""

from typing import Any

import tensorflow as tf

from keras_sslmeta.losses.similarity_loss import SimilarityLoss
from keras_sslmeta.mechanisms.negative_keys import NegativeKeys


class Pairs:
    """Anchors and keys of a batch, scaled so that products are similarities over the temperature.

    Attributes:
        anchors: `(batch, dim)`.
        keys: `(batch, dim)`, the positive of each.
        hard: `(batch, h, dim)`, explicit hard negatives, or None.
        memory: `(m, dim)`, keys of earlier batches, or None.
        information: what rules need to know, or None.
    """

    def __init__(self, anchors, keys, hard, memory, information):
        self.anchors, self.keys, self.hard = anchors, keys, hard
        self.memory, self.information = memory, information

    @property
    def positives(self):
        """Similarity of each anchor to its own key, `(batch,)`."""
        return tf.reduce_sum(self.anchors * self.keys, axis=1)


class PairedLoss(SimilarityLoss):
    """Parent of losses that compare each anchor with the keys of all samples.

    A subclass writes `pair_losses(pairs)`, one value a sample.

    Embeddings come in one of two forms:

    * a stack `y_pred` of `(batch, 2, dim)`, of anchors and keys, or `(batch, 2 + h, dim)` with h explicit
      hard negatives of each sample behind them. `y_true` is then None, or what rules need: what `compile`
      and `fit` can use, since all embeddings are the model's outputs;
    * anchors `y_pred` of `(batch, dim)`, with the keys in `y_true`: `(batch, dim)`, or `(batch, 1 + h, dim)`,
      or a dict that holds these under `"keys"`.

    A dict `y_true`, in either form, may hold `"memory"`, embeddings `(m, dim)` of earlier batches that
    serve as further negatives without gradient, and what rules need.
    """

    # Whether keys that come as `y_true` get a gradient.
    keys_are_targets = False
    takes_more_negatives = True

    def pair_losses(self, pairs: Pairs) -> tf.Tensor:
        """One loss a sample, `(batch,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `pair_losses`.")

    def targets(self, y_true, y_pred):
        return y_true

    def call(self, y_true, y_pred):
        self.refuse_one_target_for_several(y_true)
        pairs = self._pairs(y_true, y_pred)
        if not self.takes_more_negatives and (pairs.hard is not None or pairs.memory is not None):
            raise ValueError(
                f"{type(self).__name__} compares the two embeddings of each sample alone, without a "
                'memory or hard negatives: give one key for each, and no `"memory"`. '
                f"Received: shape={tuple(y_pred.shape)}, y_true={described(y_true)}"
            )
        if pairs.hard is None and pairs.memory is None:
            self.refuse_single_sample(y_pred)
        return tf.cast(self.pair_losses(pairs), y_pred.dtype)

    def negative_keys(self, rows, pairs, keys, rules=None, row_slot=0, in_batch=True):
        """The negatives of `rows` among `keys`; slot 0 of what rules know is the anchors', 1 the keys'."""
        return NegativeKeys(
            rows[:, None],
            keys,
            hard=pairs.hard,
            memory=pairs.memory,
            in_batch=in_batch,
            unit=self.temperature,
            bound=self.bound,
            gather=self.gather,
            rules=self.negatives if rules is None else rules,
            information=pairs.information,
            row_slots=[row_slot],
            key_slots=[1 - row_slot],
        )

    def _pairs(self, y_true, y_pred) -> Pairs:
        shape = tuple(y_pred.shape)
        if len(shape) not in (2, 3) or None in shape[1:] or (len(shape) == 3 and shape[1] < 2):
            raise ValueError(
                "`y_pred` must be a stack of anchors and keys, (batch, 2, dim), or anchors (batch, dim) "
                "whose keys come as `y_true`, with static numbers but for the batch. "
                f"Received: shape={shape}"
            )
        information: Any = y_true if isinstance(y_true, dict) or len(shape) == 3 else None
        if len(shape) == 3:
            if isinstance(y_true, dict) and y_true.get("keys") is not None:
                raise ValueError(
                    "Keys came twice: in the stack of `y_pred`, and in `y_true`. Pass anchors alone, "
                    '(batch, dim), or no "keys". Received: '
                    f"y_true={described(y_true)}, y_pred of shape {shape}"
                )
            anchors, key, *hard = tf.unstack(self.scaled(y_pred), axis=1)
        else:
            keys = _keys(y_true, y_pred)
            keys = tf.stop_gradient(keys) if self.keys_are_targets else keys
            anchors = self.scaled(y_pred)
            key, *hard = tf.unstack(self.scaled(keys), axis=1)
        memory = self.scaled_memory(y_true, anchors)
        hard_ones = tf.stack(hard, axis=1) if hard else None
        return Pairs(anchors, key, hard_ones, memory, information)


def _keys(y_true, y_pred):
    """Keys `(batch, 1 + h, dim)` that came as targets."""
    given = y_true.get("keys") if isinstance(y_true, dict) else y_true
    keys = None if given is None else tf.convert_to_tensor(given)
    if keys is None or not _is_of(keys, y_pred):
        raise ValueError(
            "`y_true` must hold the keys of the anchors in `y_pred`, floating-point (batch, dim), or "
            '(batch, 1 + h, dim) with hard negatives, or a dict with these as "keys"; or stack anchors '
            "and keys in `y_pred`, (batch, 2, dim). Received: "
            f"y_true={described(y_true)}, y_pred of shape {tuple(y_pred.shape)}"
        )
    keys = tf.cast(keys, y_pred.dtype)
    return keys[:, None] if keys.shape.rank == 2 else keys


def _is_of(keys, y_pred):
    """Whether they are keys of these anchors."""
    batch, dim = y_pred.shape
    shapes = [batch, dim], [batch, None, dim]
    is_known = None not in keys.shape[1:] and 0 not in keys.shape[1:]
    return keys.dtype.is_floating and is_known and any(map(keys.shape.is_compatible_with, shapes))


def described(y_true):
    """What came as `y_true`, for an error."""
    if isinstance(y_true, dict):
        return {name: described(value) for name, value in y_true.items()}
    if y_true is None:
        return None
    return f"{getattr(y_true, 'dtype', type(y_true).__name__)}{tuple(getattr(y_true, 'shape', ()))}"
