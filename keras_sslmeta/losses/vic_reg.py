"""VICReg, the loss of Bardes et al. 2022."""

import itertools

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.mechanisms import arguments

_EPSILON = 1e-4


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class VICReg(BatchStatisticLoss):
    r"""Invariance between the views, variance in each dimension, no covariance between dimensions.

    With B samples of D dimensions in the global batch, and var and cov of a view's embeddings over the
    batch, divided by B − 1,

    ```
    loss = λ · mean (z_a − z_b)²                                            over B and D
         + μ · ½ Σ_{z∈{z_a,z_b}} mean_i max(0, 1 − √(var_i(z) + 1e-4))
         + ν · Σ_{z∈{z_a,z_b}} 1/D · Σ_{i≠j} cov_ij(z)²
    ```

    With more than two views it is the mean over the pairs of views. The ½ is that of the authors' code,
    which the published weights go with. Embeddings are not divided by their norm. A batch of one sample
    has variance and covariance 0.

    Args:
        invariance_weight: λ, a number from 0. Defaults to 25 (the paper).
        variance_weight: μ, a number from 0. Defaults to 25 (the paper).
        covariance_weight: ν, a number from 0. Defaults to 1 (the paper).
        gather: whether variances and covariances are of the samples of all replicas of a
            `tf.distribute` strategy, which makes the loss independent of their number. False takes each
            replica's own samples. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are computed with in float32 in any case.

    Call arguments:
        y_true: ignored, and may be None.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.

    Returns:
        The loss; with `reduction=None`, that scalar repeated to `(batch,)`. NaN in the embeddings gives
        NaN.

    Raises:
        ValueError: if a weight is not a number from 0; if `y_pred` is of another rank, has one view or
            holds integers; if a `sample_weight` is given, since no sample has a loss of its own.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> view = 2 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], "float32")
    >>> same = np.stack([view, view], axis=1)    # spread out, uncorrelated, and equal
    >>> float(ksm.losses.VICReg()(None, same))
    0.0
    >>> collapsed = np.ones((4, 2, 2), "float32")    # 25 · (1 − √1e-4)
    >>> bool(np.isclose(ksm.losses.VICReg()(None, collapsed), 24.75))
    True

    Reference:
        Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
        Learning", ICLR 2022, Eq. 1 to 6. https://arxiv.org/abs/2105.04906
    """

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "vic_reg",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype, gather=gather)
        self.invariance_weight = arguments.number_from_zero("invariance_weight", invariance_weight)
        self.variance_weight = arguments.number_from_zero("variance_weight", variance_weight)
        self.covariance_weight = arguments.number_from_zero("covariance_weight", covariance_weight)

    def statistic(self, y_true, y_pred):
        z = self.embeddings(y_pred)
        covariance = self._covariance(z)
        variance = tf.linalg.diag_part(covariance)  # (views, dim)
        hinge = tf.nn.relu(1 - tf.sqrt(variance + _EPSILON))
        others = tf.linalg.set_diag(covariance, tf.zeros_like(variance))
        # Of each view; a pair has two, and their mean over pairs is twice that over views.
        squares = tf.reduce_sum(tf.square(others)) / (z.shape[1] * z.shape[2])
        return (
            self.invariance_weight * self._invariance(z)
            + self.variance_weight * tf.reduce_mean(hinge)
            + self.covariance_weight * 2 * squares
        )

    def _invariance(self, z):
        pairs = list(itertools.combinations(range(z.shape[1]), 2))
        squares = [tf.reduce_sum(tf.math.squared_difference(z[:, a], z[:, b])) for a, b in pairs]
        values = tf.maximum(self.samples(z), 1) * (z.shape[2] * len(pairs))
        return self.total(tf.add_n(squares)) / values

    def _covariance(self, z):
        """Of each view, `(views, dim, dim)`, without bias."""
        by_view = tf.transpose(self.centered(z), [1, 0, 2])
        products = self.total(tf.matmul(by_view, by_view, transpose_a=True))
        return products / tf.maximum(self.samples(z) - 1, 1)

    def get_config(self):
        return {
            **super().get_config(),
            "invariance_weight": self.invariance_weight,
            "variance_weight": self.variance_weight,
            "covariance_weight": self.covariance_weight,
        }
