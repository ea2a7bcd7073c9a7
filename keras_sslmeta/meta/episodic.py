"""`EpisodicModel`: what meta-learners share."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import byte_images
from keras_sslmeta.mechanisms.trained_model import TrainedModel

_KEYS = ("support_x", "support_y", "query_x")


class EpisodicModel(TrainedModel):
    """Parent of models that learn from episodes: a support set to learn from, queries to answer.

    A batch is a batch of tasks: ``({"support_x", "support_y", "query_x"}, query_y)``, each with an axis of
    tasks in front, as `keras_sslmeta.data.episodes(…).batch(tasks)` gives them. This class checks episodes,
    builds the model from them, and lets Keras's losses and metrics see the queries of all tasks as one
    batch, `(tasks · queries, …)`. So any loss and metric that Keras has will do, and the loss is the mean
    over tasks of the mean over queries. A method adds `call(episode)`, which returns the predictions for the
    queries, `(tasks, queries, …)`.

    Args:
        model: a `keras.Model` with trainable weights; it is trained in place.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: if `model` is not a Keras model or has nothing to train; on the first call, if an episode
            lacks a key, or its parts differ in their number of tasks.
    """

    def __init__(self, model, **kwargs):
        # Keras would cast targets too; `model` casts what it takes by itself.
        super().__init__(autocast=False, **kwargs)
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"`model` must be a keras.Model. Received: {model!r} (of type {type(model).__name__})"
            )
        self.model = model
        if getattr(model, "output_names", None):
            self.output_names = list(model.output_names)
        if model.built:
            self._check_weights()

    # ------------------------------------------------------------------ for the methods

    def build_where_known(self):
        """Builds at once if the model is built, the last line of a method's constructor: so that
        `summary`, `BackupAndRestore` and the like need no call first."""
        if self.model.built:
            self.build(None)

    def episode_of(self, inputs) -> dict:
        """The episode's parts, checked, images of bytes as floats.

        Raises:
            ValueError: if a part is missing, or they differ in their number of tasks or in form.
        """
        if isinstance(inputs, dict):
            self._check_ranks(inputs)
        episode = check_episode(inputs)
        if not self.built:
            shapes = keras.tree.map_structure(lambda x: tuple(x.shape), episode)
            with tf.init_scope():  # Variables are not made within a step's graph.
                self.build(shapes)
        return {
            **episode,
            **{
                key: byte_images.as_the_model_takes_them(self.model, episode[key])
                for key in ("support_x", "query_x")
            },
        }

    # ------------------------------------------------------------------------- for Keras

    def build(self, input_shape):
        if not self.model.built:
            self.model(
                keras.tree.map_shape_structure(
                    lambda shape: keras.KerasTensor((None, *shape[2:])), input_shape["support_x"]
                )
            )
        self._check_weights()
        self.build_method()
        self.built = True

    def build_method(self):
        """Builds what a method adds to the built model."""

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`, on episodes: a dataset of batches of them, or arrays."""
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # It orders itself; Keras would warn otherwise.
        self._check_data(x, y)
        if kwargs.get("class_weight") is not None:
            raise ValueError(
                "`class_weight` must be None: the classes of episodes change from task to task. Weigh "
                "queries by `sample_weight`, (tasks, queries). "
                f"Received: class_weight={kwargs['class_weight']}"
            )
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`, on episodes: adapts to each, and measures on its queries."""
        self._check_data(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`: adapts to each episode, and answers its queries."""
        self._check_data(x)
        return super().predict(x, *args, **kwargs)

    def export(self, *args, **kwargs):
        """Not for meta-learners: export what `adapt` gives.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "A meta-learner answers episodes, and serving systems do not: export the model that "
            "`adapt(support_x, support_y)` gives, or `model.model` without adaptation. "
            f"Received: {self!r}"
        )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As Keras's, on the queries of all tasks as one batch."""
        y, y_pred, sample_weight = as_one_batch(y, y_pred, sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training=training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As Keras's, on the queries of all tasks as one batch."""
        y, y_pred, sample_weight = as_one_batch(y, y_pred, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_config(self):
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    def _check_weights(self):
        if not self.model.trainable_variables:
            raise ValueError(
                "`model` must have trainable weights; every layer of it is frozen or has none. "
                f"Received: {self.model!r}"
            )

    def _check_data(self, x, y=None):
        """Refuses data that are no episodes before anything is traced, which a retry would trip over."""
        if isinstance(x, tf.data.Dataset):
            spec = x.element_spec
            x = spec[0] if isinstance(spec, tuple) else spec
        else:
            if isinstance(x, dict) and not set(_KEYS) - set(x):
                self._check_ranks(
                    x
                )  # First: the parts of an episode that is not batched differ in length.
            _check_lengths(x, y)
        if isinstance(x, dict):
            self._check_ranks(x)

    def _check_ranks(self, episode):
        """Refuses episodes that lack the axis of tasks, where the rank of the model's inputs is known."""
        inputs = getattr(self.model, "inputs", None)
        if not inputs:
            return
        for key in ("support_x", "query_x"):
            given = [_shape(x) for x in keras.tree.flatten(episode.get(key, []))]
            ranks = [shape.rank for shape in given]
            wanted = [len(x.shape) + 1 for x in inputs]
            if not ranks or None in ranks or ranks == wanted:
                continue
            if len(ranks) == len(wanted) and all(
                r == w - 1 for r, w in zip(ranks, wanted, strict=True)
            ):
                remedy = "Batch the episodes, `dataset.batch(tasks)`, or add the axis, `x[None]`."
            else:
                remedy = f"The model's inputs are {[tuple(x.shape) for x in inputs]}."
            raise ValueError(
                f"`{key}` must be (tasks, samples, …), one axis of tasks before what the model takes. "
                f"{remedy} Received: shape={[tuple(shape) for shape in given]}"
            )


def _shape(x):
    return tf.TensorShape(x.shape if hasattr(x, "shape") else np.shape(x))


def check_episode(inputs) -> dict:
    """The parts of an episode, of static shapes that agree."""
    if not isinstance(inputs, dict):
        raise ValueError(
            "An episode must be ({'support_x': …, 'support_y': …, 'query_x': …}, query_y), as "
            f"keras_sslmeta.data.episodes gives them. Received: {type(inputs).__name__}"
        )
    missing = [key for key in _KEYS if key not in inputs]
    if missing:
        raise ValueError(
            f"An episode must have the keys {', '.join(_KEYS)}; {', '.join(missing)} is missing. "
            f"Received: {', '.join(map(str, inputs))}"
        )
    if "query_y" in inputs:
        raise ValueError(
            "`query_y` must not be part of the episode that a model is given: it stands beside it, "
            f"({{…}}, query_y), as what is to be found. Received: {', '.join(map(str, inputs))}"
        )
    episode = {key: keras.tree.map_structure(tf.convert_to_tensor, inputs[key]) for key in _KEYS}
    shapes = {key: [x.shape for x in keras.tree.flatten(value)] for key, value in episode.items()}
    for key, several in shapes.items():
        for shape in several:
            if shape.rank is None:
                raise ValueError(
                    f"`{key}` must have a known rank: give the tensors of the dataset a shape, by "
                    "`tf.ensure_shape`. Received: a tensor of unknown rank"
                )
            if shape.rank < 2:
                raise ValueError(
                    f"`{key}` must be (tasks, samples, …): batch the episodes, `dataset.batch(tasks)`. "
                    f"Received: shape={tuple(shape)}"
                )
    tasks = {key: several[0][0] for key, several in shapes.items() if several[0].rank is not None}
    if len({n for n in tasks.values() if n is not None}) > 1:
        raise ValueError(
            f"All parts of an episode must have the same number of tasks. Received: {tasks}"
        )
    x, y = shapes["support_x"][0], shapes["support_y"][0]
    if None not in (x.rank, y.rank) and None not in (x[1], y[1]) and x[1] != y[1]:
        raise ValueError(
            "`support_x` and `support_y` must have the same number of samples. "
            f"Received: {x[1]} and {y[1]}"
        )
    return episode


def check_queries(y, sample_weight, episode):
    """Refuses targets and weights that are not those of the episode's queries."""
    queries = keras.tree.flatten(episode["query_x"])[0].shape
    if queries.rank is None:
        return
    queries = queries[:2]
    for target in keras.tree.flatten(y):
        _check_targets(target, queries)
    for weight in keras.tree.flatten(sample_weight):
        shape = tf.convert_to_tensor(weight).shape if weight is not None else queries
        is_right = shape.rank in (None, 1) or (
            shape.rank == 2 and (shape[1] in (1, queries[1]) or None in (shape[1], queries[1]))
        )
        if not is_right:
            raise ValueError(
                "`sample_weight` must be one a task, (tasks,), or one a query, (tasks, queries). "
                f"Received: shape={tuple(shape)} for {queries[1]} queries"
            )


def number_of_tasks(episode):
    """Number of tasks in a batch, a scalar tensor."""
    return tf.shape(keras.tree.flatten(episode["query_x"])[0])[0]


def as_one_batch(y, y_pred, sample_weight):
    """Targets, predictions and weights of `(tasks, queries, …)` as `(tasks · queries, …)`.

    A weight a task, `(tasks,)`, becomes one for each of its queries.
    """
    if y is not None:
        tasks_and_queries = tf.shape(keras.tree.flatten(y_pred)[0])[:2]
        if sample_weight is not None:
            sample_weight = keras.tree.map_structure(
                lambda w: tf.reshape(_a_weight_a_query(w, tasks_and_queries), [-1]), sample_weight
            )
        y = keras.tree.map_structure(_merged, y)
    return y, keras.tree.map_structure(_merged, y_pred), sample_weight


def _merged(x):
    x = tf.convert_to_tensor(x)
    shape = x.shape
    known = None if None in shape[:2] else shape[0] * shape[1]
    merged = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], axis=0))
    return tf.ensure_shape(merged, [known, *shape[2:]])


def weights_of_queries(sample_weight, y_pred):
    """A weight for every query, `(tasks, queries)`, from one a task or one a query."""
    tasks_and_queries = tf.shape(keras.tree.flatten(y_pred)[0])[:2]
    return keras.tree.map_structure(
        lambda w: _a_weight_a_query(w, tasks_and_queries), sample_weight
    )


def _a_weight_a_query(weight, tasks_and_queries):
    weight = tf.convert_to_tensor(weight)
    # Of either rank, which a retraced step no longer knows.
    shape = tf.shape(weight)
    columns = tf.reshape(weight, [shape[0], tf.reduce_prod(shape[1:])])
    return tf.broadcast_to(columns, tasks_and_queries)


def _check_targets(y, queries):
    given = y.shape
    if given.rank is not None and given.rank < 2:
        raise ValueError(
            f"The queries' targets must be (tasks, queries, …). Received: shape={tuple(given)}"
        )
    if given.rank is None or queries.rank is None:
        return
    if any(
        None not in pair and pair[0] != pair[1] for pair in zip(given[:2], queries, strict=True)
    ):
        raise ValueError(
            "The queries' targets and `query_x` must have the same numbers of tasks and queries. "
            f"Received: {tuple(given[:2])} and {tuple(queries)}"
        )


def _check_lengths(x: Any, y: Any = None):
    """Refuses arrays of different numbers of tasks by the episode's own names, before Keras does."""
    if not isinstance(x, dict):
        if isinstance(x, (np.ndarray, list, tuple)):
            check_episode(x)
        return
    missing = [key for key in _KEYS if key not in x]
    if missing:
        check_episode(x)
    parts = {**{key: x[key] for key in _KEYS}, **({} if y is None else {"query_y": y})}
    counts = {
        key: len(first)
        for key, value in parts.items()
        for first in keras.tree.flatten(value)[:1]
        if hasattr(first, "__len__")
    }
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"All parts of an episode must have the same number of tasks. Received: {counts}"
        )
