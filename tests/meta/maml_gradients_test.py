"""Meta-gradients against nested tapes, finite differences and reference values, in float64."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.mechanisms.adaptation import Learnt
from keras_sslmeta.mechanisms.inner_loop import Start
from keras_sslmeta.meta import MAML

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "golden.npz"
TASKS, SHOTS, QUERIES = 3, 4, 5
RATE = 0.1


pytestmark = pytest.mark.usefixtures("double_precision")


def episodes(seed=0, tasks=TASKS):
    rng = np.random.default_rng(seed)
    return {
        "support_x": rng.normal(size=(tasks, SHOTS, 3)),
        "support_y": rng.normal(size=(tasks, SHOTS, 2)),
        "query_x": rng.normal(size=(tasks, QUERIES, 3)),
    }, rng.normal(size=(tasks, QUERIES, 2))


def two_layers(regularizer=None):
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(
                4,
                activation="tanh",
                bias_initializer="normal",
                kernel_regularizer=regularizer,
                name="body",
            ),
            layers.Dense(2, bias_initializer="normal", name="head"),
        ]
    )


def meta_gradient(maml, x, y, sample_weight=None, eager=False, loss="mse"):
    """What one step of plain gradient descent at rate 1 takes from each weight, and the history."""
    maml.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=eager)
    before = [v.numpy() for v in maml.model.trainable_variables]
    history = maml.fit(x, y, sample_weight=sample_weight, batch_size=len(y), verbose=0).history
    after = [v.numpy() for v in maml.model.trainable_variables]
    return [b - a for b, a in zip(before, after, strict=True)], history


def unrolled(weights, x, y, steps, second_order=True, adapted=(0, 1, 2, 3), factors=None):
    """Loss and meta-gradients of `two_layers` by tapes, one in another; `factors` (tasks, queries)."""

    def forward(w, inputs):
        return tf.tanh(inputs @ w[0] + w[1]) @ w[2] + w[3]

    start = [tf.constant(w) for w in weights]
    support = tf.constant(x["support_x"])
    losses = []
    with tf.GradientTape() as outer:
        outer.watch([*start, support])
        for t in range(len(y)):
            w = list(start)
            for _ in range(steps):
                with tf.GradientTape() as inner:
                    inner.watch(w)
                    loss = tf.reduce_mean((forward(w, support[t]) - x["support_y"][t]) ** 2)
                gradients = inner.gradient(loss, w)
                for i in adapted:
                    g = gradients[i] if second_order else tf.stop_gradient(gradients[i])
                    w[i] -= RATE * g
            errors = tf.reduce_mean((forward(w, x["query_x"][t]) - y[t]) ** 2, axis=-1)
            losses.append(tf.reduce_mean(errors * (1.0 if factors is None else factors[t])))
        total = tf.reduce_mean(losses)
    return total, outer.gradient(total, [*start, support])


def close(got, wanted, tolerance=1e-10):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs reference values beside the checkout")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("steps", "eager"), [(1, False), (3, False), (3, True)])
def test_golden_values_of_autograd(order, steps, eager):
    golden = np.load(GOLDEN)
    prefix = f"maml/order{order}_steps{steps}/"
    case = {k.removeprefix(prefix): golden[k] for k in golden.files if k.startswith(prefix)}
    assert case
    names = ("w1", "b1", "w2", "b2")
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(10, activation="tanh"), layers.Dense(3)]
    )
    model.set_weights([case[name] for name in names])
    rate = float(case["inner_learning_rate"])
    maml = MAML(model, steps, rate, second_order=order == 2)
    x = {key: case[key] for key in ("support_x", "support_y", "query_x")}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    got, history = meta_gradient(maml, x, case["query_y"], eager=eager, loss=loss)
    close(got, [case[f"meta_grad_{name}"] for name in names], 1e-9)
    np.testing.assert_allclose(history["loss"][0], case["loss"], atol=1e-6)


@pytest.mark.first(6)
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize(("steps", "eager"), [(0, True), (1, True), (4, True), (4, False)])
def test_equals_nested_tapes(steps, second_order, eager):
    model = two_layers()
    x, y = episodes()
    maml = MAML(model, steps, RATE, second_order)
    loss, wanted = unrolled(model.get_weights(), x, y, steps, second_order)
    got, history = meta_gradient(maml, x, y, eager=eager)
    close(got, wanted[:4])
    np.testing.assert_allclose(history["loss"][0], loss, rtol=1e-6)


@pytest.mark.first(4)
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize(("name", "indices"), [("head", (2, 3)), ("body", (0, 1))])
def test_weights_that_are_not_adapted_are_meta_learnt(name, indices, second_order):
    model = two_layers()
    x, y = episodes()
    maml = MAML(model, 3, RATE, second_order, adapted=lambda v: name in v.path)
    _, wanted = unrolled(model.get_weights(), x, y, 3, second_order, indices)
    got, _ = meta_gradient(maml, x, y, eager=True)
    close(got, wanted[:4])


@pytest.mark.first(4)
@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("eager", [False, True])
def test_sample_weights(per_query, eager):
    model = two_layers()
    x, y = episodes()
    rng = np.random.default_rng(1)
    weights = rng.uniform(size=(TASKS, QUERIES) if per_query else (TASKS,))
    factors = weights if per_query else np.repeat(weights[:, None], QUERIES, axis=1)
    loss, wanted = unrolled(model.get_weights(), x, y, 2, factors=factors)
    got, history = meta_gradient(MAML(model, 2, RATE), x, y, weights, eager)
    close(got, wanted[:4])
    np.testing.assert_allclose(history["loss"][0], loss, rtol=1e-6)


@pytest.mark.first(6)
@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("reduction", ["sum", None, "mean_with_sample_weight"])
def test_reductions(reduction, per_query):
    """Of the queries; the inner loss is a mean here. The history has the reduced value."""
    model = two_layers()
    x, y = episodes()
    weights = np.random.default_rng(1).uniform(size=(TASKS, QUERIES)[: 1 + per_query])
    each = weights if per_query else np.repeat(weights[:, None], QUERIES, axis=1)
    factors = each * QUERIES * TASKS
    if reduction == "mean_with_sample_weight":
        factors = factors / each.sum()
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    value, wanted = unrolled(model.get_weights(), x, y, 2, factors=factors)
    maml = MAML(model, 2, RATE, inner_loss="mse")
    got, history = meta_gradient(maml, x, y, weights, eager=True, loss=loss)
    close(got, wanted[:4])
    if reduction is not None:
        np.testing.assert_allclose(history["loss"][0], value, rtol=1e-6)


@pytest.mark.first(4)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("in_graph", [False, True])
def test_a_tape_around_call(steps, in_graph):
    model = two_layers()
    x, y = episodes()
    maml = MAML(model, steps, RATE)
    maml.compile("sgd", "mse")
    _, wanted = unrolled(model.get_weights(), x, y, steps)
    tensors = {key: tf.constant(value) for key, value in x.items()}

    def call(episode):
        return maml(episode, training=True)

    call = tf.function(call) if in_graph else call
    with tf.GradientTape() as tape:
        tape.watch(tensors["support_x"])
        loss = tf.reduce_mean((call(tensors) - y) ** 2)
    sources = [*[v.value for v in model.trainable_variables], tensors["support_x"]]
    close(tape.gradient(loss, sources), wanted)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_tape_on_the_support_targets(steps):
    model = two_layers()
    x, y = episodes()
    maml = MAML(model, steps, RATE)
    maml.compile("sgd", "mse")
    targets = tf.constant(x["support_y"])
    direction = np.random.default_rng(2).normal(size=targets.shape)

    def loss(targets):
        return tf.reduce_mean((maml({**x, "support_y": targets}, training=True) - y) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(targets)
        value = loss(targets)
    got = tape.gradient(value, targets)
    if got is not None:  # No gradient at all would be honest too.
        numeric = (loss(targets + 1e-5 * direction) - loss(targets - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(np.sum(got * direction), numeric, rtol=1e-6)


def test_the_derivative_of_the_meta_gradient_is_right_or_refused():
    x, y = episodes()
    model = two_layers()
    maml = MAML(model, 2, RATE)
    maml.compile("sgd", "mse")
    weight = model.trainable_variables[0]

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((maml(x, training=True) - y) ** 2)
        return tf.reduce_sum(tape.gradient(loss, weight.value) ** 2)

    try:
        with tf.GradientTape() as tape:
            value = gradient()
        got = tape.gradient(value, weight.value)
    except (LookupError, NotImplementedError, ValueError):
        return
    start, direction = weight.numpy(), np.random.default_rng(3).normal(size=weight.shape)
    ends = []
    for sign in (1, -1):
        weight.assign(start + sign * 1e-5 * direction)
        ends.append(gradient())
    np.testing.assert_allclose(np.sum(got * direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-5)


def noisy():
    """Batch normalisation and dropout between two layers."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(5, name="body"),
            layers.BatchNormalization(momentum=0.5),
            layers.Activation("tanh"),
            layers.Dropout(0.3, seed=5),
            layers.Dense(2, name="head"),
        ]
    )
    norm = model.layers[1]
    norm.moving_mean.assign([0.3, -0.2, 0.5, 0.0, 0.1])
    norm.moving_variance.assign([1.0, 0.5, 2.0, 1.5, 0.7])
    return model


SGD, Adam, RMSprop = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.RMSprop
OPTIMIZERS = {
    "sgd": lambda: SGD(0.2),
    "momentum": lambda: SGD(0.2, momentum=0.9),
    "nesterov": lambda: SGD(0.2, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.05, epsilon=1e-3),
    "rmsprop": lambda: RMSprop(0.05, epsilon=1e-3),
}


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("policy", "optimizer", "in_graph"),
    [
        ("transductive", "momentum", False),
        ("transductive", "momentum", True),
        ("support", "adam", False),
        ("per_step", "sgd", False),
        ("frozen", "rmsprop", False),
        ("support", "nesterov", False),
    ],
)
def test_finite_differences_in_all_that_enters(policy, optimizer, in_graph):
    """With dropout, whose masks are replayed, and normalisation."""
    # tf.nn.moments stops the gradient of the mean within the variance: by it, all but "frozen" would fail.
    maml = MAML(
        noisy(),
        3,
        inner_optimizer=OPTIMIZERS[optimizer](),
        adapted=lambda v: "bias" not in v.path,
        batch_normalization=policy,
    )
    maml.compile("sgd", "mse")
    x, y = episodes(tasks=2)
    _, learnt = maml.adaptation(training=True, through_inputs=True)
    begin = learnt.start(learnt.tensors)
    rng = np.random.default_rng(4)
    count = len(maml._inner_step()[0].start(begin.adapted))
    groups = {
        "adapted": begin.adapted,
        "others": begin.others,
        "rates": begin.rates,
        "optimizer": [  # Positive, as second moments are.
            tf.constant(rng.uniform(0.01, 0.1, size=w.shape)) for w in (begin.adapted * 2)[:count]
        ],
        "support_x": [tf.constant(x["support_x"])],
    }
    assert all(len(v) for k, v in groups.items() if k != "optimizer")

    def meta_loss(groups):
        values = {key: groups[key] for key in ("adapted", "others", "rates", "optimizer")}
        # Variables are read within, as `call` does.
        adaptation, learnt = maml.adaptation(training=True, through_inputs=True)
        begin = learnt.start(learnt.tensors)
        start = Start(state=begin.state, statistics=begin.statistics, **values)
        episode = {key: tf.identity(value) for key, value in x.items()}
        episode["support_x"] = groups["support_x"][0]
        outputs = adaptation.each(episode, Learnt([], lambda _: start)).outputs
        return tf.reduce_mean((outputs - y) ** 2)

    meta_loss = tf.function(meta_loss) if in_graph else meta_loss
    with tf.GradientTape() as tape:
        tape.watch(groups)
        loss = meta_loss(groups)
    gradients = tape.gradient(loss, groups)
    for key, tensors in groups.items():
        if not tensors:
            continue
        directions = [rng.normal(size=v.shape) for v in tensors]
        ends = [
            meta_loss(
                {**groups, key: [v + e * d for v, d in zip(tensors, directions, strict=True)]}
            )
            for e in (1e-6, -1e-6)
        ]
        slope = sum(np.sum(g * d) for g, d in zip(gradients[key], directions, strict=True))
        assert abs(slope) > 1e-6, key
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, err_msg=key)


NORMALIZATIONS = [
    layers.BatchNormalization,
    layers.LayerNormalization,
    lambda: layers.GroupNormalization(2),
    layers.RMSNormalization,
]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_second_order_through_normalisation(normalization):
    # By tf.nn.moments, all but RMSNormalization would fail.
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(6, "tanh"), normalization(), layers.Dense(2, "tanh")]
    )
    maml = MAML(model, 1, RATE)
    maml.compile("sgd", "mse")
    x, y = episodes(tasks=2)
    kernel = model.trainable_variables[0]

    def loss():
        return tf.reduce_mean((maml(x, training=True) - y) ** 2)

    with tf.GradientTape() as tape:
        value = loss()
    got = tape.gradient(value, kernel.value)
    start, direction = kernel.numpy(), np.random.default_rng(5).normal(size=kernel.shape)
    ends = []
    for sign in (1, -1):
        kernel.assign(start + sign * 1e-6 * direction)
        ends.append(loss())
    np.testing.assert_allclose(np.sum(got * direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("policy", ["transductive", "support", "per_step", "frozen"])
def test_train_step_equals_the_tape_with_dropout_and_normalisation(policy):
    model = noisy()
    maml = MAML(model, 3, RATE, adapted=lambda v: "bias" not in v.path, batch_normalization=policy)
    maml.compile("sgd", "mse")
    x, y = episodes()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((maml(x, training=True) - y) ** 2)
    wanted = tape.gradient(loss, [v.value for v in model.trainable_variables])
    got, history = meta_gradient(maml, x, y)
    close(got, wanted)
    np.testing.assert_allclose(history["loss"][0], loss, rtol=1e-6)


def test_regularisers_act_on_the_meta_weights_alone():
    x, y = episodes()
    plain = two_layers()
    model = two_layers(keras.regularizers.L2(0.125))
    model.set_weights(plain.get_weights())
    wanted, without = meta_gradient(MAML(plain, 2, RATE), x, y, eager=True)
    kernel = model.get_weights()[0]
    got, history = meta_gradient(MAML(model, 2, RATE), x, y, eager=True)
    wanted[0] = wanted[0] + 0.25 * kernel
    close(got, wanted)
    penalty = history["loss"][0] - without["loss"][0]
    np.testing.assert_allclose(penalty, 0.125 * np.sum(kernel**2), rtol=1e-5)
