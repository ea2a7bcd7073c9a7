"""The batch-hard triplet loss (Hermans et al. 2017)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.triplet_loss import TripletLoss, extremes


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class TripletHard(TripletLoss):
    r"""Each sample's farthest positive has to be closer, by a margin, than its closest negative.

    With D the distance, p the samples of the anchor's label but itself and n those of other labels, the
    value of sample a is

    ```
    l_a = max(max_p D(a, p) − min_n D(a, n) + margin, 0)
    l_a = log(1 + exp(max_p D(a, p) − min_n D(a, n)))            with soft=True
    ```

    Values equal those of `tfa.losses.TripletHardLoss` for the same arguments, which is a mean over all
    samples. So it also is for samples that lack one kind: without positives, the smallest distance of the
    sample, which is that to itself, stands in their place, and without negatives the largest one. Such
    samples are not left out: a sample without positives still pushes its negatives to the margin, and one
    without negatives has the constant value `margin`, or log 2. (pytorch-metric-learning leaves both out,
    and averages by default over losses above 0 only.)

    The distances are never stored as a whole, unless `distance_metric` is a function.

    Args:
        margin: a number from 0; of no use with `soft=True`. Defaults to 1.0 (TensorFlow Addons; Hermans et
            al. try 0.1 to 1.0).
        soft: whether the softplus replaces the hinge with its margin. Defaults to False.
        distance_metric: `"L2"`, `"squared-L2"`, `"angular"` (one less the cosine), or a function from all
            embeddings of the global batch `(N, dim)` to their distances `(N, N)`. Defaults to `"L2"`,
            which Hermans et al. find more stable than its square.
        normalize: whether embeddings are divided by their L2 norm first. Defaults to False (both).
        gather: whether embeddings are compared with those of all replicas of a `tf.distribute` strategy,
            which makes the loss independent of their number. False compares within each replica only.
            Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: one integer or string a sample, `(batch,)`, compared exactly.
        y_pred: floating-point embeddings `(batch, dim)`, or `(batch, views, dim)`, whose views are
            samples of one label.
        sample_weight: optional, `(batch,)`. It weighs the samples as anchors.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `margin` or `distance_metric` is not one of those; if labels are floats or not one
            a sample; if `y_pred` is of another rank or holds integers.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> z = np.array([[0.0], [1.0], [1.5], [9.0]], "float32")
    >>> labels = np.array([0, 0, 1, 1])    # (1 − 1.5 + 1) + (1 − 0.5 + 1) + (7.5 − 0.5 + 1) + (7.5 − 8 + 1)
    >>> float(ksm.losses.TripletHard()(labels, z))
    2.625

    Reference:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017,
        L_BH. https://arxiv.org/abs/1703.07737
    """

    def __init__(
        self,
        margin: float = 1.0,
        soft: bool = False,
        distance_metric="L2",
        normalize: bool = False,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "triplet_hard",
        dtype=None,
    ):
        super().__init__(margin, distance_metric, normalize, gather, reduction, name, dtype)
        self.soft = bool(soft)

    def terms(self, compared, positive, negative):
        farthest = extremes(compared, positive, largest=True)[:, 0]
        closest = extremes(compared, negative, largest=False)[:, 0]
        excess = farthest - closest
        losses = tf.nn.softplus(excess) if self.soft else tf.nn.relu(excess + self.margin)
        return losses, tf.ones_like(losses)

    def get_config(self):
        return {**super().get_config(), "soft": self.soft}
