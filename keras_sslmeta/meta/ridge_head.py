"""R2-D2: ridge regression as a differentiable head (Bertinetto et al. 2019)."""

import math

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.meta.comparing import ComparingModel
from keras_sslmeta.meta.support_classes import logits_of_present


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class RidgeHead(ComparingModel):
    r"""R2-D2: a linear classifier, solved for each task in closed form.

    With the n support embeddings of a task and a column of ones, X = [f(x_i), 1] / √n `(n, d + 1)`, and
    one-hot targets Y / √n,

    ```
    W = (XᵀX + λ I)⁻¹ Xᵀ Y = Xᵀ (XXᵀ + λ I)⁻¹ Y          (section 3.2)
    logits(x) = α [f(x), 1] W + β
    ```

    λ, α and β are learnt with the encoder; λ stays positive, as the exponential of what is learnt. With
    respect to the support set that is ridge regression with the penalty n · λ, bias included. The second
    form is solved where n ≤ d + 1, or n is not known beforehand: n³ operations in place of (d + 1)³.

    **When to choose it**: with several shots, where a linear classifier on the embeddings tells classes
    apart better than their means do, at little more than the cost of `PrototypicalNetwork`: one pass of the
    encoder, and one Cholesky factor of n × n a task. Gradients go through the solution, exactly.

    What batch normalisation leaks, absent classes and the number of ways are as in `PrototypicalNetwork`.

    Args:
        encoder: a `keras.Model` from samples `(batch, …)`, or a nest, to embeddings `(batch, dim)`; maps
            are flattened. Trained in place.
        regularization: λ to start from, positive. Defaults to 50 (the authors' code, which keeps it; the
            paper learns it). Meant for embeddings of some thousand components of size about 1: try 1
            for small ones.
        scale: α to start from. Defaults to 1 (MetaOptNet's reimplementation; the authors' code has 1e-4, with
            Adam at 5e-3).
        shift: β to start from. Defaults to 0 (the authors' code).
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: an episode, `{"support_x", "support_y", "query_x"}`, each `(tasks, samples, …)`; labels are
            integers from 0, `(tasks, samples)`, or one-hot, `(tasks, samples, ways)`.
        training: whether this is meta-training, or evaluation.

    Returns:
        `call` and `predict`: logits, `(tasks, queries, ways)`, float32 at least.

    Raises:
        ValueError: if `encoder` is no Keras model, an argument is out of its range, or an episode is not
            as it must be.
        tf.errors.InvalidArgumentError: in a step, if a query's label is no class of its support set.

    The loss defaults to `SparseCategoricalCrossentropy(from_logits=True)`, with one-hot labels too (as in the
    paper).

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = ksm.RidgeHead(encoder, regularization=1.0)
    >>> x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    >>> y = np.tile(np.arange(5), (2, 1))
    >>> model.predict({"support_x": x, "support_y": y, "query_x": x}, verbose=0).shape
    (2, 5, 5)
    >>> round(float(model.regularization), 4)
    1.0

    Reference:
        Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR
        2019, section 3.2. https://arxiv.org/abs/1805.08136
    """

    def __init__(
        self,
        encoder,
        regularization: float = 50.0,
        scale: float = 1.0,
        shift: float = 0.0,
        **kwargs,
    ):
        super().__init__(encoder, **kwargs)
        self._start = {
            "regularization": arguments.positive_number("regularization", regularization),
            "scale": arguments.positive_number("scale", scale),
            "shift": _number("shift", shift),
        }
        self.log_regularization = self._scalar(
            "log_regularization", math.log(self._start["regularization"])
        )
        self.scale = self._scalar("scale", self._start["scale"])
        self.shift = self._scalar("shift", self._start["shift"])
        self.build_where_known()

    @property
    def regularization(self) -> tf.Tensor:
        """λ as it is now, a scalar."""
        return tf.exp(self.log_regularization.value)

    def summarized(self, support, classes):
        dtype = support.dtype
        samples = support.shape[1]
        count = tf.cast(tf.shape(support)[1], dtype)
        x = tf.concat([support, tf.ones_like(support[..., :1])], axis=2) / tf.sqrt(count)
        y = classes.one_hot(dtype) / tf.sqrt(count)
        solve = _dual if samples is None or samples <= x.shape[2] else _primal
        weights = solve(x, y, tf.cast(self.regularization, dtype))
        return {"weights": weights, "count": classes.count(dtype)}

    def compare(self, queries, summary, training=None):
        weights = summary["weights"]
        outputs = tf.matmul(queries, weights[:, :-1]) + weights[:, -1:]
        scale, shift = (tf.cast(v.value, outputs.dtype) for v in (self.scale, self.shift))
        return logits_of_present(scale * outputs + shift, summary["count"])

    def stop_adapting(self):
        self.log_regularization.trainable = False

    def get_config(self):
        return {**super().get_config(), **self._start}

    def _scalar(self, name, value):
        return self.add_weight(
            shape=(), initializer=keras.initializers.Constant(value), autocast=False, name=name
        )


def _primal(x, y, regularization):
    """(XᵀX + λ I)⁻¹ Xᵀ Y, `(tasks, d + 1, ways)`."""
    gram = tf.matmul(x, x, transpose_a=True)
    return _solved(gram, regularization, tf.matmul(x, y, transpose_a=True))


def _dual(x, y, regularization):
    """Xᵀ (XXᵀ + λ I)⁻¹ Y, the same."""
    gram = tf.matmul(x, x, transpose_b=True)
    return tf.matmul(x, _solved(gram, regularization, y), transpose_a=True)


def _solved(gram, regularization, right):
    ridge = regularization * tf.eye(tf.shape(gram)[-1], dtype=gram.dtype)
    return tf.linalg.cholesky_solve(tf.linalg.cholesky(gram + ridge), right)


def _number(name, value):
    if not arguments.is_number(value):
        raise ValueError(f"`{name}` must be a number. Received: {name}={value!r}")
    return float(value)
