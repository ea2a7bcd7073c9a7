"""Training against Keras's own `fit`, gradients against finite differences and nested tapes, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.losses import NTXent
from keras_sslmeta.meta.differentiable_fit import DifferentiableFit
from keras_sslmeta.ssl import SimCLR

pytestmark = pytest.mark.usefixtures("double_precision")

STEPS, BATCH = 3, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, BATCH, 4))
Y = RNG.integers(0, 3, size=(STEPS, BATCH))
HELD_X, HELD_Y = RNG.normal(size=(16, 4)), RNG.integers(0, 3, size=16)

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.5),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.5, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01),
}


class Noise(layers.Layer):
    """An augmentation of variable strength."""

    def __init__(self, strength=0.5, **kwargs):
        super().__init__(**kwargs)
        self.strength = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(strength), trainable=False
        )
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, x, training=False):
        noise = keras.random.normal(keras.ops.shape(x), seed=self.seed_generator, dtype=x.dtype)
        return x + self.strength * noise if training else x


def classifier(regularizer=None, *more):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            *more,
            layers.Dense(5, activation="tanh", kernel_regularizer=regularizer),
            layers.Dense(3, kernel_constraint="max_norm"),
        ]
    )


def with_everything():
    """Batch normalisation, dropout, a regulariser, a constraint, a loss on activities."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activity_regularizer="l2"),
            layers.BatchNormalization(momentum=0.8),
            layers.Activation("tanh"),
            layers.Dropout(0.3, seed=3),
            layers.Dense(
                3, kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(1.0)
            ),
        ]
    )


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")


def compiled(model, loss="cross_entropy", **kwargs):
    model.compile(loss=cross_entropy() if loss == "cross_entropy" else loss, **kwargs)
    return model


def gradient(objective, values):
    """Of an objective of tensors, by the tape."""
    values = [tf.constant(v, tf.float64) for v in values]
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = objective(*values)
    return [np.asarray(tf.convert_to_tensor(g)) for g in tape.gradient(loss, values)]


def assert_gradients(objective, *values, entries=3, size=1e-5, tolerance=1e-6):
    """The tape's gradients are those of central differences, on some entries of each value."""
    values = [np.array(v, "float64") for v in values]
    found = gradient(objective, values)
    for i, value in enumerate(values):
        assert np.abs(found[i]).max() > 1e-6
        places = np.random.default_rng(0).permutation(value.size)[:entries]
        for place in places:
            ends = []
            for sign in (1, -1):
                moved = [v.copy() for v in values]
                moved[i].flat[place] += sign * size
                ends.append(float(objective(*map(tf.constant, moved))))
            expected = (ends[0] - ends[1]) / (2 * size)
            np.testing.assert_allclose(
                found[i].flat[place], expected, rtol=tolerance, atol=tolerance * 1e-2
            )


# --------------------------------------------------------------------------- the training itself


@pytest.mark.first(1)
@pytest.mark.parametrize("make", [classifier, with_everything])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trains_as_fit(make, optimizer):
    model, expected = compiled(make()), make()
    expected.compile(OPTIMIZERS[optimizer](), cross_entropy())
    history = expected.fit(
        X.reshape(-1, 4), Y.reshape(-1), batch_size=BATCH, shuffle=False, verbose=0
    )
    before = [v.numpy() for v in [*model.variables, *model.metrics_variables]]
    fitted = DifferentiableFit(model, OPTIMIZERS[optimizer](), steps=STEPS)(X, Y)
    after = [v.numpy() for v in [*model.variables, *model.metrics_variables]]
    # What was not built before is zeros: metrics of the loss.
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=False))
    assert not any(v.numpy().any() for v in model.metrics_variables)
    np.testing.assert_allclose(np.mean(fitted.losses), history.history["loss"][0], atol=1e-7)
    np.testing.assert_allclose(
        fitted.loss(HELD_X, HELD_Y), expected.evaluate(HELD_X, HELD_Y, verbose=0), atol=1e-7
    )
    np.testing.assert_allclose(fitted(HELD_X), expected.predict(HELD_X, verbose=0), atol=1e-7)
    fitted.assign()
    for ours, theirs in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-7, err_msg=theirs.path)


def test_goes_on_after_assign():
    model, expected = compiled(with_everything()), compiled(with_everything())
    fit = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=1)
    for k in range(STEPS):
        fit(X[k : k + 1], Y[k : k + 1]).assign()
    fitted = DifferentiableFit(expected, OPTIMIZERS["sgd"](), steps=STEPS)(X, Y)
    for v, w in zip(model.trainable_variables, fitted.weights, strict=True):
        np.testing.assert_allclose(v.numpy(), w, atol=1e-12)


def test_same_batch_is_that_batch_in_every_step():
    fits = [
        DifferentiableFit(compiled(with_everything()), steps=STEPS, same_batch=same)
        for same in (True, False)
    ]
    repeated = [np.stack([a[0]] * STEPS) for a in (X, Y)]
    np.testing.assert_allclose(fits[0](X[0], Y[0]).losses, fits[1](*repeated).losses, atol=1e-12)


def test_optimizer_of_compile_and_its_rate():
    model = classifier()
    model.compile(keras.optimizers.SGD(0.3, momentum=0.5), cross_entropy())
    model.optimizer.learning_rate = 0.1
    given = DifferentiableFit(model, OPTIMIZERS["momentum"](), steps=STEPS)
    of_compile = DifferentiableFit(model, steps=STEPS)
    np.testing.assert_allclose(of_compile(X, Y).losses, given(X, Y).losses, atol=1e-12)
    rate = model.optimizer.learning_rate
    with tf.GradientTape() as tape:
        tape.watch(rate.value)
        loss = of_compile(X, Y).loss(HELD_X, HELD_Y)
    (expected,) = gradient(
        lambda r: given(X, Y, learning_rate=r).loss(HELD_X, HELD_Y), [rate.numpy()]
    )
    np.testing.assert_allclose(tape.gradient(loss, rate.value), expected, rtol=1e-10)


def test_a_new_compile_counts():
    model = compiled(classifier())
    fit = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS)
    first = fit(X, Y).losses
    doubled = compiled(model, loss_weights=2.0)
    np.testing.assert_allclose(fit(X, Y).losses[0], 2 * first[0])
    np.testing.assert_allclose(doubled.evaluate(X[0], Y[0], verbose=0), 2 * first[0])


def test_sample_weights_as_in_fit():
    weights = RNG.uniform(size=(STEPS, BATCH))
    model, expected = compiled(classifier()), classifier()
    expected.compile(OPTIMIZERS["sgd"](), cross_entropy())
    flat = X.reshape(-1, 4), Y.reshape(-1)
    expected.fit(
        *flat, sample_weight=weights.reshape(-1), batch_size=BATCH, shuffle=False, verbose=0
    )
    fitted = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS)(X, Y, weights)
    for v, w in zip(expected.trainable_variables, fitted.weights, strict=True):
        np.testing.assert_allclose(v.numpy(), w, atol=1e-7)


def test_a_model_that_was_not_built_and_keras_own_seeds():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.GaussianNoise(0.5), layers.Dense(3)])
    model.add(layers.Lambda(lambda x: x + keras.random.normal((1,))))
    fit = DifferentiableFit(compiled(model), OPTIMIZERS["sgd"](), steps=2, same_batch=True)
    losses = fit(X[0], Y[0], learning_rate=0.0).losses
    assert len(model.trainable_variables) == 2
    assert losses[0] != losses[1]  # Weights stay, random numbers do not.
    np.testing.assert_array_equal(losses, fit(X[0], Y[0], learning_rate=0.0).losses)


# --------------------------------------------------------------------------------- gradients


@pytest.mark.first(1)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_of_rates_sample_weights_and_initial_weights(optimizer):
    model = compiled(with_everything())
    fit = DifferentiableFit(model, OPTIMIZERS[optimizer](), steps=STEPS)

    def objective(rate, sample_weight, *weights):
        fitted = fit(X, Y, sample_weight, learning_rate=rate, weights=weights)
        return fitted.loss(HELD_X, HELD_Y) + tf.reduce_sum(fitted.losses)

    values = (
        0.05,
        RNG.uniform(0.5, 1, (STEPS, BATCH)),
        *(v.numpy() for v in model.trainable_variables),
    )
    # Adam's and RMSprop's first steps are nearly signs of gradients: smooth in small steps only.
    is_smooth = optimizer not in ("adam", "rmsprop")
    assert_gradients(
        objective,
        *values,
        size=1e-5 if is_smooth else 1e-7,
        tolerance=1e-6 if is_smooth else 1e-4,
    )


@pytest.mark.parametrize("shape", [(STEPS,), (STEPS, 4)])
def test_gradients_of_rates_of_steps(shape):
    fit = DifferentiableFit(compiled(classifier()), OPTIMIZERS["momentum"](), steps=STEPS)
    assert_gradients(
        lambda r: fit(X, Y, learning_rate=r).loss(HELD_X, HELD_Y), RNG.uniform(0.05, 0.2, shape)
    )


def test_gradients_of_rates_of_variables():
    model = compiled(classifier())
    fit = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS)
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    assert_gradients(
        lambda *r: fit(X, Y, learning_rate=list(r)).loss(HELD_X, HELD_Y),
        *[RNG.uniform(0.05, 0.2, shape) for shape in (shapes[0], (), shapes[2], ())],
    )


def test_equals_nested_tapes():
    model = compiled(
        keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3)])
    )
    start = [tf.constant(v.numpy()) for v in model.trainable_variables]
    weights, rate = tf.constant(RNG.uniform(size=(STEPS, BATCH))), tf.constant(0.3, tf.float64)

    def losses(w, x, y):
        logits = tf.tanh(x @ w[0] + w[1]) @ w[2] + w[3]
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)

    with tf.GradientTape() as tape:
        tape.watch([*start, weights, rate])
        w, velocity = start, [tf.zeros_like(x) for x in start]
        for k in range(STEPS):
            with tf.GradientTape() as inner:
                inner.watch(w)
                loss = tf.reduce_mean(weights[k] * losses(w, X[k], Y[k]))
            moves = zip(velocity, inner.gradient(loss, w), strict=True)
            velocity = [0.5 * v - rate * g for v, g in moves]
            w = [x + v for x, v in zip(w, velocity, strict=True)]
        held = tf.reduce_mean(losses(w, HELD_X, HELD_Y))
    expected = tape.gradient(held, [*start, weights, rate])

    fit = DifferentiableFit(model, OPTIMIZERS["momentum"](), steps=STEPS)
    with tf.GradientTape() as tape:
        tape.watch([weights, rate])
        loss = fit(X, Y, weights, learning_rate=rate).loss(HELD_X, HELD_Y)
    found = tape.gradient(loss, [*model.trainable_variables, weights, rate])
    np.testing.assert_allclose(loss, held, rtol=1e-12)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)


def test_gradients_of_variables_that_training_reads():
    temperature = keras.Variable(0.7, dtype="float64")
    decay = keras.Variable(0.02, dtype="float64")
    noise = Noise()
    model = classifier(lambda w: decay * tf.reduce_sum(w * w), noise)
    compiled(model, lambda y, z: keras.ops.mean(cross_entropy()(y, z / temperature)))
    variables = [temperature, decay, noise.strength]
    fit = DifferentiableFit(model, OPTIMIZERS["momentum"](), steps=STEPS, hyperparameters=variables)

    def objective(*values):
        outputs = fit(X, Y, hyperparameters=values)(HELD_X)
        return cross_entropy()(HELD_Y, outputs)

    assert_gradients(objective, *(v.numpy() for v in variables))
    with tf.GradientTape() as tape:
        tape.watch(noise.strength.value)
        loss = cross_entropy()(HELD_Y, fit(X, Y)(HELD_X))
    found = tape.gradient(loss, [temperature, decay, noise.strength.value])
    np.testing.assert_allclose(found, np.ravel(gradient(objective, variables)), rtol=1e-10)


def test_gradients_of_loss_weights():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, "tanh")(inputs)
    model = keras.Model(inputs, [layers.Dense(3)(hidden), layers.Dense(1)(hidden)])
    weight = keras.Variable(0.5, dtype="float64")
    model.compile(loss=[cross_entropy(), "mse"], loss_weights=[1.0, weight])
    fit = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS, hyperparameters=[weight])
    targets = [Y, X[..., :1] ** 2]

    def objective(value):
        return cross_entropy()(HELD_Y, fit(X, targets, hyperparameters=[value])(HELD_X)[0])

    assert_gradients(objective, 0.5)


def test_variables_that_are_not_listed_are_constants_of_each_call():
    scale = keras.Variable(1.0, dtype="float64")
    model = compiled(classifier(), lambda y, z: scale * cross_entropy()(y, z))
    model.layers[0].trainable = False
    fit = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS)
    first = fit(X, Y)
    scale.assign(3.0)
    model.layers[0].kernel.assign(model.layers[0].kernel * 0.0)
    with tf.GradientTape() as tape:
        second = fit(X, Y)
    assert tape.gradient(second.losses, scale) is None
    np.testing.assert_allclose(second.losses[0], 3 * np.log(3))  # No features, and no bias as yet.
    assert first.losses[0] != second.losses[0]
    assert len(second.weights) == 2


@pytest.mark.first(2)
@pytest.mark.parametrize("same", [True, False])
def test_gradients_of_the_data(same):
    fit = DifferentiableFit(
        compiled(with_everything(), "mse"),
        OPTIMIZERS["sgd"](),
        steps=STEPS,
        same_batch=same,
        through_data=True,
    )
    x, y = X, RNG.normal(size=(STEPS, BATCH, 3))
    assert_gradients(
        lambda x, y: fit(x, y).loss(HELD_X, np.eye(3)[HELD_Y]),
        x[0] if same else x,
        y[0] if same else y,
    )


def test_gradients_of_one_step():
    fit = DifferentiableFit(compiled(with_everything()), steps=1, same_batch=True)
    assert_gradients(
        lambda r, w: fit(X[0], Y[0], w, learning_rate=r).loss(HELD_X, HELD_Y),
        0.01,
        np.ones(BATCH),
        size=1e-7,
        tolerance=1e-4,
    )


@pytest.mark.slow
def test_in_functions_and_beside_them():
    model = compiled(with_everything())
    fit = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS)

    def objective(rate):
        return fit(X, Y, learning_rate=rate).loss(HELD_X, HELD_Y)

    def with_gradient(rate):
        with tf.GradientTape() as tape:
            tape.watch(rate)
            loss = objective(rate)
        return tape.gradient(loss, rate)

    rate = tf.constant(0.1, tf.float64)
    expected = with_gradient(rate)
    np.testing.assert_allclose(tf.function(with_gradient)(rate), expected, rtol=1e-10)
    np.testing.assert_allclose(gradient(tf.function(objective), [rate])[0], expected, rtol=1e-10)


# ---------------------------------------------------------------------------------- SimCLR


def sim_clr(loss=None):
    keras.utils.set_random_seed(1)
    noise = Noise()
    encoder = keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh")])
    model = SimCLR(encoder, augmentation=noise, projector=layers.Dense(5))
    model.compile(loss=loss)
    return model, noise


def test_sim_clr_trains_as_fit():
    (model, _), (expected, _) = sim_clr(), sim_clr()
    expected.compile(OPTIMIZERS["sgd"]())
    expected.fit(X.reshape(-1, 4), batch_size=BATCH, shuffle=False, verbose=0)
    DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS)(X).assign()
    for ours, theirs in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-7, err_msg=theirs.path)


def test_gradients_through_sim_clr():
    model, noise = sim_clr()
    fit = DifferentiableFit(
        model, OPTIMIZERS["sgd"](), steps=STEPS, hyperparameters=[noise.strength]
    )
    ready = np.stack([HELD_X, HELD_X + 0.1], axis=1)  # Views, which the augmentation leaves alone.

    def objective(rate, strength, weights):
        fitted = fit(X, Y, weights, learning_rate=rate, hyperparameters=[strength])
        return fitted.loss(ready)

    assert_gradients(objective, 0.1, 0.5, RNG.uniform(0.5, 1, (STEPS, BATCH)))


def test_gradient_of_the_temperature():
    temperature = keras.Variable(0.3, dtype="float64")
    model, _ = sim_clr(NTXent(temperature=temperature))
    fit = DifferentiableFit(model, OPTIMIZERS["sgd"](), steps=STEPS, hyperparameters=[temperature])
    ready = np.stack([HELD_X, HELD_X + 0.1], axis=1)
    plain = NTXent(temperature=0.3)
    fixed = DifferentiableFit(sim_clr(plain)[0], OPTIMIZERS["sgd"](), steps=STEPS)
    np.testing.assert_allclose(fit(X).losses, fixed(X).losses, rtol=1e-10)
    assert_gradients(lambda t: plain(None, fit(X, hyperparameters=[t])(ready)), 0.3)
