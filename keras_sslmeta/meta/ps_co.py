"""PsCo (Jang, Lee & Shin 2023)."""

import keras
import tensorflow as tf

from keras_sslmeta.layers.predictor_head import PredictorHead
from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.losses.info_nce import InfoNCE
from keras_sslmeta.mechanisms import (
    arguments,
    cross_replica,
    sinkhorn,
    unit_vectors,
    view_axis,
)
from keras_sslmeta.negatives.weigh_pairs import WeighPairs
from keras_sslmeta.ssl.momentum import MomentumModel
from keras_sslmeta.ssl.queued import Queued


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class PsCo(Queued, MomentumModel):
    r"""PsCo: few-shot tasks made of unlabelled data, from a momentum network and a queue.

    Of each sample i, view 1 gives a query q_i = predictor(head(encoder(view))), and view 2 a key k_i by
    momentum copies of encoder and head; both have unit length. M holds the keys of earlier batches.
    The batch is a task of its own: sample i is a class, and its **shots** S_i are the K keys of M that
    are assigned to k_i most. The loss of sample i is that of MoCo plus that of the task,

    ```
    l_i = − q_i·k_i/T + log [ e^{q_i·k_i/T} + Σ_{m ∈ M} e^{q_i·m/T} ]
          − 1/K · Σ_{s ∈ S_i} q_i·s/T′ + log Σ_j Σ_{s ∈ S_j} e^{q_i·s/T′}
    ```

    with j over the global batch; a key that is a shot of several samples counts for each. The assignment
    comes from Sinkhorn–Knopp on k_i·m/ε, which spreads the batch evenly over M
    (`keras_sslmeta.losses.SwappedPrediction`, whose prototypes M takes the place of). After each step

    ```
    momentum copy ← momentum · copy + (1 − momentum) · network
    ```

    The statistics of batch normalisation are not averaged: in training a copy normalises by its own batch, in
    evaluation it uses the network's moving statistics, as in the authors' code.

    **The first steps**: places of the queue that nothing has filled take no part in either term. So the
    first step only fills the queue, its loss is 0, and as long as fewer than `shots` keys are held, the
    task's term is 0 and MoCo's alone trains. (The authors' code uses random vectors there.)

    **When to choose it**: for few-shot tasks where there are no labels at all to meta-train on. `predict`,
    `model.encoder` and `evaluation.few_shot(model, …)` use the encoder's features. One step costs the
    encoder's forward and backward pass on one view, and a forward pass on the other.

    Args:
        encoder: a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        augmentation: layer or callable that turns plain samples into views, or a list of two of
            them, of queries and of keys (the authors': strong and weak). Defaults to None: views
            come ready-made, `(batch, 2, …)`.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`. Defaults to None,
            the authors': Dense 4,096, BatchNorm, ReLU, Dense 256, BatchNorm without scale and shift,
            the Dense layers without bias; BatchNorm is synchronised over replicas.
        predictor: a Keras layer or model, `(n, dim) → (n, dim)`. Defaults to None, the authors': the same but
            for the last BatchNorm. `keras.layers.Identity()` leaves it out.
        queue_size: number of keys in M, at least `shots` and the global batch. Defaults to 16,384 (the
            paper).
        momentum: a number from 0 to 1. Defaults to 0.99 (the paper).
        temperature: T, of MoCo's term. Defaults to 0.2 (the paper).
        supervised_temperature: T′, of the task's term. Defaults to 1.0 (the paper).
        shots: K, shots a class. Defaults to 4 (the paper; 1 for Omniglot).
        epsilon: ε, how soft the assignment is. Defaults to 0.05 (the authors' code, as SwAV).
        sinkhorn_steps: rounds of Sinkhorn–Knopp. Defaults to 3 (the authors' code, as SwAV).
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, 2, …)`.
        training: whether the networks are in training mode.

    Returns:
        `call`: queries and keys, before normalisation, `(batch, 2, dim)`; no gradient flows into keys.
        `predict`: features `(samples, features)` of plain samples. `evaluate`: the loss on views,
        against the queue as training left it.

    Raises:
        ValueError: if `encoder` is not a model, or its output not one vector a sample; if head or
            predictor is not a layer, or the predictor gives other dimensions than the head; if a number
            is not as above; if `compile` is given a loss; if plain samples come without an
            `augmentation`, or other than two views; if a batch holds more samples than the queue.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32)])
    >>> model = ksm.PsCo(
    ...     encoder,
    ...     projector=ksm.layers.ProjectionHead(16),
    ...     predictor=ksm.layers.ProjectionHead(16),
    ...     augmentation=keras.layers.RandomTranslation(0.2, 0.2),
    ...     queue_size=64,
    ... )
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(96, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> int(model.queue.filled), model.predict(images, verbose=0).shape
    (64, (96, 32))

    Reference:
        Jang, Lee, Shin, "Unsupervised Meta-learning via Few-shot Pseudo-supervised Contrastive Learning",
        ICLR 2023, Sec. 3. https://arxiv.org/abs/2303.00996
    """

    def __init__(
        self,
        encoder,
        augmentation=None,
        projector=None,
        predictor=None,
        queue_size: int = 16384,
        momentum: float = 0.99,
        temperature: float = 0.2,
        supervised_temperature: float = 1.0,
        shots: int = 4,
        epsilon: float = 0.05,
        sinkhorn_steps: int = 3,
        **kwargs,
    ):
        super().__init__(encoder, augmentation, projector, predictor, momentum, **kwargs)
        self.shots = arguments.count("shots", shots)
        self.queue_size = arguments.count("queue_size", queue_size, least=self.shots)
        self.temperature = arguments.positive_number("temperature", temperature)
        self.supervised_temperature = arguments.positive_number(
            "supervised_temperature", supervised_temperature
        )
        self._moco = InfoNCE(
            self.temperature,
            in_batch_negatives=False,
            negatives=[WeighPairs(_of_both, key="is_held")],
            reduction=None,
        )
        self.epsilon = arguments.positive_number("epsilon", epsilon)
        self.sinkhorn_steps = arguments.count("sinkhorn_steps", sinkhorn_steps)
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The mean of the values that `compute_loss` finds with the queue."""
        return PsCoLoss()

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """As `keras.Model.compile`, with Adam as default; the loss is the method's own."""
        if loss is not None and not isinstance(loss, PsCoLoss):
            raise ValueError(
                "PsCo brings its own loss, which needs its queue: leave `loss` out. "
                f"Received: loss={loss!r}"
            )
        if kwargs.get("metrics") or kwargs.get("weighted_metrics"):
            raise ValueError(
                "`metrics` must be left out: there are no labels to measure by while PsCo trains. Measure "
                "with `keras_sslmeta.callbacks.KNNProbe`, or `evaluation.few_shot`. "
                f"Received: metrics={kwargs.get('metrics')!r}"
            )
        super().compile(optimizer, loss, **kwargs)

    def default_projector(self) -> keras.layers.Layer:
        """The authors': 4,096, then 256."""
        return ProjectionHead(
            256,
            hidden_dim=4096,
            batch_normalization=True,
            output_normalization="plain",
            name="projector",
        )

    def default_predictor(self) -> keras.layers.Layer:
        """The authors': 4,096, then 256."""
        return PredictorHead(4096, output_bias=False, name="predictor")

    def call(self, inputs, training=None):
        of_queries, of_keys = view_axis.both(self, self.views_of(inputs))
        queries = self.predictor(self.projector(self.encode(of_queries)))
        keys = self.targets_of(of_keys, None)
        return tf.stack([queries, tf.stop_gradient(tf.cast(keys, queries.dtype))], axis=1)

    # ----------------------------------------------------------------------------- the loss

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`; in training, the queue takes in the keys afterwards."""
        queries, keys = tf.unstack(y_pred, axis=1)
        filled = self.queue.filled
        held = self.queue(keys, training=training)  # What it held before.
        queries, keys = (unit_vectors.normalize(tf.cast(z, held.dtype)) for z in (queries, keys))
        values = self._instance_losses(queries, keys, held, filled)
        values += self._task_losses(queries, tf.stop_gradient(keys), held, filled)
        return self.loss_of_pairs([(None, values)], sample_weight)

    def _instance_losses(self, queries, keys, held, filled):
        """MoCo's term, `(batch,)`: each query against its own key and all keys held."""
        is_held = tf.cast(tf.range(self.queue_size, dtype=tf.int64) < filled, held.dtype)
        known = {"keys": keys, "memory": held, "memory_is_held": is_held}
        return self._moco({**known, "is_held": tf.ones_like(keys[:, 0])}, queries)

    def _task_losses(self, queries, keys, held, filled):
        """The task's term, `(batch,)`: the supervised contrastive loss of queries against shots."""
        enough = filled >= self.shots
        # Where there are too few, any shots will do: their loss is left out.
        own = self._choose_shots(keys, held, tf.where(enough, filled, self.queue_size))
        shots = tf.gather(held, tf.reshape(cross_replica.gather(own), [-1]))
        logits = tf.matmul(queries, shots, transpose_b=True) / self.supervised_temperature
        prototypes = tf.reduce_mean(tf.gather(held, own), axis=1)  # (batch, dim)
        attraction = tf.reduce_sum(queries * prototypes, axis=1) / self.supervised_temperature
        values = tf.reduce_logsumexp(logits, axis=1) - attraction
        return tf.where(enough, values, tf.zeros_like(values))

    def _choose_shots(self, keys, held, count):
        """Places in the queue of each sample's shots, `(batch, shots)`, among the first `count`."""
        is_free = tf.range(self.queue_size + 1, dtype=tf.int64) >= count
        scores = tf.matmul(keys, held, transpose_b=True)
        scores = tf.pad(scores, [[0, 0], [0, 1]])  # A place that is always free.
        nothing = tf.constant(float("-inf"), scores.dtype)
        # One more row takes all the free places, so that no sample can: Sinkhorn–Knopp sees the others.
        sink = tf.where(is_free, tf.zeros([], scores.dtype), nothing)[None]
        scores = tf.where(is_free, nothing, scores)
        codes = sinkhorn.codes(scores, sink, self.epsilon, self.sinkhorn_steps)
        return tf.math.top_k(codes[:, : self.queue_size], self.shots).indices

    def get_config(self):
        config = super().get_config()
        del config["views"]  # Always two.
        return {
            **config,
            "temperature": self.temperature,
            "supervised_temperature": self.supervised_temperature,
            "shots": self.shots,
            "epsilon": self.epsilon,
            "sinkhorn_steps": self.sinkhorn_steps,
        }


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class PsCoLoss(BatchLoss):
    """What `PsCo` is compiled with: the mean of the values that it computes itself, one a sample."""

    def call(self, y_true, y_pred):
        return y_pred


def _of_both(of_queries, of_keys):
    """The weight of a pair: that of the key, since queries have 1."""
    return of_queries * of_keys
