"""BarlowTwins, the loss of Zbontar et al. 2021."""

import itertools

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.mechanisms import arguments

_EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class BarlowTwins(BatchStatisticLoss):
    r"""Makes each dimension agree between the views, and different dimensions carry different things.

    Each view is standardised over the global batch of B samples, dimension by dimension, ẑ = (z − mean) /
    √(var + 1e-5) with the biased variance; c_ij is the correlation of dimension i of the one view with
    dimension j of the other:

    ```
    c    = ẑ_aᵀ ẑ_b / B
    loss = Σ_i (1 − c_ii)² + λ Σ_{i≠j} c_ij²
    ```

    With more than two views it is the mean over the pairs of views. Embeddings are not divided by their
    norm. A dimension that is constant has no correlation, and adds 1; so does every dimension of a batch
    of one sample, which gets no gradient.

    Args:
        redundancy_weight: λ, a number from 0. Defaults to 0.005 (the paper).
        gather: whether means, variances and correlations are of the samples of all replicas of a
            `tf.distribute` strategy, which makes the loss independent of their number. False takes each
            replica's own samples. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are correlated in float32 in any case.

    Call arguments:
        y_true: ignored, and may be None.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.

    Returns:
        The loss; with `reduction=None`, that scalar repeated to `(batch,)`. NaN in the embeddings gives
        NaN.

    Raises:
        ValueError: if `redundancy_weight` is not a number from 0; if `y_pred` is of another rank, has one
            view or holds integers; if a `sample_weight` is given, since no sample has a loss of its own.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> view = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], "float32")
    >>> same = np.stack([view, view], axis=1)    # no redundancy: c is the identity
    >>> bool(ksm.losses.BarlowTwins()(None, same) < 1e-8)
    True
    >>> collapsed = np.ones((4, 2, 2), "float32")    # (1 − 0)² in each dimension
    >>> float(ksm.losses.BarlowTwins()(None, collapsed))
    2.0

    Reference:
        Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
        Reduction", ICML 2021, Eq. 1 and 2. https://arxiv.org/abs/2103.03230
    """

    def __init__(
        self,
        redundancy_weight: float = 0.005,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "barlow_twins",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype, gather=gather)
        self.redundancy_weight = arguments.number_from_zero("redundancy_weight", redundancy_weight)

    def statistic(self, y_true, y_pred):
        z = self.embeddings(y_pred)
        samples = tf.maximum(self.samples(z), 1)
        z = self.centered(z)
        z *= tf.math.rsqrt(self.total(tf.reduce_sum(z * z, axis=0)) / samples + _EPSILON)
        losses = [
            self._of_correlations(
                self.total(tf.matmul(z[:, a], z[:, b], transpose_a=True)) / samples
            )
            for a, b in itertools.combinations(range(z.shape[1]), 2)
        ]
        return tf.add_n(losses) / len(losses)

    def _of_correlations(self, c):
        own = tf.linalg.diag_part(c)
        others = tf.linalg.set_diag(c, tf.zeros_like(own))
        return tf.reduce_sum(tf.square(1 - own)) + self.redundancy_weight * tf.reduce_sum(others**2)

    def get_config(self):
        return {**super().get_config(), "redundancy_weight": self.redundancy_weight}
