"""The batch-all triplet loss (Hermans et al. 2017)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.triplet_loss import TripletLoss, sum_over_positives


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class TripletAll(TripletLoss):
    r"""Mean over all triplets of an anchor, another sample of its label, and one of another label.

    With D the distance and T the triplets (a, p, n) of the global batch, the loss is

    ```
    L = 1/|T| · Σ_{(a,p,n) ∈ T} max(D(a, p) − D(a, n) + margin, 0)
    L = 1/|T| · Σ_{(a,p,n) ∈ T} log(1 + exp(D(a, p) − D(a, n)))          with soft=True
    ```

    With `nonzero_only` the mean is over the triplets whose term is above 0, the variant that Hermans et
    al. write BA≠0: easy triplets soon outnumber the others and would wash them out of the mean.
    pytorch-metric-learning (by default) and sentence-transformers average so.

    There are up to N³ triplets, and a step for each, but none is ever stored: an anchor's positives are
    taken one at a time. The distances are not stored as a whole either, unless `distance_metric` is a
    function.

    Args:
        margin: a number from 0; of no use with `soft=True`. Defaults to 1.0 (as in the other triplet
            losses; Hermans et al. try 0.1 to 1.0).
        soft: whether the softplus replaces the hinge with its margin. Defaults to False.
        nonzero_only: whether the mean is over the triplets of a term above 0. Defaults to False (the
            paper's BA). With `soft=True` every term is above 0.
        distance_metric: `"L2"`, `"squared-L2"`, `"angular"` (one less the cosine), or a function from all
            embeddings of the global batch `(N, dim)` to their distances `(N, N)`. Defaults to `"L2"`
            (Hermans et al.).
        normalize: whether embeddings are divided by their L2 norm first. Defaults to False (Hermans et
            al.).
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
        The reduced loss; `(batch,)` with `reduction=None`, each sample's sum over its triplets times
        batch / |T|, whose mean is L. An anchor without positives or without negatives contributes 0, and a
        batch without triplets gives 0.

    Raises:
        ValueError: if `margin` or `distance_metric` is not one of those; if labels are floats or not one
            a sample; if `y_pred` is of another rank or holds integers.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> z = np.array([[0.0], [1.0], [1.5]], "float32")
    >>> labels = np.array([0, 0, 1])    # (1 − 1.5 + 1) and (1 − 0.5 + 1)
    >>> float(ksm.losses.TripletAll()(labels, z))
    1.0

    Reference:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017,
        L_BA. https://arxiv.org/abs/1703.07737
    """

    def __init__(
        self,
        margin: float = 1.0,
        soft: bool = False,
        nonzero_only: bool = False,
        distance_metric="L2",
        normalize: bool = False,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "triplet_all",
        dtype=None,
    ):
        super().__init__(margin, distance_metric, normalize, gather, reduction, name, dtype)
        self.soft = bool(soft)
        self.nonzero_only = bool(nonzero_only)

    def terms(self, compared, positive, negative):
        def of_positive(compared, distance, exists):
            excess = distance - compared
            term = tf.nn.softplus(excess) if self.soft else tf.nn.relu(excess + self.margin)
            is_triplet = negative & exists
            counted = is_triplet & (term > 0) if self.nonzero_only and not self.soft else is_triplet
            sums = tf.reduce_sum(tf.where(is_triplet, term, 0), axis=1)
            return tf.stack(
                [sums, tf.math.count_nonzero(counted, axis=1, dtype=sums.dtype)], axis=1
            )

        # Where there is no negative there is no triplet to walk over.
        positive &= tf.reduce_any(negative, axis=1, keepdims=True)
        return tf.unstack(sum_over_positives(of_positive, compared, positive, 2), num=2, axis=1)

    def get_config(self):
        return {**super().get_config(), "soft": self.soft, "nonzero_only": self.nonzero_only}
