"""SwappedPrediction, the loss of SwAV (Caron et al. 2020)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import arguments, sinkhorn


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class SwappedPrediction(BatchLoss):
    r"""Cross-entropy of each view's prototype scores with the codes of the other views.

    With s_iv the scores of view v of sample i, the cosines of its embedding with K prototypes
    (`keras_sslmeta.layers.Prototypes`), view v predicts p_iv = softmax(s_iv / T), and the value of sample i
    is the mean over ordered pairs of views

    ```
    l_i = − 1/(V(V−1)) · Σ_{u≠v} Σ_k q_iuk · log p_ivk
    ```

    The codes q are soft assignments that use all prototypes equally often over the **global** batch, one
    batch of codes a view: the rows of exp(s/ε) after `sinkhorn_steps` rounds of Sinkhorn–Knopp, each of
    which divides by the sums over the batch, then by the sums over the prototypes. No gradient flows into
    them. They are computed as logarithms, so that scores of any size are safe.

    Every view predicts and is predicted; SwAV's multi-crop training, in which only the two large crops
    have codes, is another loss.

    Args:
        temperature: T, a positive number. Defaults to 0.1 (SwAV).
        epsilon: ε, how soft codes are, a positive number. Defaults to 0.05 (SwAV).
        sinkhorn_steps: rounds, a positive integer. Defaults to 3 (SwAV).
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision scores are computed in float32 in any case.

    Call arguments:
        y_true: None, or scores `(m, views, prototypes)` of earlier embeddings (SwAV's queue), which take
            part in the sums over the batch and have no loss of their own; the same on every replica, as
            `keras_sslmeta.layers.MemoryQueue` gives them. Anything that is not a floating-point tensor of
            three axes, such as labels, is ignored.
        y_pred: floating-point scores `(batch, views, prototypes)`, two views or more.
        sample_weight: optional, `(batch,)`. It weighs the samples' own losses; every sample still counts
            in the codes.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`. The code of a batch of one sample is uniform,
        whatever its scores.

    Raises:
        ValueError: if `temperature` or `epsilon` is not a positive number or `sinkhorn_steps` not a
            positive integer; if `y_pred` is of another rank, has one view or holds integers; if the scores
            in `y_true` are not of the same views and prototypes.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> scores = np.random.default_rng(0).uniform(-1, 1, size=(8, 2, 4)).astype("float32")
    >>> float(ksm.losses.SwappedPrediction()(None, scores)) > 0
    True
    >>> same = np.zeros((8, 2, 4), "float32")    # all equal: uniform codes and predictions
    >>> bool(np.isclose(ksm.losses.SwappedPrediction()(None, same), np.log(4)))
    True

    Reference:
        Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by
        Contrasting Cluster Assignments", NeurIPS 2020, Eq. 2 to 5. https://arxiv.org/abs/2006.09882
    """

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_steps: int = 3,
        reduction: str | None = "sum_over_batch_size",
        name: str = "swapped_prediction",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = arguments.positive_number("temperature", temperature)
        self.epsilon = arguments.positive_number("epsilon", epsilon)
        self.sinkhorn_steps = arguments.count("sinkhorn_steps", sinkhorn_steps)

    def targets(self, y_true, y_pred):
        """The scores of a queue, or None."""
        if y_true is None:
            return None
        y_true = tf.convert_to_tensor(y_true)
        if not y_true.dtype.is_floating or y_true.shape.rank != 3:
            return None
        if tuple(y_true.shape[1:]) != tuple(y_pred.shape[1:]):
            raise ValueError(
                "`y_true` must hold scores of as many views and prototypes as `y_pred`, or none. "
                f"Received: shapes={tuple(y_true.shape)}, {tuple(y_pred.shape)}"
            )
        return y_true

    def call(self, y_true, y_pred):
        _check_scores(y_pred)
        scores = y_pred if y_pred.dtype == tf.float64 else tf.cast(y_pred, tf.float32)
        queue = None if y_true is None else tf.cast(y_true, scores.dtype)
        codes = sinkhorn.codes(scores, queue, self.epsilon, self.sinkhorn_steps)
        log_p = tf.nn.log_softmax(scores / self.temperature)
        views = scores.shape[1]
        losses = []
        for v in range(views):
            others = tf.add_n([codes[:, u] for u in range(views) if u != v])
            losses.append(-tf.reduce_sum(others * log_p[:, v], axis=-1))
        return tf.cast(tf.add_n(losses) / (views * (views - 1)), y_pred.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "epsilon": self.epsilon,
            "sinkhorn_steps": self.sinkhorn_steps,
        }


def _check_scores(y_pred):
    shape = tuple(y_pred.shape)
    if len(shape) != 3:
        raise ValueError(
            "`y_pred` must hold the prototype scores of all views of a sample, of shape "
            f"(batch, views, prototypes). Received: shape={shape}"
        )
    if shape[1] is None or shape[2] is None:
        raise ValueError(
            f"`y_pred` must have a static number of views and prototypes. Received: shape={shape}"
        )
    if shape[1] < 2:
        raise ValueError(
            "`y_pred` must hold at least two views of each sample, on axis 1. "
            f"Received: shape={shape}"
        )
