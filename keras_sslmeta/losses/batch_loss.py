"""`BatchLoss`: what losses that compare the samples of a batch share."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import cross_replica

_BY_WEIGHT = "mean_with_sample_weight"


class BatchLoss(keras.losses.Loss):
    """Parent of losses in which one sample's value depends on the rest of the batch.

    A subclass writes `call(y_true, y_pred)` and returns one value a sample, `(batch,)`, taken against
    the **global** batch (`keras_sslmeta.mechanisms.cross_replica.gather`). This class adds what any such
    loss needs to be used in Keras:

    * `y_true` may be None (`model.fit(x)`), and reaches `targets`, and from there `call`, as it came:
      Keras's own losses cast it to floats, in which different labels collide;
    * the gradient is the global batch's on any number of replicas, also when the last batch is
      shared out unevenly: each replica's gradient weighs n_r · R / N, where Keras alone takes the
      mean of the replicas' means;
    * integer predictions are refused, which Keras would cast without a word;
    * a Keras mask on the predictions is not used, since it says nothing about whole samples: leave
      samples out by a `sample_weight` of 0.

    Args:
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the loss's result and inputs; half precision is computed in float32 inside.

    Raises:
        ValueError: if `y_pred` holds integers.
    """

    def __init__(
        self,
        name: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        # In half precision a sum over a large batch would overflow.
        wide = "float32" if self.dtype in ("float16", "bfloat16") else dtype
        self._reduce = _GivenValues(name=self.name, reduction=reduction, dtype=wide)

    def __call__(self, y_true, y_pred, sample_weight=None):
        self._refuse_integers(y_pred)
        y_pred = tf.cast(tf.convert_to_tensor(y_pred), self.dtype)
        with tf.name_scope(self.name):
            values = self.call(self.targets(y_true, y_pred), y_pred)
        value = self._reduce(tf.zeros(tf.shape(y_pred)[:1]), values, sample_weight)
        if self.reduction in ("sum", "none", None):
            return tf.cast(value, self.dtype)
        samples = cross_replica.share(tf.cast(tf.shape(y_pred)[0], tf.float32))
        if samples is not None and sample_weight is not None and self.reduction == _BY_WEIGHT:
            # Keras's history weighs replicas by their samples: leave it the rest of the weight.
            weights = cross_replica.share(tf.reduce_sum(tf.cast(sample_weight, tf.float32)))
            value *= tf.cast(tf.math.divide_no_nan(weights, samples), value.dtype)
        return tf.cast(cross_replica.scale_gradient(value, samples), self.dtype)

    def targets(self, y_true, y_pred) -> Any:
        """What `call` gets as `y_true`: here None, whatever came."""
        return None

    def _refuse_integers(self, y_pred):
        is_list = isinstance(y_pred, (list, tuple)) and any(hasattr(x, "shape") for x in y_pred)
        if y_pred is None or is_list:
            raise ValueError(
                f"{type(self).__name__} needs one tensor of embeddings as `y_pred`, its second argument: "
                "stack views, or the two of a pair, on axis 1 (`keras.ops.stack(views, axis=1)`). "
                f"Received: y_pred of type {type(y_pred).__name__}"
            )
        dtype = getattr(y_pred, "dtype", None) or np.asarray(y_pred).dtype
        dtype = keras.backend.standardize_dtype(dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"{type(self).__name__} needs floating-point embeddings in `y_pred`. "
                f"Received: dtype={dtype}"
            )

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype}


class _GivenValues(keras.losses.Loss):
    """Keras's own reduction of values that are there already."""

    def call(self, y_true, y_pred):
        return y_pred
