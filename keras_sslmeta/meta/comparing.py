"""`ComparingModel`: what meta-learners that compare queries with a support set share."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import byte_images, cross_replica, fused_normalization, model_copy
from keras_sslmeta.mechanisms.task_loss import TaskLoss
from keras_sslmeta.meta.episodic import (
    EpisodicModel,
    as_one_batch,
    check_episode,
    check_queries,
    weights_of_queries,
)
from keras_sslmeta.meta.few_shot_classifier import FewShotClassifier
from keras_sslmeta.meta.support_classes import SupportClasses, label_ids

_PARTS = ("support_x", "support_y", "query_x")


class ComparingModel(EpisodicModel):
    """Parent of meta-learners that encode support and queries, and compare the two.

    A method says what of a task's support set its answers need (`summarized`), and how a query's embedding
    is compared with that (`compare`). This class encodes support and queries of all tasks in one call of
    the encoder, reads the classes from the support labels, gives the compiled loss labels in the form that
    it takes, and makes the gradient that of the global batch on any number of replicas.

    Args:
        encoder: a `keras.Model` from samples to embeddings, trained in place. It may be frozen, for
            `evaluate`, `predict` and `adapt`, or where the method has weights of its own.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: if `encoder` is no Keras model; on the first call, if an episode is not as
            `EpisodicModel` says, has other keys, or labels that are neither integers nor one-hot.
        tf.errors.InvalidArgumentError: in a step, if a query's label is no class of its support set.
    """

    gives_logits = True

    def __init__(self, encoder, **kwargs):
        if not isinstance(encoder, keras.Model):
            raise ValueError(
                "`encoder` must be a keras.Model, from samples to embeddings. "
                f"Received: {encoder!r} (of type {type(encoder).__name__})"
            )
        super().__init__(encoder, **kwargs)

    @property
    def encoder(self) -> keras.Model:
        """The encoder."""
        return self.model

    # ------------------------------------------------------------------ what a method writes

    def summarized(self, support, classes: SupportClasses) -> "dict[str, tf.Tensor]":
        """What answers need of the support sets: tensors with an axis of tasks in front.

        Args:
            support: embeddings `(tasks, samples, …)`, float32 or float64.
            classes: the classes of the samples.
        """
        raise NotImplementedError

    def compare(self, queries, summary: "dict[str, tf.Tensor]", training=None) -> tf.Tensor:
        """Predictions `(tasks, queries, ways)` for the queries' embeddings `(tasks, queries, …)`."""
        raise NotImplementedError

    def default_loss(self) -> keras.losses.Loss:
        """The loss of `compile(loss=None)`."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def embedding(self, outputs) -> tf.Tensor:
        """The encoder's outputs as the method compares them; here as vectors, `(n, dim)`."""
        return tf.reshape(outputs, [tf.shape(outputs)[0], int(np.prod(outputs.shape[1:]))])

    def copied_models(self, x) -> "dict[str, keras.Model]":
        """Copies of the models in the method, by the constructor's argument; `x` are samples to build on."""
        return {"encoder": model_copy.copy_with(self.model, {}, x)}

    def stop_adapting(self):
        """Freezes the weights that `summarized` alone uses, in a copy that only compares."""

    # ---------------------------------------------------------------------------- for users

    def adapt(self, support_x, support_y) -> FewShotClassifier:
        """An ordinary Keras model that classifies samples of one task.

        It shares nothing with this model, and its `predict` gives what `predict` of this model gives on
        the task. What it needs of the support set is computed once, and saved with it.

        Args:
            support_x: support set of one task, `(samples, …)` or a nest, without an axis of tasks.
            support_y: its classes, integers `(samples,)` or one-hot `(samples, ways)`.

        Returns:
            A `FewShotClassifier` from samples `(n, …)` to predictions `(n, ways)`, not compiled.

        Raises:
            ValueError: if the support set is not what the encoder takes.
        """
        if isinstance(support_x, list) and len(getattr(self.model, "inputs", None) or [0]) == 1:
            support_x = np.asarray(support_x)
        support_x = keras.tree.map_structure(tf.convert_to_tensor, support_x)
        support_y = tf.convert_to_tensor(support_y)
        self._check_support(support_x, support_y)
        if not self.built:
            shapes = keras.tree.map_structure(lambda x: (None, *x.shape), support_x)
            self.build({"support_x": shapes})
        classes = SupportClasses.of(support_y[None])
        support_x = byte_images.as_the_model_takes_them(self.model, support_x)
        summary = self.summarized(self.embed(support_x)[None], classes)
        classifier = FewShotClassifier(
            self.copied(support_x),
            {name: (list(x.shape[1:]), x.dtype.name) for name, x in summary.items()},
        )
        classifier.build(keras.tree.map_structure(lambda x: (None, *x.shape[1:]), support_x))
        classifier.remember({name: x[0] for name, x in summary.items()})
        classifier(support_x)  # Keras exports what has been called.
        return classifier

    def embed(self, x, training=None) -> tf.Tensor:
        """Embeddings of samples `(n, …)`, in float32 at least."""
        outputs = self.model(x, training=training)
        if isinstance(outputs, (dict, list, tuple)) or None in outputs.shape[1:]:
            shapes = keras.tree.map_structure(lambda x: tuple(x.shape), outputs)
            raise ValueError(
                "`encoder` must have one output, (batch, …) of known size: end it by a "
                f"GlobalAveragePooling layer, say. Received: outputs of shape {shapes}"
            )
        is_half = outputs.dtype in (tf.float16, tf.bfloat16)
        return self.embedding(tf.cast(outputs, tf.float32) if is_half else outputs)

    def copied(self, x) -> "ComparingModel":
        """A copy that shares nothing with this model; `x` are samples to build on."""
        copy = type(self).from_config({**self.get_config(), **self.copied_models(x)})
        if not copy.built:
            copy.build({"support_x": keras.tree.map_structure(lambda x: (None, *x.shape), x)})
        for target, source in zip(copy.weights, self.weights, strict=True):
            target.assign(source)
        return copy

    # ---------------------------------------------------------------------------- for Keras

    def compile(self, optimizer="adam", loss=None, loss_weights=None, jit_compile="auto", **kwargs):
        """As `keras.Model.compile`; the loss may be left to the method.

        A loss gets labels in the form that it takes, whatever the episodes hold: integers
        where it is a `SparseCategoricalCrossentropy`, one-hot `(…, ways)` otherwise. Metrics get the
        episodes' own.

        `jit_compile="auto"` means False here: XLA needs to know the number of ways beforehand. It may be
        asked for where support labels are one-hot, but drops the checks of labels.
        """
        loss = self.default_loss() if loss is None else loss
        self._check_scale(loss)
        TaskLoss(loss)  # Refuses what cannot be.
        jit_compile = False if jit_compile == "auto" else jit_compile
        super().compile(
            optimizer, loss, loss_weights=loss_weights, jit_compile=jit_compile, **kwargs
        )

    def call(self, inputs, training=None):
        episode = self.episode_of(inputs)
        classes = SupportClasses.of(episode["support_y"])
        if cross_replica.replica_context() is not None:
            # Replicas take turns at collectives, as there, and layers keep one list of losses for all.
            self._clear_losses()
        support, queries = (
            as_one_batch(None, episode[key], None)[1] for key in ("support_x", "query_x")
        )
        # In one call, which costs less than two.
        samples = keras.tree.map_structure(lambda s, q: tf.concat([s, q], axis=0), support, queries)
        both = self.embed(samples, training=training)
        first = [keras.tree.flatten(episode[key])[0] for key in ("support_x", "query_x")]
        count = tf.reduce_prod(tf.shape(first[0])[:2])
        support, queries = (
            _by_task(x, like) for x, like in zip((both[:count], both[count:]), first, strict=True)
        )
        return self.compare(queries, self.summarized(support, classes), training=training)

    def train_step(self, data):
        if self.built and not self.trainable_variables:
            raise ValueError(
                "`encoder` must have trainable weights for `fit`; every layer of it is frozen or has "
                f"none. Received: {self.model!r}"
            )
        with fused_normalization.of(self):
            return super().train_step(self._checked(data))

    def test_step(self, data):
        return super().test_step(self._checked(data))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As Keras's, on the queries of all tasks as one batch, with the gradient of the global batch."""
        ids = label_ids("query_y", y).ids
        ways = y_pred.shape[-1] or tf.shape(y_pred)[-1]
        y = ids if TaskLoss(self.loss).is_sparse else tf.one_hot(ids, ways, dtype=y_pred.dtype)
        loss = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        return self._of_global_batch(loss, y_pred, sample_weight)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As Keras's, on the queries of all tasks as one batch."""
        if len(y.shape) == 3 and y.shape[-1] == 1:
            y = tf.squeeze(y, axis=-1)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_config(self):
        config = super().get_config()
        config["encoder"] = config.pop("model")
        return config

    # ------------------------------------------------------------------------------- within

    @property
    def _default_save_signature(self):
        """None, in SavedModels of what `adapt` gives: Keras would trace this on wrong shapes."""
        return

    def _checked(self, data):
        """A step's data, of which nothing is computed before its labels have been checked."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if y is None:
            raise ValueError(
                "Episodes must bring the queries' labels, ({…}, query_y). Received: no query_y"
            )
        episode = check_episode(x)
        check_queries(y, sample_weight, episode)
        classes = SupportClasses.of(episode["support_y"])
        check = classes.check_of_queries(y, _ignored_class(self.loss))
        with tf.control_dependencies([x for x in check if x is not None]):
            x = keras.tree.map_structure(tf.identity, x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def _of_global_batch(self, loss, y_pred, sample_weight):
        """The loss, with a gradient that adds up over replicas to that of the global batch."""
        if cross_replica.replica_context() is None:
            return loss
        task_loss = TaskLoss(self.loss)
        # What layers add counts by tasks: that of weights is the same everywhere, and shares add up to R.
        penalties = tf.add_n([tf.zeros_like(loss), *(tf.reduce_sum(x) for x in self.losses)])
        penalties /= cross_replica.count()
        tasks = cross_replica.share(tf.cast(tf.shape(y_pred)[0], tf.float32))
        compiled = loss - penalties
        if sample_weight is not None and task_loss.reduction == "mean_with_sample_weight":
            # Keras's history weighs replicas by their tasks: leave it the rest of the weight.
            weight = tf.reduce_sum(tf.cast(weights_of_queries(sample_weight, y_pred), tf.float32))
            rest = tf.math.divide_no_nan(cross_replica.share(weight), tasks)
            compiled *= tf.cast(rest, compiled.dtype)
        if task_loss.is_mean:
            compiled = cross_replica.scale_gradient(compiled, tasks)
        return compiled + cross_replica.scale_gradient(penalties, tasks)

    def _check_weights(self):
        """An encoder may be frozen: `train_step` refuses a model that has nothing to train."""

    def _check_ranks(self, episode):
        others = [key for key in episode if key not in _PARTS]
        if others:
            raise ValueError(
                f"`{others[0]}` must not be part of the input, which is {', '.join(_PARTS)} alone; the "
                "queries' labels are the targets, ({…}, query_y). "
                f"Received: {', '.join(map(str, episode))}"
            )
        super()._check_ranks(episode)

    def _check_scale(self, loss):
        """Refuses a crossentropy of probabilities, which would train nothing, on scores of any sign."""
        loss = _only(loss)
        kinds = keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy
        functions = (
            keras.losses.sparse_categorical_crossentropy,
            keras.losses.categorical_crossentropy,
        )
        of_probabilities = loss in functions or (
            isinstance(loss, kinds) and not getattr(loss, "from_logits", True)
        )
        if self.gives_logits and of_probabilities:
            raise ValueError(
                f"`loss` must take logits, which is what {type(self).__name__} gives: leave it out, or "
                "pass keras.losses.SparseCategoricalCrossentropy(from_logits=True). "
                f"Received: loss={loss!r}"
            )

    def _check_support(self, support_x, support_y):
        inputs = getattr(self.model, "inputs", None) or []
        given = keras.tree.flatten(support_x)
        if inputs and [x.shape.rank for x in given] != [len(x.shape) for x in inputs]:
            raise ValueError(
                "`support_x` must be the support set of one task, as the encoder takes it: "
                f"{[tuple(x.shape) for x in inputs]}. Received: shape={[tuple(x.shape) for x in given]}"
            )
        if support_y.shape.rank not in (1, 2) or len(given[0]) != len(support_y):
            raise ValueError(
                "`support_y` must be one class a sample of `support_x`, (samples,), or one-hot, "
                f"(samples, ways). Received: shape={tuple(support_y.shape)} for {len(given[0])} samples"
            )


def _by_task(x, like):
    """Embeddings of merged samples, `(tasks, samples, …)` as those of `like`."""
    split = tf.reshape(x, tf.concat([tf.shape(like)[:2], x.shape[1:]], axis=0))
    return tf.ensure_shape(split, [*like.shape[:2], *x.shape[1:]])


def _only(loss: Any):
    (loss,) = keras.tree.flatten(loss)
    return keras.losses.get(loss)


def _ignored_class(loss):
    return getattr(_only(loss), "ignore_class", None)
