"""Episodes as a batch of queries for Keras, and what is refused, before a step is taken."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.meta import MAML
from keras_sslmeta.meta.episodic import EpisodicModel

TASKS, SHOTS, QUERIES = 3, 4, 5
RNG = np.random.default_rng(0)
X = {
    "support_x": RNG.normal(size=(TASKS, SHOTS, 3)).astype("float32"),
    "support_y": RNG.integers(2, size=(TASKS, SHOTS)),
    "query_x": RNG.normal(size=(TASKS, QUERIES, 3)).astype("float32"),
}
Y = RNG.integers(2, size=(TASKS, QUERIES))


def network(*between, classes=2):
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), *between, layers.Dense(classes, name="head")]
    )


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def meta(model=None, loss=None, eager=True, **kwargs):
    maml = MAML(model or network(), **kwargs)
    maml.compile("sgd", loss or sparse(), metrics=["accuracy"], run_eagerly=eager)
    return maml


def dataset(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(TASKS)


class Offset(EpisodicModel):
    """A method without steps: the network, and the mean of the support targets."""

    def __init__(self, model, **kwargs):
        super().__init__(model, **kwargs)
        self.build_where_known()

    def call(self, inputs, training=None):
        episode = self.episode_of(inputs)
        shape = tf.shape(episode["query_x"])
        flat = self.model(tf.reshape(episode["query_x"], [-1, shape[-1]]), training=training)
        offset = tf.reduce_mean(tf.cast(episode["support_y"], tf.float32), axis=1)
        return tf.reshape(flat, [shape[0], shape[1], 1]) + offset[:, None, None]


# ------------------------------------------------------------------------- as Keras sees them


def test_losses_metrics_and_weights_are_those_of_all_queries():
    model = Offset(network(classes=1))
    metrics = [keras.metrics.R2Score(name="r2")]
    model.compile("sgd", "mse", metrics=metrics, weighted_metrics=["mae"])
    y, weights = Y[..., None].astype("float32"), np.array([0.5, 2.0, 1.0])
    got = model.evaluate(X, y, sample_weight=weights, batch_size=2, verbose=0, return_dict=True)
    answers = model.predict(X, batch_size=2, verbose=0)
    assert answers.shape == (TASKS, QUERIES, 1)
    errors, each = (answers - y)[..., 0], np.repeat(weights[:, None], QUERIES, axis=1)
    r2 = keras.metrics.R2Score()(y.reshape(-1, 1), answers.reshape(-1, 1))
    np.testing.assert_allclose(got["r2"], r2, rtol=1e-4)
    np.testing.assert_allclose(got["mae"], np.sum(np.abs(errors) * each) / each.sum(), rtol=1e-5)
    np.testing.assert_allclose(got["loss"], np.mean(errors**2 * each), rtol=1e-5)


def test_keras_trains_it_by_its_own_step():
    model = Offset(network(classes=1))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(X, Y[..., None], epochs=5, batch_size=TASKS, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_it_is_built_at_once_where_the_model_is():
    assert Offset(network()).built and meta().built
    unbuilt = keras.Sequential([layers.Dense(2)])
    maml = meta(unbuilt)
    assert not maml.built
    maml.fit(X, Y, batch_size=TASKS, verbose=0)
    assert maml.built and unbuilt.layers[0].kernel.shape == (3, 2)


def test_a_dataset_and_arrays_train_the_same():
    results = []
    for data in ((X, Y), (dataset(), None)):
        keras.utils.set_random_seed(0)
        maml = meta()
        maml.fit(*data, **({} if data[1] is None else {"batch_size": TASKS}), verbose=0)
        results.append(maml.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bytes_are_cast_and_nothing_is_scaled():
    maml = meta()
    integers = RNG.integers(0, 256, size=(2, TASKS, 4, 3))
    x = dict(zip(("support_x", "query_x"), integers, strict=True), support_y=X["support_y"])
    answers = [
        maml({**x, **{key: x[key].astype(dtype) for key in ("support_x", "query_x")}})
        for dtype in ("uint8", "float32")
    ]
    np.testing.assert_array_equal(*answers)


# -------------------------------------------------------------------------------- constructor


def frozen():
    model = network()
    model.trainable = False
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_steps": -1}, "`inner_steps` must be an integer from 0.*inner_steps=-1"),
        ({"inner_steps": 1.5}, "`inner_steps` must be an integer from 0.*1.5"),
        ({"inner_steps": True}, "`inner_steps` must be an integer"),
        ({"test_inner_steps": -2}, "`test_inner_steps` must be an integer from 0.*-2"),
        ({"inner_learning_rate": -0.1}, "`inner_learning_rate` must be a number from 0.*-0.1"),
        ({"inner_learning_rate": float("nan")}, "`inner_learning_rate` must be a number"),
        ({"inner_learning_rate": "fast"}, "`inner_learning_rate` must be a number.*'fast'"),
        ({"model": lambda x: x}, "`model` must be a keras.Model"),
        ({"model": layers.Dense(2)}, "`model` must be a keras.Model.*Dense"),
        ({"model": frozen()}, "`model` must have trainable weights"),
        ({"adapted": lambda v: False}, "`adapted` must select at least one.*kernel"),
        ({"adapted": "head"}, "`adapted` must be a function.*'head'"),
        (
            {"batch_normalization": "batch"},
            "`batch_normalization` must be one of.*'per_step'.*'batch'",
        ),
        ({"inner_optimizer": keras.optimizers.Adagrad(0.1)}, "`inner_optimizer` must be.*Adagrad"),
        ({"inner_optimizer": "sgd"}, "`inner_optimizer` must be.*'sgd'"),
        (
            {"inner_optimizer": keras.optimizers.SGD(0.1, weight_decay=1.0)},
            "`inner_optimizer` must not use `weight_decay`",
        ),
    ],
)
def test_arguments_are_refused(arguments, message):
    arguments = {"model": network(), **arguments}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        MAML(**arguments)


def test_a_model_that_is_not_built_is_refused_when_it_is():
    """Its weights are known only then."""
    maml = meta(keras.Sequential([layers.Flatten()]))
    with pytest.raises(ValueError, match="`model` must have trainable weights"):
        maml.fit(X, Y, batch_size=TASKS, verbose=0)
    maml = meta(keras.Sequential([layers.Dense(2)]), adapted=lambda v: False)
    with pytest.raises(ValueError, match="`adapted` must select at least one"):
        maml.fit(X, Y, batch_size=TASKS, verbose=0)


# ----------------------------------------------------------------------------------- episodes


def without(key):
    return {k: v for k, v in X.items() if k != key}


def refused(message, x, y=Y, steps=("fit", "evaluate"), **kwargs):
    """By every way in, with the weights as they were."""
    maml = meta()
    before = maml.get_weights()
    for step in steps:
        with pytest.raises(ValueError, match=f"(?s){message}"):
            getattr(maml, step)(x, y, batch_size=TASKS, verbose=0, **kwargs)
    for a, b in zip(before, maml.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("key", ["support_x", "support_y", "query_x"])
def test_a_missing_key_is_named(key):
    message = f"must have the keys support_x, support_y, query_x; {key} is missing"
    refused(message, without(key))
    for run in (meta(), lambda x: meta().predict(x, verbose=0)):
        with pytest.raises(ValueError, match=message):
            run(without(key))
    with pytest.raises(ValueError, match=message):
        meta().fit(dataset(without(key)), verbose=0)


def test_what_is_no_episode_is_refused():
    refused("An episode must be.*Received", X["support_x"])
    with pytest.raises(ValueError, match="An episode must be.*tuple"):
        meta()((X["support_x"], X["support_y"], X["query_x"]))


@pytest.mark.parametrize("key", ["support_x", "support_y", "query_x"])
def test_parts_of_different_numbers_of_tasks(key):
    message = "same number of tasks.*2"
    x = {**X, key: X[key][:2]}
    refused(message, x)
    for run in (meta(), lambda x: meta().predict(x, verbose=0)):
        with pytest.raises(ValueError, match=message):
            run(x)
    data = tf.data.Dataset.from_tensors((x, Y))
    with pytest.raises(ValueError, match=message):
        meta().fit(data, verbose=0)


def test_targets_of_another_number():
    refused("same number of tasks.*'query_y': 2", X, Y[:2])
    refused("same numbers of tasks and queries.*5.*4|4.*5", X, Y[:, :4])
    refused("same numbers of tasks and queries.*6", X, np.repeat(Y[:, :1], 6, axis=1))
    refused(r"targets must be \(tasks, queries, …\)", X, Y[:, 0])
    refused("same number of samples.*3 and 4|4 and 3", {**X, "support_y": X["support_y"][:, :3]})
    with pytest.raises(ValueError, match="query_y"):
        meta().fit(dataset().map(lambda x, y: x), verbose=0)


def test_an_episode_that_is_not_batched_is_told_how():
    one = {key: value[0] for key, value in X.items()}
    with pytest.raises(ValueError, match=r"must be \(tasks, samples, …\)"):
        meta()(one)
    single = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.raises(ValueError, match=r"must be \(tasks, samples, …\)"):
        meta().fit(single, verbose=0)
    targets = {"support_y": np.eye(2)[X["support_y"]]}
    single = tf.data.Dataset.from_tensor_slices(({**X, **targets}, np.eye(2)[Y]))
    with pytest.raises(ValueError, match=r"must be \(tasks, samples, …\).*dataset.batch\(tasks\)"):
        meta(loss="mse").fit(single, verbose=0)


def test_weights_of_another_width_and_class_weight():
    message = r"`sample_weight` must be one a task, \(tasks,\), or one a query"
    refused(message, X, sample_weight=np.ones((TASKS, 4)))
    refused("`class_weight` must be None.*sample_weight", X, steps=("fit",), class_weight={0: 2.0})


@pytest.mark.parametrize(
    ("support", "wanted"),
    [
        ((X["support_x"], X["support_y"]), "support set of one task"),
        ((X["support_x"][0], X["support_y"][0][:3]), "same number of samples.*4 and 3"),
    ],
)
def test_supports_that_adapt_refuses(support, wanted):
    with pytest.raises(ValueError, match=f"(?s){wanted}"):
        meta().adapt(*support)
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match=f"`steps` must be an integer from 0.*{steps}"):
            meta().adapt(X["support_x"][0], X["support_y"][0], steps=steps)


# ------------------------------------------------------------------------------------- labels


@pytest.mark.first(2)
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("label", [2, -1])
@pytest.mark.parametrize("part", ["support_y", "query_y"])
def test_labels_that_are_no_classes_of_the_head(part, label, eager):
    """In the first batch; the message has the labels and the classes, and no weight has moved."""
    x, y = {key: value.copy() for key, value in X.items()}, Y.copy()
    (x["support_y"] if part == "support_y" else y)[1, 2] = label
    maml = meta(eager=eager)
    before = maml.get_weights()
    message = f"(?s)`{part}` must hold labels from 0 to 1.*2 classes.*{label}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        maml.fit(x, y, batch_size=TASKS, verbose=0)
    for a, b in zip(before, maml.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    if not eager:
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        maml.evaluate(x, y, batch_size=TASKS, verbose=0)
    if part == "support_y":
        for run in (
            lambda: maml(x),
            lambda: maml.adapt(x["support_x"][1], x["support_y"][1]),
            lambda: maml.predict_along(x, 1),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                run()


# -------------------------------------------------------------------------------- second order


class Response(keras.layers.Layer):
    def call(self, x):
        return tf.nn.local_response_normalization(x[:, None, None])[:, 0, 0]


LACKING = {
    "response": lambda: Response(name="response"),
    "soft": lambda: layers.Activation("softsign", name="soft"),
}


@pytest.mark.first(2)
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", LACKING)
def test_a_layer_without_second_derivative_is_named(name, steps, eager):
    maml = meta(network(LACKING[name]()), inner_steps=steps, eager=eager)
    before = maml.get_weights()
    message = re.escape(f"layer '{name}' has no second derivative") + ".*second_order=False"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        maml.fit(X, Y, batch_size=TASKS, verbose=0)
    for a, b in zip(before, maml.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", LACKING)
def test_first_order_does_without_second_derivatives(name):
    maml = meta(network(LACKING[name]()), inner_steps=2, second_order=False)
    before = maml.get_weights()
    history = maml.fit(X, Y, batch_size=TASKS, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert all(not np.array_equal(a, b) for a, b in zip(before, maml.get_weights(), strict=True))
