"""Prototypical networks (Snell, Swersky and Zemel 2017)."""

import keras
import tensorflow as tf

from keras_sslmeta.meta.comparing import ComparingModel
from keras_sslmeta.meta.support_classes import logits_of_present


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class PrototypicalNetwork(ComparingModel):
    r"""Prototypical network: a query goes to the class whose mean embedding is nearest.

    With embeddings f, the prototypes of a task and the logits of a query x are

    ```
    c_k = mean of f(x_i) over the support samples i of class k         (Eq. 1)
    logits_k(x) = −‖f(x) − c_k‖²                                        (Eq. 2, before the softmax)
    ```

    **When to choose it**: the first method to try for few-shot classification, and hard to beat at its cost:
    one pass of the encoder over support and queries a step, and no inner loop. It trains best on more
    ways than it is tested on (the paper: 60-way training for 5-way and 20-way Omniglot, 20 to 30 ways for
    mini-ImageNet) and on as many shots.

    The encoder embeds support and queries of all tasks of a batch in one call. With batch normalisation,
    `fit` therefore normalises all of them by one batch's statistics, in which **queries see each other, the
    support sets, and other tasks**, as in the authors' code; `evaluate`, `predict` and `adapt` use the
    moving statistics, where no sample sees another. Keras's momentum of 0.99 needs some hundreds of
    steps to settle: choose 0.9 for short runs.

    A class number of which a task has no support sample (tasks may differ in their number of classes)
    gets a logit so low that no query is sent there. Distances are taken from the support set's mean and in
    float32 at least, so that a large mean common to all embeddings costs no digits.

    Args:
        encoder: a `keras.Model` from samples `(batch, …)`, or a nest, to embeddings `(batch, dim)`; maps
            are flattened. Trained in place.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: an episode, `{"support_x", "support_y", "query_x"}`, each `(tasks, samples, …)`; labels are
            integers from 0, `(tasks, samples)`, or one-hot, `(tasks, samples, ways)`.
        training: whether this is meta-training, or evaluation.

    Returns:
        `call` and `predict`: logits, `(tasks, queries, ways)`. Ways are the width of one-hot labels, else the
        largest label of the batch and one: prefer one-hot labels where batches differ in it.

    Raises:
        ValueError: if `encoder` is no Keras model, or has not one output; if an episode lacks a part, has
            others, or its parts do not agree.
        tf.errors.InvalidArgumentError: in a step, if a query's label is no class of its support set.

    The loss defaults to `SparseCategoricalCrossentropy(from_logits=True)`, with one-hot labels too (as in the
    paper).

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> x, y = np.random.default_rng(0).normal(size=(60, 8)), np.repeat(np.arange(10), 6)
    >>> encoder = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    >>> model = ksm.PrototypicalNetwork(encoder)
    >>> model.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    >>> episodes = ksm.data.episodes((x, y), ways=5, shots=1, queries=3, seed=0)
    >>> history = model.fit(episodes.batch(4), steps_per_epoch=2, verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'loss']
    >>> episode, query_y = next(iter(episodes))
    >>> classifier = model.adapt(episode["support_x"], episode["support_y"])
    >>> classifier.predict(episode["query_x"], verbose=0).shape
    (15, 5)

    Reference:
        Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, Eq. 1 and 2,
        Algorithm 1. https://arxiv.org/abs/1703.05175
    """

    def __init__(self, encoder, **kwargs):
        super().__init__(encoder, **kwargs)
        self.build_where_known()

    def summarized(self, support, classes):
        # Distances do not change with the origin, and from the mean less of them is cancelled.
        center = tf.stop_gradient(tf.reduce_mean(support, axis=1, keepdims=True))
        count = classes.count(support.dtype)
        sums = tf.matmul(classes.one_hot(support.dtype), support - center, transpose_a=True)
        prototypes = sums / tf.maximum(count, 1)[..., None]  # c_k, Eq. 1
        return {"center": center, "prototypes": prototypes, "count": count}

    def compare(self, queries, summary, training=None):
        queries, prototypes = queries - summary["center"], summary["prototypes"]
        squared = (
            tf.reduce_sum(queries * queries, axis=2)[:, :, None]
            + tf.reduce_sum(prototypes * prototypes, axis=2)[:, None, :]
            - 2 * tf.matmul(queries, prototypes, transpose_b=True)
        )
        return logits_of_present(-tf.nn.relu(squared), summary["count"])  # Eq. 2
