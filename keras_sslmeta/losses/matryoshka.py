"""Matryoshka: a loss on nested prefixes of the embedding (Kusupati et al. 2022)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class Matryoshka(BatchLoss):
    r"""Weighted sum of a loss on the first components of the embeddings.

    ```
    l_i = Σ_m w_m · loss_i(the first dims[m] components)
    ```

    so that the embedding can be cut to any of these lengths later, and the shorter one still serves. It
    is the sum, as in the paper, and not the mean: its size grows with the number of lengths. A wrapped
    loss that normalises embeddings does so after each cut.

    `reduction`, `name` and what weighs samples or replicas are this loss's own; those of the wrapped
    loss are not used.

    Args:
        loss: a loss of `keras_sslmeta.losses` or any `keras.losses.Loss` that gives a value for each
            sample.
        dims: the lengths, different positive integers, none longer than the embedding. To train the
            whole embedding too, name its length.
        weights: a number from 0 for each length. Defaults to None, all 1 (the paper).
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result. Defaults to None, that of the wrapped loss.

    Call arguments:
        y_true: what the wrapped loss takes, dicts and tuples included. Embeddings in it are cut as `y_pred`
            is: floating-point tensors of at least two axes whose last axis is as long as that of `y_pred`.
            Anything else, such as labels, passes as it is, and so does what the loss's rules on
            negatives ask for by their `key`, such as a guide's embeddings. (One-hot rows of as many classes
            as the embedding has components must be integers.)
        y_pred: embeddings whose last axis is the one to cut, such as `(batch, views, dim)`.
        sample_weight: optional, `(batch,)`; refused where the wrapped loss refuses it.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `loss` is not a loss, or gives no value for each sample; if `dims` are not
            different positive integers, or longer than the embedding; if `weights` are not as many
            numbers from 0; and what the wrapped loss raises.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(8, 2, 16)).astype("float32")
    >>> loss = ksm.losses.Matryoshka(ksm.losses.NTXent(), dims=[4, 16])
    >>> parts = [ksm.losses.NTXent()(None, views[..., :m]) for m in (4, 16)]
    >>> bool(np.isclose(loss(None, views), sum(parts)))
    True

    Reference:
        Kusupati, Bhatt, Rege, Wallingford, Sinha, Ramanujan, Howard-Snyder, Chen, Kakade, Jain, Farhadi,
        "Matryoshka Representation Learning", NeurIPS 2022, Eq. 1. https://arxiv.org/abs/2205.13147
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "matryoshka",
        dtype=None,
    ):
        if not isinstance(loss, keras.losses.Loss):
            raise ValueError(
                f"`loss` must be a loss, an instance of `keras.losses.Loss`. Received: loss={loss!r}"
            )
        super().__init__(name=name, reduction=reduction, dtype=dtype or loss.dtype)
        self.loss = loss
        self.dims = _checked_dims(dims)
        self.weights = _checked_weights(weights, len(self.dims))

    def __call__(self, y_true, y_pred, sample_weight=None):
        innermost = self._innermost()
        if isinstance(innermost, BatchStatisticLoss) and sample_weight is not None:
            return innermost(y_true, y_pred, sample_weight)  # Raises, and says why.
        return super().__call__(y_true, y_pred, sample_weight)

    def _innermost(self):
        loss = self.loss
        while isinstance(loss, Matryoshka):
            loss = loss.loss
        return loss

    def targets(self, y_true, y_pred):
        """As it came: each cut has targets of its own."""
        return y_true

    def call(self, y_true, y_pred):
        size = y_pred.shape[-1] if y_pred.shape.rank else None
        if size is None or max(self.dims) > size:
            raise ValueError(
                f"`y_pred` must have a last axis of at least {max(self.dims)} components, the longest "
                f"of `dims`. Received: shape={tuple(y_pred.shape)}, dims={self.dims!r}"
            )
        # What rules know of samples is not to be cut; a plain tensor serves for all their keys.
        keys = {
            getattr(rule, "key", None)
            for rule in getattr(self._innermost(), "negatives", None) or ()
        }
        whole = {name for key in keys - {None} for name in (key, f"memory_{key}")}
        cuts = not whole or isinstance(y_true, dict)
        weights = self.weights or [1.0] * len(self.dims)
        value = 0.0
        for dim, weight in zip(self.dims, weights, strict=True):
            targets = _cut(y_true, size, dim, whole) if cuts else y_true
            cut = self._values(targets, y_pred[..., :dim])
            # Half-precision values are added in float32.
            value += weight * (cut if cut.dtype == tf.float64 else tf.cast(cut, tf.float32))
        return tf.cast(value, y_pred.dtype)

    def _values(self, y_true, y_pred):
        """The wrapped loss of each sample, `(batch,)`, before any reduction."""
        if isinstance(self.loss, BatchLoss):
            return self.loss.call(self.loss.targets(y_true, y_pred), y_pred)
        # As `keras.losses.Loss` does, which casts labels too.
        y_true = tf.nest.map_structure(lambda x: tf.cast(x, y_pred.dtype), y_true)
        values = tf.convert_to_tensor(self.loss.call(y_true, y_pred))
        if not values.shape.rank:
            raise ValueError(
                "`loss` must give a value for each sample, which Matryoshka then reduces. "
                f"Received: loss={self.loss!r}, whose `call` gives shape={tuple(values.shape)}"
            )
        return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))

    def get_config(self):
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "dims": self.dims,
            "weights": self.weights,
        }

    @classmethod
    def from_config(cls, config):
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


def _cut(y_true, size, dim, whole):
    """`y_true` with the embeddings of `size` components in it cut to `dim`."""
    if isinstance(y_true, dict):
        return {
            name: value if name in whole else _cut(value, size, dim, whole)
            for name, value in y_true.items()
        }
    if isinstance(y_true, (list, tuple)) and any(hasattr(x, "shape") for x in y_true):
        return tuple(_cut(value, size, dim, whole) for value in y_true)
    if y_true is None:
        return None
    y_true = tf.convert_to_tensor(y_true)
    is_matrix = (y_true.shape.rank or 0) >= 2 and y_true.shape[-1] == size
    return y_true[..., :dim] if y_true.dtype.is_floating and is_matrix else y_true


def _checked_dims(dims):
    is_list = isinstance(dims, Sequence) and not isinstance(dims, str) and len(dims) > 0
    if not is_list or not all(arguments.is_integer(dim) and dim > 0 for dim in dims):
        raise ValueError(
            f"`dims` must be a list of different positive integers. Received: dims={dims!r}"
        )
    if len(set(dims)) < len(dims):
        raise ValueError(
            f"`dims` must be different: a length counts more by its weight. Received: dims={dims!r}"
        )
    return [int(dim) for dim in dims]


def _checked_weights(weights, count):
    if weights is None:
        return None
    is_list = isinstance(weights, Sequence) and len(weights) == count
    if not is_list or not all(arguments.is_number(w) and w >= 0 for w in weights):
        raise ValueError(
            f"`weights` must be a number from 0 for each of the {count} `dims`, or None. "
            f"Received: weights={weights!r}"
        )
    return [float(w) for w in weights]
