"""`ExcludeByGuide`: negatives that a frozen guide model finds closer than the positive."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, unit_vectors
from keras_sslmeta.negatives.negative_rule import NegativeRule, left_out


@keras.saving.register_keras_serializable(package="keras_sslmeta.negatives")
class ExcludeByGuide(NegativeRule):
    """Leaves out negatives that a guide model finds closer to the anchor than the anchor's positive.

    With g the guide's embeddings, negative j of anchor i is left out where

    ```
    cos(g_i, g_j) > cos(g_i, g_i⁺) − margin
    ```

    The guide is any frozen model, run on the same views; only its embeddings come here, under `key`:
    `(batch, views, dim)` for losses on views; `(batch, 2, dim)`, of query and key (and more for explicit
    hard negatives), for `InfoNCE` and `CLIP`. Hard negatives without a guide's embedding stay in. With
    several positives the closest one counts.

    Args:
        key: the name of the guide's embeddings in a dict `y_true`; a plain tensor `y_true` serves
            whatever the name. Defaults to `"guide"`.
        margin: a number; a positive one leaves out more. Defaults to 0 (GISTEmbed).

    Raises:
        ValueError: if `margin` is not a finite number; on the first call, if embeddings are missing or
            there are not as many a sample as views or keys.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> views = np.random.default_rng(0).normal(size=(6, 2, 8)).astype("float32")
    >>> guide = np.random.default_rng(1).normal(size=(6, 2, 4)).astype("float32")
    >>> loss = ksm.losses.NTXent(negatives=[ksm.negatives.ExcludeByGuide()])
    >>> float(loss(guide, views)) < float(ksm.losses.NTXent()(None, views))
    True

    Reference:
        Solatorio, "GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding
        Fine-tuning", 2024. https://arxiv.org/abs/2402.16829
    """

    def __init__(self, key: str = "guide", margin: float = 0.0):
        if not arguments.is_number(margin):
            raise ValueError(f"`margin` must be a finite number. Received: margin={margin!r}")
        self.key, self.margin = key, float(margin)

    def of_pairs(self, negatives):
        guide = tf.convert_to_tensor(negatives.about(self.key))
        if guide.shape.rank != 3:
            raise ValueError(
                f"`{self.key}` must hold a guide's embedding for each view or key of a sample, "
                f"(batch, views, dim). Received: shape={guide.shape}"
            )
        rows, keys = (
            unit_vectors.normalize(tf.cast(x, tf.float32)) for x in negatives.vectors(self.key)
        )
        own = unit_vectors.normalize(tf.cast(guide, tf.float32))
        cosines = tf.matmul(own, own, transpose_b=True)
        pairs = [[u for u in negatives.key_slots if u != v] for v in negatives.row_slots]
        positive = [
            tf.reduce_max(tf.gather(cosines[:, v], others, axis=1), axis=1)
            for v, others in zip(negatives.row_slots, pairs, strict=True)
        ]
        return [rows, tf.reshape(tf.stack(positive, axis=1), [-1])], [keys]

    def log_weights(self, similarity, of_rows, of_keys):
        (vectors, positive), (keys,) = of_rows, of_keys
        guided = tf.matmul(vectors, keys, transpose_b=True)
        # A guide that cannot tell a pair from the positive, up to rounding, leaves it in.
        return left_out(guided > positive[:, None] - self.margin + 1e-6, similarity)

    def get_config(self):
        return {"key": self.key, "margin": self.margin}
