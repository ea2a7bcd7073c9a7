"""Every kind of model adapts as Keras would train it, and has the meta-gradient of finite differences."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_sslmeta.meta import MAML

TASKS, SHOTS, QUERIES, STEPS, RATE = 2, 4, 3, 2, 0.1


pytestmark = pytest.mark.usefixtures("double_precision")


def reals(*shape):
    return lambda rng, *lead: rng.normal(size=(*lead, *shape))


def labels(classes, *shape):
    return lambda rng, *lead: rng.integers(classes, size=(*lead, *shape)).astype("int32")


def one_hot(classes):
    return lambda rng, *lead: np.eye(classes)[rng.integers(classes, size=lead)]


def dense(*between, inputs=(3,)):
    return keras.Sequential(
        [keras.Input(inputs), layers.Dense(4, "tanh"), *between, layers.Dense(2)]
    )


class Average(keras.layers.Layer):
    """Moves a running mean and a count of its own in every call, and adds the mean."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), trainable=False, name="mean")
        self.calls = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls"
        )
        super().build(shape)

    def call(self, x):
        y = x + self.mean
        self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        self.calls.assign(self.calls + 1)
        return y


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Dense(4, "tanh")
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(2)

    def call(self, x, training=None):
        return self.head(self.norm(self.body(x), training=training))


def built():
    model = Subclassed()
    model(np.zeros((1, 3)))
    return model


def convolutional():
    return keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            layers.Conv2D(3, 3),
            layers.BatchNormalization(momentum=0.9),
            layers.Activation("tanh"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def recurrent():
    return keras.Sequential([keras.Input((3, 2)), layers.LSTM(3, use_cudnn=False), layers.Dense(1)])


def embedded():
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(6, 3),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, "softmax"),
        ]
    )


def attentive():
    inputs = keras.Input((3, 4))
    x = layers.MultiHeadAttention(2, 2)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def shared():
    inputs, twice, norm = keras.Input((3,)), layers.Dense(3, "tanh"), layers.BatchNormalization()
    return keras.Model(inputs, layers.Dense(2)(norm(twice(norm(twice(inputs))))))


def named():
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    x = layers.Dense(4, "tanh")(layers.Concatenate()([inputs["a"], inputs["b"]]))
    return keras.Model(inputs, {"kind": layers.Dense(3)(x), "value": layers.Dense(1)(x)})


def listed():
    a, b = keras.Input((2,)), keras.Input((3,))
    x = layers.Dense(4, "tanh")(layers.Concatenate()([a, b]))
    return keras.Model([a, b], [layers.Dense(2, name="first")(x), layers.Dense(1, name="last")(x)])


def frozen():
    model = dense(layers.Dense(4, "tanh", name="frozen"), layers.BatchNormalization(name="still"))
    model.get_layer("frozen").trainable = False
    model.get_layer("still").trainable = False
    return model


def standardized():
    norm = layers.Normalization(mean=[1.0, -2.0, 0.5], variance=[2.0, 0.5, 1.0])
    learnt = layers.Normalization()
    learnt.adapt(np.random.default_rng(5).normal(size=(20, 3)))
    return keras.Sequential([keras.Input((3,)), norm, learnt, layers.Dense(2)])


@dataclasses.dataclass
class Case:
    """A model, its data (from a generator and leading axes), and how it is compiled."""

    model: Callable
    x: Any = dataclasses.field(default_factory=lambda: reals(3))
    y: Any = dataclasses.field(default_factory=lambda: reals(2))
    loss: Any = "mse"
    weights: Any = None


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


PAIR = {"a": reals(2), "b": reals(3)}
CASES = {
    "convolution, batch normalisation": Case(convolutional, reals(5, 5, 1), labels(3), sparse),
    "dropout": Case(lambda: dense(layers.Dropout(0.4, seed=1))),
    "LSTM": Case(recurrent, reals(3, 2), reals(1)),
    "embedding": Case(embedded, labels(6, 4), one_hot(3), "categorical_crossentropy"),
    "attention": Case(attentive, reals(3, 4)),
    "layer normalisation": Case(lambda: dense(layers.LayerNormalization()), loss="huber"),
    "group normalisation": Case(lambda: dense(layers.GroupNormalization(2))),
    "own state": Case(lambda: dense(Average())),
    "dicts": Case(
        named,
        PAIR,
        {"kind": labels(3), "value": reals(1)},
        lambda: {"kind": sparse(), "value": "mae"},
        {"kind": 0.5, "value": 2.0},
    ),
    "lists": Case(listed, list(PAIR.values()), [reals(2), reals(1)], ["mse", "huber"], [2, 0.3]),
    "one loss for all": Case(listed, list(PAIR.values()), [reals(2), reals(1)]),
    "frozen": Case(frozen),
    "normalization": Case(standardized),
    "subclassed, built": Case(built),
    "subclassed": Case(Subclassed),
    "shared": Case(shared),
}


def draw(makers, rng, *lead):
    return keras.tree.map_structure(lambda make: make(rng, *lead), makers)


def episodes(case, tasks=TASKS):
    rng = np.random.default_rng(3)
    return {
        "support_x": draw(case.x, rng, tasks, SHOTS),
        "support_y": draw(case.y, rng, tasks, SHOTS),
        "query_x": draw(case.x, rng, tasks, QUERIES),
    }, draw(case.y, rng, tasks, QUERIES)


def loss_of(case):
    return case.loss() if callable(case.loss) else case.loss


def each(nest, t):
    return keras.tree.map_structure(lambda x: x[t], nest)


def compiled(case, optimizer, eager=True, **kwargs):
    maml = MAML(case.model(), STEPS, RATE, **kwargs)
    maml.compile(optimizer, loss_of(case), loss_weights=case.weights, run_eagerly=eager)
    return maml


def start_anywhere(model):
    """Biases, γ, β and moving statistics that are neither 0 nor 1."""
    rng = np.random.default_rng(6)
    for v in model.variables:
        if v.name in ("bias", "beta", "gamma", "moving_mean", "moving_variance"):
            v.assign(v + rng.uniform(0.1, 0.5, v.shape))


def twin_of(case, model, optimizer):
    """A model of its own with the same weights, without dropout."""
    twin = case.model()
    twin(keras.tree.map_structure(lambda x: x[0], episodes(case)[0]["support_x"]))
    twin.set_weights(model.get_weights())
    for layer in twin.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    twin.compile(optimizer, loss_of(case), loss_weights=case.weights, run_eagerly=True)
    return twin


OPTIMIZERS = {
    "dropout": lambda: keras.optimizers.Adam(0.1),
    "dicts": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "layer normalisation": lambda: keras.optimizers.RMSprop(0.1),
}


@pytest.mark.first(2)
@pytest.mark.parametrize("name", CASES)
def test_adapt_is_training_on_the_support_set(name):
    """As many steps of `train_on_batch`, weights and state; and `adapt` answers as `maml` does."""
    case, make = CASES[name], OPTIMIZERS.get(name)
    inner = make() if make else None
    maml = compiled(case, "sgd", batch_normalization="support", inner_optimizer=inner)
    x, _ = episodes(case)
    maml(x)
    start_anywhere(maml.model)
    before = maml.model.get_weights()
    support = each(x["support_x"], 1), each(x["support_y"], 1)
    adapted = maml.adapt(*support)

    twin = twin_of(case, maml.model, make() if make else keras.optimizers.SGD(RATE))
    for _ in range(STEPS):
        twin.train_on_batch(*support)
    norms = [x for x in twin.layers if isinstance(x, layers.BatchNormalization) and x.trainable]
    if norms:  # Statistics of the support set, by the adapted weights.
        for norm in norms:
            norm.momentum = 0.0
        twin(support[0], training=True)
    changed = 0
    for got, wanted, old, v in zip(
        adapted.get_weights(), twin.get_weights(), before, twin.weights, strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-9, err_msg=v.path)
        changed += not np.array_equal(got, old)
        if v.path.split("/")[-2] in ("frozen", "still") or (
            name == "normalization" and not v.trainable
        ):
            np.testing.assert_array_equal(got, old)
    # Attention's bias of the keys changes nothing.
    assert changed >= len(twin.trainable_variables) - 1
    for old, new in zip(before, maml.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)

    answers = adapted(each(x["query_x"], 1), training=False)
    for got, wanted in zip(keras.tree.flatten(answers), keras.tree.flatten(maml(x)), strict=True):
        np.testing.assert_allclose(got, wanted[1], rtol=1e-7, atol=1e-9)


def total_loss(case, y, outputs):
    """By Keras's losses, on the queries of all tasks."""
    names = list(outputs) if isinstance(outputs, dict) else range(len(keras.tree.flatten(outputs)))
    if not isinstance(outputs, (dict, list, tuple)):
        y, outputs = [y], [outputs]
    loss, total = loss_of(case), 0.0
    for key in names:
        one = keras.losses.get(loss[key] if isinstance(loss, (dict, list)) else loss)
        weight = 1.0 if case.weights is None else case.weights[key]
        target, output = (np.reshape(v[key], (-1, *v[key].shape[2:])) for v in (y, outputs))
        total += weight * float(np.mean(one(target, output)))
    return total


def meta_gradient(maml, x, y):
    """What one step of plain gradient descent at rate 1 takes, and its history."""
    before = [v.numpy() for v in maml.model.trainable_variables]
    history = maml.fit(x, y, batch_size=TASKS, verbose=0).history
    after = [v.numpy() for v in maml.model.trainable_variables]
    return [b - a for b, a in zip(before, after, strict=True)], history


def check_meta_gradient(name, eager):
    case = CASES[name]
    maml = compiled(case, keras.optimizers.SGD(1.0), eager)
    x, y = episodes(case)
    maml(x)
    start_anywhere(maml.model)
    weights, rng = maml.model.trainable_variables, np.random.default_rng(4)
    start = [v.numpy() for v in weights]
    directions = [rng.normal(size=v.shape) for v in weights]
    ends = []
    for step in (1e-6, -1e-6, 0.0):
        for v, w, d in zip(weights, start, directions, strict=True):
            v.assign(w + step * d)
        ends.append(total_loss(case, y, maml(x, training=True)))
    kept = {id(v): v.numpy() for v in maml.model.non_trainable_variables}
    gradients, history = meta_gradient(maml, x, y)
    slope = sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5)
    np.testing.assert_allclose(history["loss"][0], ends[2], rtol=1e-6)
    for v in maml.model.non_trainable_variables:
        moves = v.name in ("seed_generator_state", "calls") or not v.dtype.startswith("float")
        moves |= name not in ("frozen", "normalization")
        if not moves:
            np.testing.assert_array_equal(v.numpy(), kept[id(v)], err_msg=v.path)


@pytest.mark.first(2)
@pytest.mark.parametrize("name", CASES)
def test_finite_differences_of_the_meta_loss(name):
    """In eager code, all weights at once; what is frozen stays as it is, bit for bit."""
    check_meta_gradient(name, eager=True)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "LSTM" else pytest.mark.slow) for n in CASES]
)
def test_finite_differences_of_the_meta_loss_in_a_graph(name):
    check_meta_gradient(name, eager=False)


def test_own_state_follows_the_tasks():
    """What a custom layer's state changes by is the mean over tasks of its changes in a task."""
    case = CASES["own state"]
    maml = compiled(case, keras.optimizers.SGD(0.0))
    x, y = episodes(case)
    layer = next(v for v in maml.model.layers if isinstance(v, Average))
    means = []
    for t in range(TASKS):
        adapted = maml.adapt(each(x["support_x"], t), each(x["support_y"], t))
        adapted(each(x["query_x"], t))
        means.append(next(v for v in adapted.layers if isinstance(v, Average)).mean.numpy())
    maml.fit(x, y, batch_size=TASKS, verbose=0)
    np.testing.assert_allclose(layer.mean, np.mean(means, axis=0), rtol=1e-9)
    assert layer.calls.numpy() == STEPS + 1
    maml.evaluate(x, y, verbose=0)
    assert layer.calls.numpy() == STEPS + 1
