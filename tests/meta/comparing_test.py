"""What prototypical, matching and relation networks and the ridge head share."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.data import episodes
from keras_sslmeta.meta.comparing import ComparingModel
from keras_sslmeta.meta.matching_network import MatchingNetwork
from keras_sslmeta.meta.prototypical_network import PrototypicalNetwork
from keras_sslmeta.meta.relation_network import RelationNetwork
from keras_sslmeta.meta.ridge_head import RidgeHead

METHODS = {
    "prototypical": PrototypicalNetwork,
    "matching": lambda encoder, **kwargs: MatchingNetwork(encoder, temperature=0.5, **kwargs),
    "relation": RelationNetwork,
    "ridge": lambda encoder, **kwargs: RidgeHead(encoder, regularization=0.5, **kwargs),
}
TASKS, SAMPLES, QUERIES, WAYS = 5, 6, 4, 3
RNG = np.random.default_rng(0)
X = {
    "support_x": RNG.normal(size=(TASKS, SAMPLES, 3)).astype("float32"),
    "support_y": np.tile([0, 1, 2, 2, 1, 1], (TASKS, 1)),
    "query_x": RNG.normal(size=(TASKS, QUERIES, 3)).astype("float32"),
}
Y = RNG.integers(WAYS, size=(TASKS, QUERIES))
WEIGHTS = RNG.uniform(0.2, 2, size=(TASKS, QUERIES)).astype("float32")
ONE_HOT = {**X, "support_y": np.eye(WAYS, dtype="float32")[X["support_y"]]}
# Task 0 lacks class 1.
LACKING = {**X, "support_y": np.concatenate([[[0, 0, 2, 2, 0, 0]], X["support_y"][1:]])}
Y_LACKING = np.where((Y == 1) & (np.arange(TASKS) == 0)[:, None], 2, Y)

# Two run every time, the others with the slow tests; each has a file of its own besides.
every_method = pytest.mark.parametrize(
    "name",
    [
        name if name in ("prototypical", "ridge") else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
    ],
)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def network(*between):
    return keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), *between, layers.Dense(5)])


def made(name, encoder=None, eager=True, optimizer=None, **kwargs):
    model = METHODS[name](encoder or network())
    model.compile(optimizer or keras.optimizers.SGD(0.1), run_eagerly=eager, **kwargs)
    return model


def fit(model, x=X, y=Y, **kwargs):
    kwargs = {"batch_size": TASKS, "verbose": 0, "shuffle": False, **kwargs}
    return model.fit(x, y, **kwargs).history


def predict(model, x=X):
    return model.predict(x, batch_size=TASKS, verbose=0)


def loss_of(name, outputs, y=Y, weights=1.0):
    """The default loss in NumPy, one number a query."""
    hot = np.eye(WAYS)[y]
    if name == "relation":
        return np.mean((outputs - hot) ** 2, axis=-1) * weights
    outputs = outputs.astype("float64")
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(logs, y[..., None], axis=-1)[..., 0] * weights


# ------------------------------------------------------------------------------------- labels


@pytest.mark.first(1)
@every_method
@pytest.mark.parametrize("eager", [True, False])
def test_labels_in_every_form(name, eager):
    model = made(name, eager=eager)
    wanted = predict(model)
    assert wanted.shape == (TASKS, QUERIES, WAYS)
    for labels in (
        X["support_y"][..., None],
        X["support_y"].astype("int8"),
        np.eye(WAYS, dtype="float32")[X["support_y"]],
        np.eye(WAYS, dtype="int32")[X["support_y"]],
    ):
        other = made(name, eager=eager)
        other.set_weights(model.get_weights())  # Keras's steps are traced for one rank of labels.
        got = predict(other, {**X, "support_y": labels})
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    losses = []
    for y in (Y, Y[..., None], np.eye(WAYS, dtype="float32")[Y]):
        other = made(name, eager=eager)
        other.set_weights(model.get_weights())
        losses.append(other.evaluate(X, y, batch_size=TASKS, verbose=0))
    np.testing.assert_allclose(losses, np.mean(loss_of(name, wanted)), rtol=1e-5)


@every_method
def test_ways_are_static_where_labels_say_so(name):
    model = made(name)
    shapes = {}
    for key, x in {"one_hot": ONE_HOT, "integers": X}.items():
        data = tf.data.Dataset.from_tensor_slices(x).batch(2)
        function = tf.function(model).get_concrete_function(data.element_spec)
        shapes[key] = function.output_shapes.as_list()
    assert shapes == {"one_hot": [None, QUERIES, WAYS], "integers": [None, QUERIES, None]}


@every_method
@pytest.mark.parametrize("loss", ["sparse", "one-hot"])
def test_a_class_without_support_samples(name, loss):
    """No query is sent there, the loss is that of the other classes, and gradients are finite."""
    model = made(name, loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    if loss == "sparse":
        model = made(name)
    outputs = predict(model, LACKING)
    assert np.isfinite(outputs).all() and (outputs[0].argmax(axis=-1) != 1).all()
    others = METHODS[name](model.encoder)
    others.set_weights(model.get_weights())
    two_ways = {key: value[:1] for key, value in LACKING.items()}
    two_ways["support_y"] = np.where(two_ways["support_y"] == 2, 1, 0)
    np.testing.assert_allclose(
        predict(others, two_ways)[0], outputs[0][:, [0, 2]], rtol=1e-5, atol=1e-6
    )
    if name == "relation" and loss == "one-hot":
        return  # Its scores are no logits.
    got = model.evaluate(LACKING, Y_LACKING, batch_size=TASKS, verbose=0)
    np.testing.assert_allclose(got, np.mean(loss_of(name, outputs, Y_LACKING)), rtol=1e-5)
    fit(model, LACKING, Y_LACKING)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.first(3)
@every_method
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("label", [1, 7, -1])
def test_a_query_of_no_class_of_its_support_set(name, label, eager):
    """Refused before anything moves, statistics included."""
    y = Y_LACKING.copy()
    y[0, 2] = label
    model = made(name, network(layers.BatchNormalization()), eager=eager)
    before = model.get_weights()
    for labels in [y] if label < 0 else [y, np.eye(8)[y]]:
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"(?s)`query_y` must hold classes"
        ):
            fit(model, LACKING, labels)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)`query_y` must hold classes"):
        model.evaluate(LACKING, y, batch_size=TASKS, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_ignored_class_is_no_label():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model = made("prototypical", loss=loss)
    y = Y.copy()
    y[1, :2] = -1
    got = model.evaluate(X, y, batch_size=TASKS, verbose=0)
    each = loss_of("prototypical", predict(model))
    each[1, :2] = 0
    np.testing.assert_allclose(got, each.sum() / (each.size - 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            X["support_y"] - 1,
            tf.errors.InvalidArgumentError,
            "`support_y` must hold classes from 0",
        ),
        (ONE_HOT["support_y"] * 0.5, tf.errors.InvalidArgumentError, "must be one-hot rows"),
        (np.ones_like(ONE_HOT["support_y"]), tf.errors.InvalidArgumentError, "one-hot rows"),
        (X["support_y"].astype("float32"), ValueError, "must be one integer a sample.*float32"),
        (ONE_HOT["support_y"][..., None], ValueError, r"must be one integer.*\(5, 6, 3, 1\)"),
        (X["support_y"][:, :5], ValueError, "same number of samples"),
    ],
)
def test_support_labels_that_are_refused(labels, error, message):
    model = made("prototypical")
    for run in (fit, predict, lambda model, x: model(x)):
        with pytest.raises(error, match=f"(?s){message}"):
            run(model, {**X, "support_y": labels})
    empty = {**X, "support_x": X["support_x"][:, :0], "support_y": X["support_y"][:, :0]}
    with pytest.raises(ValueError, match="`support_y` must hold a sample"):
        model(empty)


@pytest.mark.parametrize("key", ["query_y", "labels"])
def test_labels_in_the_input_are_refused(key):
    x = {**X, key: Y}
    model = made("prototypical")
    data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(TASKS)
    for run in (fit, predict, lambda model, x: model(x), lambda m, _: m.fit(data, verbose=0)):
        with pytest.raises(ValueError, match=f"`{key}` must not be part of the input"):
            run(model, x)


def test_targets_that_are_refused():
    model = made("ridge")
    with pytest.raises(ValueError, match="Received: no query_y"):
        model.fit(tf.data.Dataset.from_tensor_slices(X).batch(TASKS), verbose=0)
    with pytest.raises(ValueError, match="`query_y` must be one integer a sample"):
        fit(model, X, Y.astype("float32"))
    with pytest.raises(ValueError, match="same numbers of tasks and queries"):
        fit(model, X, Y[:, :2])
    with pytest.raises(ValueError, match="`sample_weight` must be one a task"):
        fit(model, sample_weight=np.ones((TASKS, 3)))


# ------------------------------------------------------------------------------------ encoders


@every_method
def test_a_query_does_not_see_the_others(name):
    """Permuted and left out, with batch normalisation whose statistics have moved."""
    model = made(name, network(layers.BatchNormalization(momentum=0.5)))
    fit(model, epochs=2)
    wanted, order = predict(model), [2, 0, 3]
    some = predict(model, {**X, "query_x": X["query_x"][:, order]})
    np.testing.assert_allclose(some, wanted[:, order], rtol=1e-5, atol=1e-6)
    two = predict(model, {key: value[[3, 1]] for key, value in X.items()})
    np.testing.assert_allclose(two, wanted[[3, 1]], rtol=1e-5, atol=1e-6)
    training = [model(x, training=True) for x in (X, {**X, "query_x": X["query_x"][:, order]})]
    assert not np.allclose(training[1], np.take(training[0], order, axis=1), rtol=1e-3)


@keras.saving.register_keras_serializable(package="comparing_test")
class Subclassed(keras.Model):
    """Counts what it is called with; its shapes are known only when it is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.batches = layers.Dense(4), []

    def call(self, x):
        self.batches.append(x.shape[0])
        return self.dense(x)


@every_method
def test_the_encoder_is_called_once_on_everything(name):
    model = METHODS[name](Subclassed())
    assert not model.built
    model(X)
    model.encoder.batches.clear()
    model(X)
    assert model.encoder.batches == [TASKS * (SAMPLES + QUERIES)]


@every_method
def test_a_subclassed_encoder_is_trained_saved_and_adapted(name, tmp_path):
    model = made(name, Subclassed())
    fit(model)
    wanted = predict(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predict(loaded), wanted, rtol=1e-6)
    classifier = loaded.adapt(X["support_x"][1], X["support_y"][1])
    got = classifier.predict(X["query_x"][1], verbose=0)
    np.testing.assert_allclose(got, wanted[1], rtol=1e-5, atol=1e-6)


@every_method
def test_nested_inputs(name):
    a, b = keras.Input((3,), name="a"), keras.Input((2, 2), dtype="int32", name="b")
    embedded = layers.Flatten()(layers.Embedding(4, 2)(b))
    outputs = layers.Dense(4)(layers.Concatenate()([a, embedded]))
    model = made(name, keras.Model({"a": a, "b": b}, outputs))
    x = {"support_y": X["support_y"]}
    for key, n in (("support_x", SAMPLES), ("query_x", QUERIES)):
        x[key] = {"a": X[key], "b": RNG.integers(4, size=(TASKS, n, 2, 2)).astype("int32")}
    assert np.isfinite(fit(model, x)["loss"]).all()
    one = {key: {k: v[2] for k, v in x[key].items()} for key in ("support_x", "query_x")}
    classifier = model.adapt(one["support_x"], x["support_y"][2])
    got = classifier.predict(one["query_x"], verbose=0)
    np.testing.assert_allclose(got, predict(model, x)[2], rtol=1e-5, atol=1e-6)


@every_method
def test_bytes_are_cast_and_nothing_is_scaled(name):
    encoder = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3)])
    model, numbers = METHODS[name](encoder), RNG.integers(256, size=(2, TASKS, SAMPLES, 6, 6, 1))
    x = dict(zip(("support_x", "query_x"), numbers, strict=True))
    outputs = [
        model({**{k: v.astype(dtype) for k, v in x.items()}, "support_y": X["support_y"]})
        for dtype in ("uint8", "float32")
    ]
    np.testing.assert_array_equal(*outputs)
    classifier = model.adapt(x["support_x"][0].astype("uint8"), X["support_y"][0])
    got = classifier.predict(x["query_x"][0].astype("uint8"), verbose=0)
    np.testing.assert_allclose(got, outputs[0][0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda x: x, "`encoder` must be a keras.Model"),
        (layers.Dense(2), "`encoder` must be a keras.Model.*Dense"),
    ],
)
def test_what_is_no_encoder(encoder, message):
    for build in METHODS.values():
        with pytest.raises(ValueError, match=message):
            build(encoder)


@every_method
def test_encoders_of_several_outputs_or_unknown_size(name):
    inputs = keras.Input((3,))
    two = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    with pytest.raises(ValueError, match="(?s)`encoder` must have one output"):
        METHODS[name](two)(X)
    unknown = keras.Sequential([keras.Input((None, 1)), layers.Conv1D(2, 1)])
    specs = {key: tf.TensorSpec([2, None, None, 1]) for key in ("support_x", "query_x")}
    specs["support_y"] = tf.TensorSpec([2, None], tf.int64)
    with pytest.raises(ValueError, match="(?s)`encoder` must have one output.*None"):
        tf.function(METHODS[name](unknown)).get_concrete_function(specs)


@every_method
def test_a_frozen_encoder(name):
    encoder = network()
    encoder.trainable = False
    model, before = made(name, encoder), encoder.get_weights()
    assert np.isfinite(model.evaluate(X, Y, verbose=0))
    if name in ("prototypical", "matching"):
        with pytest.raises(ValueError, match="`encoder` must have trainable weights for `fit`"):
            fit(model)
        return
    # Softmax does not see a shift of all logits: its gradient is zero but for rounding.
    own = {w.path: w.numpy() for w in model.trainable_variables if w.name != "shift"}
    fit(model)
    assert own and not any(
        np.array_equal(own[w.path], w) for w in model.trainable_variables if w.path in own
    )
    for a, b in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# -------------------------------------------------------------------------------------- losses


@every_method
@pytest.mark.parametrize(
    "weights", [None, WEIGHTS[:, 0], WEIGHTS], ids=["none", "tasks", "queries"]
)
def test_the_default_loss_and_weights(name, weights):
    model = made(
        name, metrics=["accuracy"], weighted_metrics=["accuracy"] if name != "relation" else None
    )
    got = model.evaluate(X, Y, sample_weight=weights, batch_size=2, verbose=0, return_dict=True)
    outputs = predict(model)
    each = np.ones(Y.shape) if weights is None else np.ones(Y.shape) * weights.reshape(TASKS, -1)
    np.testing.assert_allclose(got["loss"], np.mean(loss_of(name, outputs, Y, each)), rtol=1e-5)
    np.testing.assert_allclose(got["accuracy"], np.mean(outputs.argmax(-1) == Y), rtol=1e-6)


LOSSES = {
    "sparse_categorical_crossentropy": lambda p, hot: -np.log((p * hot).sum(-1)),
    "categorical_crossentropy": lambda p, hot: -np.log((p * hot).sum(-1)),
    "mse": lambda p, hot: np.mean((p - hot) ** 2, -1),
    "mae": lambda p, hot: np.mean(np.abs(p - hot), -1),
    "binary_crossentropy": lambda p, hot: -np.mean(np.log(np.where(hot > 0, p, 1 - p)), -1),
}


@pytest.mark.parametrize("labels", ["integers", "one-hot"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_keras_get_labels_as_they_take_them(loss, labels):
    """On the scores of a relation network, which are made probabilities here."""
    inputs = keras.Input((10,))
    relation = keras.Model(inputs, 1 / WAYS + 0 * layers.Dense(1, "sigmoid")(inputs))
    model = RelationNetwork(network(), relation)
    model.compile("sgd", loss, run_eagerly=True)
    hot = np.eye(WAYS)[Y]
    got = model.evaluate(X, Y if labels == "integers" else hot, batch_size=TASKS, verbose=0)
    np.testing.assert_allclose(
        got, np.mean(LOSSES[loss](np.full(hot.shape, 1 / WAYS), hot)), rtol=1e-5
    )


@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size", "mean_with_sample_weight"])
def test_reductions(reduction):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model = made("prototypical", loss=loss)
    each = loss_of("prototypical", predict(model), Y, WEIGHTS)
    wanted = {
        "sum": each.sum(),
        "sum_over_batch_size": each.mean(),
        "mean_with_sample_weight": each.sum() / WEIGHTS.sum(),
    }
    got = model.evaluate(X, Y, sample_weight=WEIGHTS, batch_size=TASKS, verbose=0)
    np.testing.assert_allclose(got, wanted[reduction], rtol=1e-5)


def run_on(strategy, name, reduction, weights):
    with strategy.scope():
        regularized = layers.Dense(
            5, "tanh", kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2(0.1)
        )
        relation = keras.Sequential(
            [keras.Input((10,)), layers.Dense(4, "tanh"), layers.Dense(1, "sigmoid")]
        )
        model = METHODS[name](
            network(regularized), **({"relation": relation} if name == "relation" else {})
        )
        loss = model.default_loss()
        loss.reduction = reduction
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    history = fit(model, LACKING, Y_LACKING, sample_weight=weights, batch_size=4, epochs=2)
    values = model.evaluate(LACKING, Y_LACKING, sample_weight=weights, batch_size=4, verbose=0)
    predicted = model.predict(LACKING, batch_size=4, verbose=0)
    return [*history["loss"], *values], [*model.get_weights(), np.maximum(predicted, -1e9)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reduction", "weights"),
    [
        *((name, "sum_over_batch_size", None) for name in METHODS),
        *((name, "mean_with_sample_weight", WEIGHTS) for name in METHODS),
        ("relation", "sum", None),
    ],
)
def test_one_replica_is_two(name, reduction, weights, replicas):
    """Five tasks in batches of four: two and two, then one and none. Classes that one replica lacks, too."""
    one, two = [], []
    for count, results in ((1, one), (2, two)):
        keras.utils.set_random_seed(0)
        results.extend(run_on(replicas(count), name, reduction, weights))
    if reduction != "sum":  # Of sums, Keras's history weighs the replicas' by tasks.
        np.testing.assert_allclose(two[0], one[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- adapt, files


@every_method
def test_adapt_gives_a_plain_model_that_shares_nothing(name, tmp_path):
    model = made(
        name, network(layers.BatchNormalization(momentum=0.5), layers.Dropout(0.5, seed=1))
    )
    fit(model)
    wanted, before = predict(model)[1], model.get_weights()
    for labels in (X["support_y"][1], ONE_HOT["support_y"][1]):
        classifier = model.adapt(X["support_x"][1], labels)
        got = classifier.predict(X["query_x"][1], verbose=0)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert not {id(v) for v in classifier.variables} & {id(v) for v in model.variables}
    classifier.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(loaded.predict(X["query_x"][1], verbose=0), got)
    classifier.compile("sgd", model.default_loss(), run_eagerly=True)
    targets = np.eye(WAYS)[Y[1]] if name == "relation" else Y[1]
    classifier.fit(X["query_x"][1], targets, epochs=2, verbose=0)
    assert not np.allclose(classifier.predict(X["query_x"][1], verbose=0), got)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(model)
    np.testing.assert_array_equal(loaded.predict(X["query_x"][1], verbose=0), got)


@every_method
def test_what_adapt_gives_is_exported(name, tmp_path):
    classifier = made(name).adapt(X["support_x"][1], X["support_y"][1])
    classifier.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    served = loaded.serve(X["query_x"][1])
    wanted = classifier.predict(X["query_x"][1], verbose=0)
    np.testing.assert_allclose(served, wanted, rtol=1e-5, atol=1e-6)


@every_method
def test_adapt_without_a_class(name):
    model = made(name)
    classifier = model.adapt(LACKING["support_x"][0], LACKING["support_y"][0])
    got = classifier.predict(X["query_x"][0], verbose=0)
    np.testing.assert_allclose(got, predict(model, LACKING)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ((X["support_x"], X["support_y"]), "`support_x` must be the support set of one task"),
        ((X["support_x"][0], X["support_y"][0, :4]), r"`support_y` must be one class.*\(4,\).*6"),
        ((X["support_x"][0], X["support_y"][0] * 1.0), "`support_y` must be one integer"),
        ((X["support_x"][0, :0], X["support_y"][0, :0]), "`support_y` must hold a sample"),
    ],
)
def test_supports_that_adapt_refuses(support, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        made("prototypical").adapt(*support)


@pytest.mark.slow
@every_method
def test_training_goes_on_from_a_file(name, tmp_path):
    """Fitted, saved, loaded, and fitted on: as without a break, momentum and dropout included."""
    results = []
    for is_broken in (False, True):
        keras.utils.set_random_seed(0)
        encoder = network(layers.BatchNormalization(), layers.Dropout(0.2, seed=1))
        model = made(name, encoder, eager=False, optimizer=keras.optimizers.Adam(0.01))
        fit(model, epochs=2)
        if is_broken:
            wanted = predict(model)
            model.save(tmp_path / "model.keras")
            model = keras.saving.load_model(tmp_path / "model.keras")
            np.testing.assert_allclose(predict(model), wanted, rtol=1e-6)
        fit(model, epochs=2)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@every_method
def test_config(name):
    model = made(name, network())
    config = model.get_config()
    assert "encoder" in config and "model" not in config
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    np.testing.assert_allclose(predict(copy), predict(model), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- training, dtypes


@pytest.mark.first(1)
@every_method
def test_training_lowers_the_loss(name):
    """On points about the means of their classes along one axis, and anywhere along the others."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 10)
    x = rng.normal(size=(200, 3)).astype("float32")
    x[:, 0] = np.linspace(-1.5, 1.5, 20)[y] + 0.03 * x[:, 0]
    data = episodes((x, y), ways=WAYS, shots=2, queries=3, seed=0).batch(4)
    test = episodes((x, y), ways=WAYS, shots=2, queries=3, seed=1, episodes=100).batch(20)
    model = made(name, eager=False, optimizer=keras.optimizers.Adam(0.02), metrics=["accuracy"])
    before = model.evaluate(test, verbose=0, return_dict=True)
    model.fit(data, steps_per_epoch=20, epochs=6, verbose=0)
    after = model.evaluate(test, verbose=0, return_dict=True)
    assert after["loss"] < 0.8 * before["loss"]
    assert after["accuracy"] > before["accuracy"] + 0.1


@every_method
def test_mixed_precision(name):
    """Comparisons are in float32, and training with scaled losses is finite."""
    plain = METHODS[name](network())
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = made(name, network())
        mixed.set_weights(plain.get_weights())
        outputs = predict(mixed)
        assert outputs.dtype == "float32"
        np.testing.assert_allclose(outputs, predict(plain), rtol=3e-2, atol=2e-2)
        assert np.isfinite(fit(mixed, epochs=2)["loss"]).all()
        classifier = mixed.adapt(X["support_x"][0], X["support_y"][0])
        wanted = predict(mixed)[0]
        got = classifier.predict(X["query_x"][0], verbose=0)
        np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=5e-3)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
@every_method
def test_xla_with_one_hot_labels(name):
    outputs = []
    for compiled in (True, False):
        model = made(name, eager=False, jit_compile=compiled)
        keras.utils.set_random_seed(0)
        model.set_weights([np.full(w.shape, 0.1) for w in model.get_weights()])
        outputs.append((predict(model, ONE_HOT), fit(model, ONE_HOT)["loss"]))
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not made(name, eager=False).jit_compile


def test_the_parent_is_no_method():
    with pytest.raises(NotImplementedError):
        ComparingModel(network())(X)


@pytest.mark.parametrize("method", [PrototypicalNetwork, MatchingNetwork, RidgeHead])
@pytest.mark.parametrize(
    "loss", ["sparse_categorical_crossentropy", keras.losses.CategoricalCrossentropy()]
)
def test_losses_of_probabilities_are_refused(method, loss):
    """On logits they would train nothing, without a word."""
    model = method(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="`loss` must take logits.*from_logits=True"):
        model.compile("adam", loss)


def test_learners_are_not_exported():
    model = PrototypicalNetwork(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="export the model that `adapt"):
        model.export("anywhere")
