"""Relation networks (Sung et al. 2018)."""

from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import model_copy
from keras_sslmeta.meta.comparing import ComparingModel

_FILTERS, _UNITS = 64, 8


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class RelationNetwork(ComparingModel):
    r"""Relation network: a learnt comparison of queries with classes.

    With embeddings f, maps or vectors, and a relation module g,

    ```
    s_k = Σ of f(x_i) over the support samples i of class k
    score_k(x) = g([s_k, f(x)]) in (0, 1)                         (Eq. 1; [·, ·] joins channels)
    loss = mean over queries and classes of (score_k − 1(y = k))²  (Eq. 2)
    ```

    **When to choose it**: where no fixed distance fits the embeddings. g runs on every pair of a query and a
    class, so a step costs tasks · queries · ways passes of it beside the encoder's one pass over support and
    queries; `PrototypicalNetwork` is cheaper, and usually as good.

    The scores are no logits: the default loss is the mean squared error on one-hot labels (the paper), and
    not a cross-entropy. A class number of which a task has no support sample gets the score 0. What batch
    normalisation leaks in training, in g as in the encoder, and the number of ways are as in
    `PrototypicalNetwork`; the authors' code normalises by the batch in tests too, which this does not.

    Args:
        encoder: a `keras.Model` from samples `(batch, …)`, or a nest, to maps `(batch, height, width,
            channels)` or vectors `(batch, dim)`. Trained in place. The sum grows with the shots: train on
            as many as you test on.
        relation: g, a `keras.Model` from pairs `(batch, …, 2 · channels)` to scores in (0, 1),
            `(batch, 1)`. Defaults to None, which makes the paper's: for maps two blocks of a 3×3
            convolution of 64 filters (padded, as in the authors' Omniglot code), batch normalisation, ReLU
            and 2×2 max-pooling, left out where a map is only one wide; then, and for vectors alone,
            dense layers of 8 (ReLU) and 1 (sigmoid).
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: an episode, `{"support_x", "support_y", "query_x"}`, each `(tasks, samples, …)`; labels are
            integers from 0, `(tasks, samples)`, or one-hot, `(tasks, samples, ways)`.
        training: whether this is meta-training, or evaluation.

    Returns:
        `call` and `predict`: scores, `(tasks, queries, ways)`, float32 at least.

    Raises:
        ValueError: if `encoder` or `relation` is no Keras model, their outputs are not as above, or an
            episode is not as it must be.
        tf.errors.InvalidArgumentError: in a step, if a query's label is no class of its support set.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> model = ksm.RelationNetwork(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3)]))
    >>> x = np.random.default_rng(0).normal(size=(2, 5, 8, 8, 1)).astype("float32")
    >>> y = np.tile(np.arange(5), (2, 1))
    >>> scores = model.predict({"support_x": x, "support_y": y, "query_x": x}, verbose=0)
    >>> scores.shape, bool(((scores > 0) & (scores < 1)).all())
    ((2, 5, 5), True)

    Reference:
        Sung, Yang, Zhang, Xiang, Torr, Hospedales, "Learning to Compare: Relation Network for Few-Shot
        Learning", CVPR 2018, Eq. 1 and 2, Figure 3. https://arxiv.org/abs/1711.06025
    """

    gives_logits = False  # Scores from 0 to 1.

    def __init__(self, encoder, relation=None, **kwargs):
        super().__init__(encoder, **kwargs)
        if relation is not None and not isinstance(relation, keras.Model):
            raise ValueError(
                "`relation` must be None or a keras.Model, from pairs to scores. "
                f"Received: {relation!r} (of type {type(relation).__name__})"
            )
        self.relation: Any = relation
        if getattr(encoder, "outputs", None):  # Others tell their output's shape when called.
            self.build_where_known()

    def build(self, input_shape):
        super().build(input_shape)
        outputs = getattr(self.model, "outputs", None)
        if not outputs:
            samples = keras.tree.map_shape_structure(
                lambda shape: keras.KerasTensor((None, *shape[2:])), input_shape["support_x"]
            )
            outputs = keras.tree.flatten(self.model.compute_output_spec(samples))
        shape = outputs[0].shape
        if len(outputs) != 1 or len(shape) not in (2, 4) or None in shape[1:]:
            raise ValueError(
                "`encoder` must have one output, maps (batch, height, width, channels) or vectors "
                f"(batch, dim), of known size. Received: outputs of shape {[tuple(x.shape) for x in outputs]}"
            )
        self._pair = (*shape[1:-1], 2 * shape[-1])
        if self.relation is None:
            self.relation = _default_relation(self._pair)
        scores = self.relation(keras.KerasTensor((None, *self._pair)))
        if keras.tree.is_nested(scores) or tuple(scores.shape[1:]) != (1,):
            raise ValueError(
                "`relation` must give one score a pair, (batch, 1). Received: outputs of shape "
                f"{keras.tree.map_structure(lambda x: tuple(x.shape), scores)}"
            )

    def copied_models(self, x):
        pair = tf.zeros([1, *self._pair])
        relation = model_copy.copy_with(self.relation, {}, pair)
        return {**super().copied_models(x), "relation": relation}

    def default_loss(self):
        return keras.losses.MeanSquaredError()

    def embedding(self, outputs):
        return outputs

    def summarized(self, support, classes):
        one_hot = classes.one_hot(support.dtype)
        return {
            "sums": tf.einsum("tsw,ts...->tw...", one_hot, support),
            "count": classes.count(support.dtype),
        }

    def compare(self, queries, summary, training=None):
        sums = summary["sums"]
        shape, size = tf.shape(queries), tf.shape(sums)[1]
        inner = queries.shape[2:]
        lead = [shape[0], shape[1], size]
        pairs = tf.concat(
            [
                tf.broadcast_to(sums[:, None], [*lead, *inner]),
                tf.broadcast_to(queries[:, :, None], [*lead, *inner]),
            ],
            axis=-1,
        )
        flat = tf.reshape(pairs, [tf.reduce_prod(lead), *inner[:-1], 2 * inner[-1]])
        scores = tf.cast(self.relation(flat, training=training), queries.dtype)
        scores = tf.reshape(scores, lead)
        scores = tf.ensure_shape(scores, [*queries.shape[:2], sums.shape[1]])
        return tf.where(summary["count"][:, None, :] > 0, scores, tf.zeros_like(scores))

    def get_config(self):
        relation = keras.saving.serialize_keras_object(self.relation)
        return {**super().get_config(), "relation": relation}


def _default_relation(shape) -> keras.Model:
    """The paper's relation module for pairs of a shape."""
    layers = keras.layers
    x = inputs = keras.Input(shape)
    if len(shape) == 3:
        for _ in range(2):
            x = layers.Conv2D(_FILTERS, 3, padding="same", data_format="channels_last")(x)
            x = layers.BatchNormalization()(x)
            x = layers.ReLU()(x)
            pool = tuple(min(2, size) for size in x.shape[1:3])
            x = layers.MaxPooling2D(pool, data_format="channels_last")(x)
        x = layers.Flatten()(x)
    x = layers.Dense(_UNITS, "relu")(x)
    # In half precision the sigmoid would reach 0 and 1.
    dtype = "float32" if x.dtype in ("float16", "bfloat16") else None
    return keras.Model(inputs, layers.Dense(1, "sigmoid", dtype=dtype)(x), name="relation")
