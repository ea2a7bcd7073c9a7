"""Matching networks (Vinyals et al. 2016)."""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, unit_vectors
from keras_sslmeta.meta.comparing import ComparingModel
from keras_sslmeta.meta.support_classes import logits_of_present


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class MatchingNetwork(ComparingModel):
    r"""Matching network: attention over the support samples, added up by class.

    With embeddings f, temperature T and the support samples (x_i, y_i) of a task,

    ```
    a(x, x_i) = softmax over i of cos(f(x), f(x_i)) / T          (section 2.1.1)
    output_k(x) = log Σ_{i: y_i = k} a(x, x_i)                   (Eq. 1)
    ```

    The outputs are logarithms of probabilities, so they are logits too: their softmax is themselves.

    **When to choose it**: where a class has several modes, which a mean would blur; with one shot it
    is a cosine classifier. A step costs one pass of the encoder over support and queries, and
    tasks · queries · samples · ways numbers to add up attention in.

    With T = 1 (the paper) cosines lie within [−1, 1] and probabilities stay soft: 5-way 1-shot they cannot
    exceed 0.65, and the loss cannot fall under 0.43. Others sharpen the attention: 0.1 (where Gidaris and
    Komodakis 2018 start to learn it), 0.01 (mmfewshot).

    Both encoders of the paper, f and g, are the same one here, as in its basic form; the full-context
    embeddings of section 2.1.2 are not included. What batch normalisation leaks, absent classes and the
    number of ways are as in `PrototypicalNetwork`.

    Args:
        encoder: a `keras.Model` from samples `(batch, …)`, or a nest, to embeddings `(batch, dim)`; maps
            are flattened. Trained in place.
        temperature: T, positive. Defaults to 1 (the paper).
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: an episode, `{"support_x", "support_y", "query_x"}`, each `(tasks, samples, …)`; labels are
            integers from 0, `(tasks, samples)`, or one-hot, `(tasks, samples, ways)`.
        training: whether this is meta-training, or evaluation.

    Returns:
        `call` and `predict`: log-probabilities, `(tasks, queries, ways)`, float32 at least.

    Raises:
        ValueError: if `encoder` is no Keras model, `temperature` is not positive, or an episode is not
            as it must be.
        tf.errors.InvalidArgumentError: in a step, if a query's label is no class of its support set.

    The loss defaults to `SparseCategoricalCrossentropy(from_logits=True)`, with one-hot labels too (as in the
    paper).

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = ksm.MatchingNetwork(encoder, temperature=0.1)
    >>> x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    >>> y = np.tile(np.arange(5), (2, 1))
    >>> outputs = model.predict({"support_x": x, "support_y": y, "query_x": x}, verbose=0)
    >>> outputs.shape, bool(np.allclose(np.exp(outputs).sum(-1), 1, atol=1e-5))
    ((2, 5, 5), True)

    Reference:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot Learning",
        NeurIPS 2016, Eq. 1 and 2, section 2.1.1. https://arxiv.org/abs/1606.04080
    """

    def __init__(self, encoder, temperature: float = 1.0, **kwargs):
        super().__init__(encoder, **kwargs)
        self.temperature = arguments.positive_number("temperature", temperature)
        self.build_where_known()

    def summarized(self, support, classes):
        return {
            "support": unit_vectors.normalize(support),
            "one_hot": classes.one_hot(support.dtype),
        }

    def compare(self, queries, summary, training=None):
        support, one_hot = summary["support"], summary["one_hot"]
        queries = unit_vectors.normalize(queries)
        similarity = tf.matmul(queries, support, transpose_b=True) / self.temperature
        log_attention = tf.nn.log_softmax(similarity)  # (tasks, queries, samples)
        is_of_class = tf.transpose(one_hot, [0, 2, 1])[:, None] > 0  # (tasks, 1, ways, samples)
        lowest = tf.constant(similarity.dtype.min / 2, similarity.dtype)
        by_class = tf.where(is_of_class, log_attention[:, :, None], lowest)
        outputs = tf.reduce_logsumexp(by_class, axis=3)  # Eq. 1
        return logits_of_present(outputs, tf.reduce_sum(one_hot, axis=1))

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
