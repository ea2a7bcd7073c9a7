"""LeJEPA (Balestriero and LeCun 2025)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.sig_reg import SIGReg
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class LeJEPA(SIGReg):
    r"""Views that agree, and embeddings that form a standard normal cloud.

    With z_iv the embedding of view v of sample i, of D dimensions, and c_i the mean over the global views of
    the sample,

    ```
    loss = (1 − λ) · mean (z_iv − c_i)²  +  λ · SIGReg(z)
    ```

    the first mean over samples, all views and dimensions, and `SIGReg` as in the class of that name, the
    mean over views. Embeddings are not divided by their norm. The centre gets a gradient too: there is
    no stop-gradient in the method.

    Args:
        weight: λ, a number from 0 to 1. Defaults to 0.05 (the paper).
        global_views: number of views, the first ones, whose mean is the centre. Defaults to None, all.
        directions, knots, limit, seed, gather: of `SIGReg`, with its defaults.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are computed with in float32 in any case.

    Call arguments:
        y_true: None, or the step that the directions are of, as in `SIGReg`.
        y_pred: floating-point embeddings `(batch, views, dim)`, two views or more.

    Returns:
        The loss; with `reduction=None`, that scalar repeated to `(batch,)`. NaN in the embeddings gives
        NaN.

    Raises:
        ValueError: as in `SIGReg`; if `weight` is not from 0 to 1, `global_views` not a positive integer or
            more than the views; if `y_pred` has one view.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> view = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    >>> same = np.stack([view, view], axis=1)
    >>> regulariser = ksm.losses.SIGReg(directions=64)(None, same)
    >>> loss = ksm.losses.LeJEPA(directions=64)(None, same)    # views that agree
    >>> bool(np.isclose(loss, 0.05 * regulariser))
    True

    Reference:
        Balestriero, LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the
        Heuristics", 2025, Sec. 5 and 6.1. https://arxiv.org/abs/2511.08544
    """

    def __init__(
        self,
        weight: float = 0.05,
        global_views: int | None = None,
        directions: int = 1024,
        knots: int = 17,
        limit: float = 5.0,
        seed: int = 0,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "le_jepa",
        dtype=None,
    ):
        super().__init__(directions, knots, limit, seed, gather, reduction, name, dtype)
        if not arguments.is_number(weight) or not 0 <= weight <= 1:
            raise ValueError(f"`weight` must be a number from 0 to 1. Received: weight={weight!r}")
        self.weight = float(weight)
        self.global_views = (
            None if global_views is None else arguments.count("global_views", global_views)
        )

    def statistic(self, y_true, y_pred):
        z = self.embeddings(y_pred)
        if self.global_views is not None and self.global_views > z.shape[1]:
            raise ValueError(
                "`global_views` must be at most the number of views. "
                f"Received: global_views={self.global_views} and {z.shape[1]} views"
            )
        center = tf.reduce_mean(z[:, : self.global_views], axis=1, keepdims=True)
        squares = self.total(tf.reduce_sum(tf.math.squared_difference(z, center)))
        invariance = squares / (tf.maximum(self.samples(z), 1) * (z.shape[1] * z.shape[2]))
        return (1 - self.weight) * invariance + self.weight * super().statistic(y_true, z)

    def get_config(self):
        return {**super().get_config(), "weight": self.weight, "global_views": self.global_views}
