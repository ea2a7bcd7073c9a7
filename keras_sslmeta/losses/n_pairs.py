"""NPairs: the multi-class N-pair loss (Sohn 2016)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.losses.paired_loss import PairedLoss
from keras_sslmeta.mechanisms import arguments, labelled_softmax
from keras_sslmeta.negatives.negative_rule import NegativeRule


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class NPairs(PairedLoss):
    r"""Softmax cross-entropy over the dot products of anchors with the positives of all samples.

    With anchors a and positives p, not normalised,

    ```
    l_i = − 1/|P(i)| · Σ_{j ∈ P(i)} a_i·p_j  +  log Σ_j exp(a_i·p_j)  +  λ/2 · (‖a_i‖² + ‖p_i‖²)
    ```

    P(i) are the samples with the label of i, itself included; without labels it is i alone. The norms
    carry how sure a comparison is, which is why nothing is normalised here, and why the paper keeps them
    small by a penalty.

    Args:
        l2_weight: λ, a number from 0. Defaults to 0 (`tfa.losses.NpairsLoss` has none).
        gather: whether anchors are compared with the positives of all replicas. Defaults to True.
        negatives: rules of `keras_sslmeta.negatives` on which samples **of other labels** count in the
            denominator, and how much. Defaults to none.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: None, or labels `(batch,)`, integers of any type or strings, compared exactly; or a dict with
            these under `"labels"` and with what rules need.
        y_pred: a stack of anchors and positives, `(batch, 2, dim)`.
        sample_weight: optional, `(batch,)`.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `l2_weight` is not a number from 0 or `negatives` holds anything but rules; if
            labels are floats or not one a sample; if `y_pred` is not as above, or known to be of a single
            sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> pairs = np.random.default_rng(0).normal(size=(6, 2, 4)).astype("float32")
    >>> apart = ksm.losses.NPairs()(np.arange(6), pairs)
    >>> bool(np.isclose(apart, ksm.losses.NPairs()(None, pairs)))
    True
    >>> bool(apart != ksm.losses.NPairs()(np.array([0, 0, 1, 1, 2, 2]), pairs))
    True

    Reference:
        Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016, Eq. 7.
        https://papers.nips.cc/paper/6200
    """

    takes_more_negatives = False

    def __init__(
        self,
        l2_weight: float = 0.0,
        gather: bool = True,
        negatives: Sequence[NegativeRule] = (),
        reduction: str | None = "sum_over_batch_size",
        name: str = "n_pairs",
        dtype=None,
    ):
        super().__init__(1.0, False, gather, negatives, reduction, name, dtype)
        self.l2_weight = arguments.number_from_zero("l2_weight", l2_weight)

    def targets(self, y_true, y_pred):
        if len(y_pred.shape) != 3:
            raise ValueError(
                "`y_pred` must be a stack of anchors and positives, (batch, 2, dim). "
                f"Received: shape={tuple(y_pred.shape)}"
            )
        has_labels = "labels" in y_true if isinstance(y_true, dict) else y_true is not None
        return labelled_softmax.checked(y_true, y_pred.shape[0]) if has_labels else y_true

    def pair_losses(self, pairs):
        known = pairs.information
        if known is None or (isinstance(known, dict) and "labels" not in known):
            negatives = self.negative_keys(pairs.anchors, pairs, pairs.keys)
            values = tf.math.softplus(negatives.log_sum_exp()[:, 0] - pairs.positives)
        else:
            values = self._labelled(pairs)
        norms = tf.reduce_sum(tf.square(pairs.anchors) + tf.square(pairs.keys), axis=1)
        return values + self.l2_weight / 2 * norms if self.l2_weight else values

    def _labelled(self, pairs):
        def keys_of(rules):
            return self.negative_keys(pairs.anchors, pairs, pairs.keys, rules)

        keys = labelled_softmax.sets_of_keys(keys_of, self.negatives)
        return labelled_softmax.losses(keys, pairs.positives[:, None, None], is_key=False)[:, 0]

    def get_config(self):
        config = super().get_config()
        del config["temperature"], config["normalize"]
        return {**config, "l2_weight": self.l2_weight}
