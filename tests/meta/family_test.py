"""Meta-learners that adapt by gradient steps: equal to MAML where they should be, right in what is theirs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_sslmeta as ksm
from keras_sslmeta.mechanisms.adaptation import Learnt
from keras_sslmeta.mechanisms.inner_loop import InnerLoop

pytestmark = pytest.mark.usefixtures("double_precision")

TASKS, SHOTS, QUERIES, RATE = 2, 6, 5, 0.1


def episodes(seed=0, tasks=TASKS):
    rng = np.random.default_rng(seed)
    return {
        "support_x": rng.normal(size=(tasks, SHOTS, 3)),
        "support_y": rng.normal(size=(tasks, SHOTS, 2)),
        "query_x": rng.normal(size=(tasks, QUERIES, 3)),
    }, rng.normal(size=(tasks, QUERIES, 2))


X, Y = episodes()


def network(*between):
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, use_bias=not between, bias_initializer="normal", name="body"),
            *between,
            layers.Activation("tanh"),
            layers.Dense(2, bias_initializer="normal", name="head"),
        ]
    )


def with_context(context_layer=None):
    inputs = keras.Input((3,))
    context = ksm.layers.TaskContext(3)(inputs)
    x = layers.Dense(4, bias_initializer="normal")(layers.Concatenate()([inputs, context]))
    x = ksm.layers.FiLM()([x, context])
    return keras.Model(inputs, layers.Dense(2)(layers.Activation("tanh")(x)))


def copies(model, count):
    """The model so many times, with the same weights."""
    clones = [keras.models.clone_model(model) for _ in range(count)]
    for clone in clones:
        clone.set_weights(model.get_weights())
    return clones


def after_a_step(learner, optimizer=None, x=X, y=Y):
    """All weights of the model after one step of gradient descent at rate 1."""
    learner.compile(optimizer or keras.optimizers.SGD(1.0), "mse")
    learner.fit(x, y, batch_size=len(y), verbose=0)
    return learner.model.get_weights()


def assert_equal(got, wanted, rtol=1e-9):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


def objective(learner, values):
    """The meta-loss in meta-training with these values of all that is learnt, by what it predicts."""
    adaptation, learnt = learner.adaptation(training=True)
    x = {key: tf.constant(value) for key, value in X.items()}
    along = adaptation.along(x, Learnt(values, learnt.start))  # (tasks, steps + 1, queries, …)
    of_steps = learner.loss_of_steps()
    losses = tf.reduce_mean((along - Y[:, None]) ** 2, axis=[0, 2, 3])[1:]
    return (
        losses[-1] if of_steps is None else tf.reduce_sum(losses * tf.cast(of_steps, losses.dtype))
    )


def check_meta_gradients(learner, unused=()):
    """Of every learnt variable, by finite differences of what the model predicts."""
    learner.compile(keras.optimizers.SGD(1.0), "mse")
    adaptation, learnt = learner.adaptation(training=True)
    variables = learner.learnt_variables(adaptation.network)
    values = [tf.identity(v) for v in learnt.tensors]
    trained = {id(v) for v in learner.trainable_variables}
    assert trained == {id(v) for v in variables}
    rng = np.random.default_rng(3)
    gradients = {}
    learner.fit(X, Y, batch_size=TASKS, verbose=0)
    for variable, value in zip(variables, values, strict=True):
        gradients[id(variable)] = (value - variable.value).numpy()
    learner.optimizer.iterations.assign(0)  # The loss of steps depends on them.
    for i, variable in enumerate(variables):
        direction = rng.normal(size=variable.shape)
        ends = [
            objective(learner, [*values[:i], values[i] + e * direction, *values[i + 1 :]])
            for e in (1e-5, -1e-5)
        ]
        slope = np.sum(gradients[id(variable)] * direction)
        is_unused = any(name in variable.path for name in unused)
        assert (slope == 0) == is_unused, variable.path
        np.testing.assert_allclose(
            slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-9, err_msg=variable.path
        )


# ------------------------------------------------------------------------ equivalences


def test_anil_with_all_layers_is_maml():
    a, b = copies(network(), 2)
    got = after_a_step(ksm.ANIL(a, adapted=lambda v: True, inner_steps=3, inner_learning_rate=RATE))
    assert_equal(got, after_a_step(ksm.MAML(b, inner_steps=3, inner_learning_rate=RATE)))


@pytest.mark.first(2)
@pytest.mark.parametrize(("method", "name"), [(ksm.ANIL, "head"), (ksm.BOIL, "body")])
def test_which_layers_adapt(method, name):
    a, b = copies(network(), 2)
    learner = method(a, inner_steps=2, inner_learning_rate=RATE)
    maml = ksm.MAML(b, 2, RATE, adapted=lambda v: name in v.path)
    assert_equal(after_a_step(learner), after_a_step(maml))
    adapted = learner.adapt(X["support_x"][0], X["support_y"][0])
    changed = [
        not np.allclose(v, w)
        for v, w in zip(adapted.get_weights(), learner.model.get_weights(), strict=True)
    ]
    assert changed == [name in v.path for v in learner.model.variables]


def test_meta_sgd_with_frozen_equal_rates_is_maml():
    a, b = copies(network(), 2)
    learner = ksm.MetaSGD(a, 2, rate_initializer=keras.initializers.Constant(RATE))
    for rate in learner.rates:
        rate.trainable = False
    # Keras's Constant goes through single precision.
    assert_equal(after_a_step(learner), after_a_step(ksm.MAML(b, 2, RATE)), rtol=1e-6)
    for rate in learner.rates:
        np.testing.assert_allclose(rate, np.full(rate.shape, RATE), rtol=1e-7)


def test_reptile_with_one_step_is_gradient_descent_on_the_support_loss():
    a, b = copies(network(), 2)
    learner = ksm.Reptile(a, 1, inner_optimizer=keras.optimizers.SGD(RATE), inner_batch_size=None)
    got = after_a_step(learner, keras.optimizers.SGD(0.5))
    b.compile(keras.optimizers.SGD(0.5 * RATE), "mse")
    b.fit(X["support_x"].reshape(-1, 3), X["support_y"].reshape(-1, 2), batch_size=100, verbose=0)
    assert_equal(got, b.get_weights())


@pytest.mark.first(2)
@pytest.mark.parametrize("steps", [1, 3])
def test_maml_plus_plus_with_nothing_added_is_maml(steps):
    a, b = copies(network(), 2)
    plus = ksm.MAMLPlusPlus(
        a, steps, RATE, multi_step_iterations=0, batch_normalization="transductive"
    )
    assert_equal(after_a_step(plus), after_a_step(ksm.MAML(b, steps, RATE)), rtol=1e-7)


@pytest.mark.slow
def test_first_order_and_then_second_order():
    first, second, annealed = copies(network(), 3)
    plus = ksm.MAMLPlusPlus(annealed, 2, RATE, multi_step_iterations=0, first_order_iterations=1)
    for rate in plus.rates:
        rate.trainable = False
    got = after_a_step(plus)
    assert_equal(got, after_a_step(ksm.MAML(first, 2, RATE, second_order=False)), rtol=1e-7)
    plus.fit(X, Y, batch_size=TASKS, verbose=0)
    second.set_weights(got)
    assert_equal(plus.model.get_weights(), after_a_step(ksm.MAML(second, 2, RATE)), rtol=1e-7)


# -------------------------------------------------------------------- what each one learns


@pytest.mark.first(1)
@pytest.mark.parametrize(("policy", "steps"), [("transductive", 1), ("support", 3)])
def test_gradients_of_meta_sgd(policy, steps):
    norm = layers.BatchNormalization()
    check_meta_gradients(ksm.MetaSGD(network(norm), steps, batch_normalization=policy))


def test_first_order_gradients_of_rates_are_exact_in_one_step():
    """They need no second derivative."""
    learners = [
        ksm.MetaSGD(copy, 1, rate_initializer="zeros", second_order=order)
        for copy, order in zip(copies(network(), 2), (False, True), strict=True)
    ]
    for learner in learners:
        after_a_step(learner)
    for a, b in zip(learners[0].rates, learners[1].rates, strict=True):
        assert np.any(a.numpy() != 0)
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("multi_step", [0, 10])
def test_gradients_of_maml_plus_plus(multi_step):
    """Rates, γ and β of every step; those of the model are used by none."""
    learner = ksm.MAMLPlusPlus(
        network(layers.BatchNormalization()), 3, RATE, multi_step_iterations=multi_step
    )
    if multi_step:
        learner.compile(keras.optimizers.SGD(1.0), "mse")
        np.testing.assert_allclose(learner.loss_of_steps(), np.full(3, 1 / 3), rtol=1e-6)
    check_meta_gradients(learner, unused=["batch_normalization"])


def test_weights_of_the_multi_step_loss():
    learner = ksm.MAMLPlusPlus(network(), 4, RATE, multi_step_iterations=100)
    learner.compile("sgd", "mse")
    for done, early in ((0, 0.25), (50, 0.125), (99, 0.03 / 4), (100, 0.0), (1000, 0.0)):
        learner.optimizer.iterations.assign(done)
        weights = learner.loss_of_steps()
        np.testing.assert_allclose(weights[:3], [early] * 3, rtol=1e-5)
        np.testing.assert_allclose(np.sum(weights), 1.0, rtol=1e-6)


def test_gradients_of_cavia():
    learner = ksm.CAVIA(with_context(), 2, 0.5)
    check_meta_gradients(learner, unused=["context"])
    context = learner.model.layers[1].context
    np.testing.assert_array_equal(context, np.zeros(3))
    adapted = learner.adapt(X["support_x"][0], X["support_y"][0])
    before, after = learner.model.get_weights(), adapted.get_weights()
    changed = [not np.allclose(v, w) for v, w in zip(before, after, strict=True)]
    assert changed == ["context" in v.path for v in learner.model.variables]


def learnt_loss():
    inputs = [keras.Input((2,)), keras.Input((2,))]
    x = layers.Concatenate()(inputs)
    return keras.Model(inputs, layers.Dense(1)(layers.Dense(5, "tanh")(x)))


def test_gradients_of_a_learnt_loss():
    learner = ksm.MAML(network(), 2, RATE, inner_loss=learnt_loss())
    # A constant shifts the loss, and moves nothing.
    check_meta_gradients(learner, unused=[learner.inner_loss.layers[-1].bias.path])


@pytest.mark.first(2)
@pytest.mark.parametrize("clip", [{"clipvalue": 0.05}, {"clipnorm": 0.1}, {"global_clipnorm": 0.2}])
def test_gradients_through_clipping(clip):
    optimizer = keras.optimizers.SGD(0.5, momentum=0.5, **clip)
    check_meta_gradients(ksm.MAML(network(), 3, inner_optimizer=optimizer))


# ------------------------------------------------------------------------------- implicit


class Explicit(ksm.MAML):
    """Unrolls the proximal steps that iMAML takes."""

    def inner_loop(self, network, training):
        return self.loop_of(InnerLoop, network, training, proximal=2.0)


@pytest.mark.slow
def test_implicit_gradients_converge_to_the_explicit_ones():
    errors = []
    for steps in (2, 10, 200):
        a, b = copies(network(), 2)
        start = a.get_weights()
        implicit = after_a_step(ksm.IMAML(a, steps, RATE, regularization=2.0, solver_steps=60))
        explicit = after_a_step(Explicit(b, steps, RATE))
        difference, size = (
            np.concatenate([(v - w).ravel() for v, w in zip(implicit, other, strict=True)])
            for other in (explicit, start)
        )
        errors.append(np.linalg.norm(difference) / np.linalg.norm(size))
    assert errors[2] < 1e-8 and errors[2] < errors[1] < errors[0], errors


def test_implicit_gradients_reach_weights_that_do_not_adapt():
    a, b = copies(network(layers.BatchNormalization()), 2)
    head = {"adapted": lambda v: "head" in v.path}
    implicit = after_a_step(ksm.IMAML(a, 300, RATE, solver_steps=30, **head))
    assert_equal(implicit, after_a_step(Explicit(b, 300, RATE, **head)), rtol=1e-7)


def test_conjugate_gradients_solve_the_system():
    from keras_sslmeta.mechanisms.implicit_loop import _conjugate_gradients

    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix, target = root @ root.T + np.eye(6), rng.normal(size=6)

    def product(vectors):
        flat = tf.linalg.matvec(matrix, tf.concat(vectors, axis=0))
        return [flat[:2], flat[2:]]

    got = _conjugate_gradients(product, [tf.constant(target[:2]), tf.constant(target[2:])], 6)
    np.testing.assert_allclose(np.concatenate(got), np.linalg.solve(matrix, target), rtol=1e-8)


# -------------------------------------------------------------------------------- Reptile


def test_reptile_against_keras_task_by_task():
    """Adam's second moments start alike in each task, and their mean goes on."""
    a, b, c = copies(network(), 3)
    learner = ksm.Reptile(a, 3, 0.05, inner_batch_size=None)
    learner.compile(keras.optimizers.SGD(0.7), "mse")
    theta = b.get_weights()
    moments = [np.zeros(v.shape) for v in b.trainable_variables]
    for i in range(2):
        x, y = episodes(i)
        learner.fit(x, y, batch_size=TASKS, verbose=0)
        finals = []
        for t in range(TASKS):
            c.set_weights(theta)
            optimizer = keras.optimizers.Adam(0.05, beta_1=0.0)
            c.compile(optimizer, "mse")
            optimizer.build(c.trainable_variables)
            for slot, mean in zip(optimizer._velocities, moments, strict=True):
                slot.assign(mean)
            optimizer.iterations.assign(3 * i)
            for _ in range(3):
                c.fit(x["support_x"][t], x["support_y"][t], batch_size=SHOTS, verbose=0)
            finals.append((c.get_weights(), [v.numpy() for v in optimizer._velocities]))
        theta = [
            w + 0.7 * (np.mean(ends, axis=0) - w)
            for w, *ends in zip(theta, *(f[0] for f in finals), strict=True)
        ]
        moments = [np.mean(m, axis=0) for m in zip(*(f[1] for f in finals), strict=True)]
    assert_equal(learner.model.get_weights(), theta, rtol=1e-6)
    assert_equal([m.numpy() for m in learner.moments][len(moments) :], moments, rtol=1e-6)


def test_batches_of_reptile_go_through_the_support_set():
    from keras_sslmeta.meta.reptile import _batches

    rows = _batches(6, 4, 3, tf.constant([1, 2]), 0).numpy()
    assert rows.shape == (3, 4)
    flat = rows.ravel()
    assert sorted(flat[:6]) == sorted(flat[6:]) == list(range(6))
    assert not np.array_equal(flat[:6], flat[6:])
    assert not np.array_equal(rows, _batches(6, 4, 3, tf.constant([1, 2]), 1))
    assert not np.array_equal(rows, _batches(6, 4, 3, tf.constant([1, 3]), 0))
    assert _batches(4, 4, 3, tf.constant([1, 2]), 0) is None


def test_reptile_takes_batches():
    """Steps on batches of 2 of 6 samples: as by hand on those rows."""
    from keras_sslmeta.meta.reptile import _batches

    a, b = copies(network(), 2)
    learner = ksm.Reptile(
        a, 4, inner_optimizer=keras.optimizers.SGD(RATE), inner_batch_size=2, seed=7
    )
    x, y = episodes(tasks=1)
    got = after_a_step(learner, x=x, y=y)
    b.compile(keras.optimizers.SGD(RATE), "mse")
    for rows in _batches(SHOTS, 2, 4, tf.constant([7, 0]), 0).numpy():
        b.fit(x["support_x"][0][rows], x["support_y"][0][rows], batch_size=2, verbose=0)
    assert_equal(got, b.get_weights())


# ---------------------------------------------------------------------------- all of them

SLOW = pytest.mark.slow
METHODS = {
    "ANIL": lambda: ksm.ANIL(network(), inner_steps=2, inner_learning_rate=RATE),
    "BOIL": lambda: ksm.BOIL(network(), inner_steps=2, inner_learning_rate=RATE),
    "MetaSGD": lambda: ksm.MetaSGD(
        network(layers.BatchNormalization()), 2, batch_normalization="support"
    ),
    "MAMLPlusPlus": lambda: ksm.MAMLPlusPlus(
        network(layers.BatchNormalization()), 2, RATE, 3, first_order_iterations=1
    ),
    "CAVIA": lambda: ksm.CAVIA(with_context(), 2, 0.5),
    "IMAML": lambda: ksm.IMAML(network(), 4),
    "Reptile": lambda: ksm.Reptile(network(), 3, 0.01, 4, test_inner_steps=2, seed=1),
    "MAML of a learnt loss": lambda: ksm.MAML(network(), 2, RATE, inner_loss=learnt_loss()),
}


def methods(*quick, names=tuple(METHODS)):
    """Every method; all but some with the slow tests, since each is traced several times."""
    rows = [name if name in quick else pytest.param(name, marks=SLOW) for name in names]
    return pytest.mark.parametrize("name", rows)


@pytest.mark.slow
@methods("Reptile")
def test_fitted_saved_and_loaded_models_predict_and_go_on_alike(name, tmp_path):
    learner = METHODS[name]()
    learner.compile("adam", "mse")
    learner.fit(X, Y, batch_size=1, epochs=2, verbose=0)
    before = learner.predict(X, verbose=0)
    assert before.shape == (TASKS, QUERIES, 2) and np.isfinite(before).all()
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), before)
    histories = [m.fit(X, Y, batch_size=1, epochs=2, verbose=0).history for m in (learner, loaded)]
    for key, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][key], rtol=1e-12, err_msg=key)
    assert type(learner).from_config(learner.get_config()).get_config() == learner.get_config()


@methods("ANIL")
def test_adapt_gives_what_predict_gives(name):
    learner = METHODS[name]()
    learner.compile("adam", "mse")
    learner.fit(X, Y, batch_size=TASKS, verbose=0)
    x = {key: value[:1] for key, value in X.items()}
    model = learner.adapt(x["support_x"][0], x["support_y"][0])
    np.testing.assert_allclose(
        model.predict(x["query_x"][0], verbose=0), learner.predict(x, verbose=0)[0], rtol=1e-9
    )


@pytest.mark.slow
@methods("ANIL", names=[name for name in METHODS if name not in ("BOIL", "CAVIA")])
def test_tasks_at_once_equal_one_after_another(name):
    results = []
    for vectorized in (False, True):
        keras.utils.set_random_seed(0)
        learner = METHODS[name]()
        learner.vectorized = vectorized
        learner.compile(keras.optimizers.SGD(0.5), "mse")
        history = learner.fit(X, Y, batch_size=TASKS, epochs=2, verbose=0).history
        values = learner.evaluate(X, Y, batch_size=TASKS, verbose=0)
        results.append([*learner.get_weights(), *history.values(), values])
    assert_equal(*results, rtol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ksm.MetaSGD(network(), inner_learning_rate=0.1),
            "`inner_learning_rate` must be left",
        ),
        (lambda: ksm.MAMLPlusPlus(network(), second_order=True), "`second_order` must be left out"),
        (
            lambda: ksm.MAMLPlusPlus(network(), multi_step_iterations=-1),
            "`multi_step_iterations` must",
        ),
        (lambda: ksm.MAMLPlusPlus(network(), 0), "`inner_steps` must be a positive integer"),
        (
            lambda: ksm.IMAML(network(), regularization=0),
            "`regularization` must be a positive number",
        ),
        (lambda: ksm.IMAML(network(), solver_steps=0), "`solver_steps` must be a positive integer"),
        (
            lambda: ksm.Reptile(network(), inner_batch_size=0),
            "`inner_batch_size` must be a positive",
        ),
        (lambda: ksm.Reptile(network(), seed=-1), "`seed` must be"),
        (lambda: ksm.CAVIA(network()), "`model` must have context parameters.*TaskContext"),
        (lambda: ksm.CAVIA(with_context(), adapted=lambda v: True), "`adapted` must be left out"),
        (
            lambda: ksm.MAML(network(), inner_loss=layers.Dense(1)),
            "`inner_loss` must be built.*functional",
        ),
        (
            lambda: ksm.MAML(network(), inner_loss=learnt_loss(), second_order=False),
            "`second_order` must be True where `inner_loss` has weights",
        ),
        (lambda: ksm.MAML(network(), vectorized="yes"), "`vectorized` must be True or False"),
    ],
)
def test_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build()


def test_query_labels_in_the_episode_are_refused():
    learner = ksm.MAML(network())
    learner.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`query_y` must not be part of the episode"):
        learner.fit({**X, "query_y": Y}, Y, verbose=0)


@pytest.mark.slow
def test_answers_of_reptile_depend_on_the_task_alone():
    """In batches of tasks or alone, by `predict`, `predict_along` or `adapt`."""
    learner = ksm.Reptile(network(), 2, 0.05, 4, test_inner_steps=3, seed=1)
    learner.compile("sgd", "mse")
    together = learner.predict(X, verbose=0)
    np.testing.assert_allclose(learner.predict(X, batch_size=1, verbose=0), together, rtol=1e-9)
    np.testing.assert_allclose(learner.predict_along(X, 5)[:, 3], together, rtol=1e-9)
    for t in range(TASKS):
        model = learner.adapt(X["support_x"][t], X["support_y"][t])
        np.testing.assert_allclose(model(X["query_x"][t]), together[t], rtol=1e-9)


@pytest.mark.slow
def test_reptile_answers_tasks_of_other_sizes():
    """Keras forgets the number of samples when it retraces."""
    learner = ksm.Reptile(network(), 2, 0.05, 4, test_inner_steps=3, seed=1)
    learner.compile("sgd", "mse")
    sizes = {n: {**X, **{k: X[k][:, :n] for k in ("support_x", "support_y")}} for n in (6, 5, 2)}
    answers = {n: learner.predict(x, verbose=0) for n, x in sizes.items()}
    for n, x in sizes.items():
        again = ksm.Reptile(learner.model, 2, 0.05, 4, test_inner_steps=3, seed=1)
        again.compile("sgd", "mse")
        np.testing.assert_allclose(again.predict(x, verbose=0), answers[n], rtol=1e-9)


def test_weights_a_task_and_weights_a_query_in_turn():
    learner = ksm.MAML(network())
    learner.compile("sgd", "mse")
    for weights in (np.full((TASKS, QUERIES), 2.0), np.full(TASKS, 2.0)):
        history = learner.fit(X, Y, sample_weight=weights, verbose=0).history
        assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("method", [ksm.ANIL, ksm.BOIL])
def test_several_heads_must_be_named(method):
    inputs = keras.Input((3,))
    model = keras.Model(
        inputs, [layers.Dense(2, name="u")(inputs), layers.Dense(2, name="v")(inputs)]
    )
    with pytest.raises(ValueError, match="`adapted` must say which variables.*2 outputs"):
        method(model)
    method(model, adapted=lambda v: "u/" in v.path)


@methods("MetaSGD", names=("MetaSGD", "MAMLPlusPlus", "Reptile"))
def test_layers_frozen_too_late_are_refused(name):
    learner = METHODS[name]()
    learner.compile("sgd", "mse")
    learner.model.get_layer("body").trainable = False
    with pytest.raises(ValueError, match="before the meta-learner is made"):
        learner.fit(X, Y, verbose=0)


def test_frozen_weights_are_constants():
    """Neither carried from step to step nor moved."""
    model = network()
    model.get_layer("body").trainable = False
    learner = ksm.MAML(model, 2, RATE)
    learner.compile(keras.optimizers.SGD(1.0), "mse")
    adaptation, _ = learner.adaptation(training=True)
    assert not adaptation.network.state and len(adaptation.network.frozen) == 2
    before = model.get_weights()
    learner.fit(X, Y, batch_size=TASKS, verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert moved == [False, False, True, True]


def test_a_head_wider_than_the_ways_is_refused():
    learner = ksm.MAML(network())  # Two classes.
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = {**X, "support_y": np.zeros((TASKS, SHOTS), "int64")}
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have as many classes.*ways"):
        learner.fit(labels, np.zeros((TASKS, QUERIES), "int64"), batch_size=TASKS, verbose=0)
    learner.predict(labels, verbose=0)  # A task that lacks a class may be answered.
    labels["support_y"][0, 0] = 1  # Tasks of one class and of two.
    learner.fit(labels, np.zeros((TASKS, QUERIES), "int64"), batch_size=TASKS, verbose=0)
