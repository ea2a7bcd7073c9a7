"""The triplet loss with semi-hard negatives, of FaceNet (Schroff et al. 2015)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.triplet_loss import TripletLoss, extremes, sum_over_positives


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class TripletSemiHard(TripletLoss):
    r"""Each pair of one label has to be closer, by a margin, than a negative that is just farther away.

    With D the distance, an anchor a and another sample p of its label meet one negative n(a, p): of the
    samples of other labels the closest that is farther from a than p is, or, where none is farther, the
    farthest of them all. The loss is the mean over all such pairs of the global batch

    ```
    L = 1/|P| · Σ_{(a,p) ∈ P} max(D(a, p) − D(a, n(a, p)) + margin, 0)
    ```

    Values equal those of `tfa.losses.TripletSemiHardLoss` for the same arguments, where there are
    positives at all. pytorch-metric-learning averages by default over the triplets with a loss above 0
    only, so its values are larger. FaceNet uses squared distances of normalised embeddings and a margin
    of 0.2: `TripletSemiHard(0.2, "squared-L2", normalize=True)`.

    An anchor's positives are taken one at a time, and the distances are never stored as a whole, unless
    `distance_metric` is a function.

    Args:
        margin: a number from 0. Defaults to 1.0 (TensorFlow Addons).
        distance_metric: `"L2"`, `"squared-L2"`, `"angular"` (one less the cosine), or a function from all
            embeddings of the global batch `(N, dim)` to their distances `(N, N)`. Defaults to `"L2"`.
        normalize: whether embeddings are divided by their L2 norm first. Defaults to False: TensorFlow
            Addons expects normalised embeddings and does not normalise.
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
        The reduced loss; `(batch,)` with `reduction=None`, each sample's sum over its pairs times
        batch / |P|, whose mean is L. An anchor without positives contributes 0, and a batch without any
        gives 0 (TensorFlow Addons: NaN). Without negatives n(a, p) is, as there, the smallest distance
        of the anchor, which is that to itself.

    Raises:
        ValueError: if `margin` or `distance_metric` is not one of those; if labels are floats or not one
            a sample; if `y_pred` is of another rank or holds integers.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> z = np.array([[0.0], [1.0], [1.5], [9.0]], "float32")
    >>> labels = np.array([0, 0, 1, 1])    # (1 − 1.5 + 1) + (1 − 8 + 1)₊ + (7.5 − 1.5 + 1) + (7.5 − 8 + 1)
    >>> float(ksm.losses.TripletSemiHard()(labels, z))
    2.0

    Reference:
        Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and
        Clustering", CVPR 2015, section 3.2. https://arxiv.org/abs/1503.03832
    """

    def __init__(
        self,
        margin: float = 1.0,
        distance_metric="L2",
        normalize: bool = False,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "triplet_semi_hard",
        dtype=None,
    ):
        super().__init__(margin, distance_metric, normalize, gather, reduction, name, dtype)

    def terms(self, compared, positive, negative):
        infinity = tf.constant(float("inf"), compared.dtype)

        def of_positive(compared, distance, exists):
            is_farther = negative & (compared > distance)
            closest = tf.reduce_min(tf.where(is_farther, compared, infinity), axis=1, keepdims=True)
            farthest = extremes(compared, negative, largest=True)
            is_any = tf.reduce_any(is_farther, axis=1, keepdims=True)
            loss = tf.nn.relu(distance - tf.where(is_any, closest, farthest) + self.margin)
            return tf.where(exists, loss, 0)

        sums = sum_over_positives(of_positive, compared, positive, 1)[:, 0]
        return sums, tf.math.count_nonzero(positive, axis=1, dtype=compared.dtype)
