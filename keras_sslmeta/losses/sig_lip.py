"""SigLIP: the sigmoid loss of two modalities (Zhai et al. 2023)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.paired_loss import PairedLoss
from keras_sslmeta.mechanisms import arguments, cross_replica, streaming_similarity


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class SigLIP(PairedLoss):
    r"""Binary cross-entropy of every pair of two modalities: same sample, or not.

    With a and c the embeddings of the two modalities, s the cosine similarity and the logit of a pair
    x_ij = s(a_i, c_j)/T + b, sample i of the global batch has the value

    ```
    l_i = softplus(−x_ii) + Σ_{j≠i} softplus(x_ij)
    ```

    so the mean over the batch is the sum over all pairs divided by B (and not by B²). There is no softmax, so
    one pass over the similarities does for the value. The bias b makes up for the many negatives at the
    start. Scale and bias that SigLIP learns belong to a layer, since a loss has no variables:
    `keras_sslmeta.layers.LogitScale(0.1, max_scale=None, initial_bias=-10.0)`, with
    `SigLIP(temperature=1.0, bias=0.0, normalize=False)`.

    Args:
        temperature: T, a positive number. Defaults to 0.1 (where SigLIP starts: scale 10).
        bias: b, a number. Defaults to −10 (where SigLIP starts).
        normalize: whether embeddings are divided by their L2 norm first. Defaults to True (the paper).
        gather: whether embeddings are compared with those of all replicas. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are compared in float32 in any case.

    Call arguments:
        y_true: the one modality, c, `(batch, dim)`; with a stack as `y_pred` it is ignored.
        y_pred: the other, a, `(batch, dim)`; or a stack of a and c, `(batch, 2, dim)`.
        sample_weight: optional, `(batch,)`, of the rows a_i.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if `temperature` is not a positive number or `bias` not a finite one; if embeddings are
            not as above, or known to be of a single sample.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> same = np.ones((8, 2, 16), "float32")    # all equal: softplus(−x) + (B − 1) softplus(x)
    >>> expected = np.log1p(np.exp(-0.0)) * 8
    >>> bool(np.isclose(ksm.losses.SigLIP()(None, same), expected, rtol=1e-4))
    True

    Reference:
        Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid Loss for Language Image Pre-Training", ICCV 2023,
        Algorithm 1. https://arxiv.org/abs/2303.15343
    """

    takes_more_negatives = False

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        normalize: bool = True,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "sig_lip",
        dtype=None,
    ):
        super().__init__(temperature, normalize, gather, (), reduction, name, dtype)
        if not arguments.is_number(bias):
            raise ValueError(f"`bias` must be a finite number. Received: bias={bias!r}")
        self.bias = float(bias)

    def pair_losses(self, pairs):
        keys, own_key = pairs.keys, 0
        if self.gather and cross_replica.replica_context() is not None:
            own_key = cross_replica.first_row(tf.shape(pairs.anchors)[0])
            keys = cross_replica.gather(keys)
        others = streaming_similarity.softplus_sum(pairs.anchors, keys, own_key, self.bias)
        return others + tf.math.softplus(-(pairs.positives + self.bias))

    def get_config(self):
        config = super().get_config()
        del config["negatives"]
        return {**config, "bias": self.bias}
