import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sslmeta.meta import MAML

TASKS, SHOTS, QUERIES, RATE = 3, 4, 5, 0.1
RNG = np.random.default_rng(0)
X = {
    "support_x": RNG.normal(size=(TASKS, SHOTS, 3)).astype("float32"),
    "support_y": RNG.normal(size=(TASKS, SHOTS, 2)).astype("float32"),
    "query_x": RNG.normal(size=(TASKS, QUERIES, 3)).astype("float32"),
}
Y = RNG.normal(size=(TASKS, QUERIES, 2)).astype("float32")
SUPPORT = X["support_x"][1], X["support_y"][1]


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def network(*between, outputs=2, activation=None):
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "tanh", name="body"),
            *between,
            layers.Dense(outputs, activation, name="head"),
        ]
    )


@keras.saving.register_keras_serializable(package="maml_test")
def is_of_head(variable):
    return "head" in variable.path


def meta(model=None, steps=2, rate=RATE, optimizer=None, eager=True, loss="mse", **kwargs):
    maml = MAML(model or network(), steps, rate, **kwargs)
    maml.compile(optimizer or keras.optimizers.SGD(0.05), loss, run_eagerly=eager)
    return maml


def fit(maml, x=X, y=Y, **kwargs):
    kwargs = {"batch_size": TASKS, "verbose": 0, "shuffle": False, **kwargs}
    return maml.fit(x, y, **kwargs).history


def loss_of(model, x, y):
    return float(np.mean((model(x, training=False) - y) ** 2))


# ------------------------------------------------------------------------------------- adapt


def test_an_adapted_model_shares_nothing_and_can_be_trained_and_saved(tmp_path):
    maml = meta(network(layers.BatchNormalization(), layers.Dropout(0.5, seed=1)))
    before = [v.numpy() for v in maml.variables]
    adapted = maml.adapt(*SUPPORT)
    assert not {id(v) for v in adapted.variables} & {id(v) for v in maml.variables}
    assert not {id(x) for x in adapted.layers} & {id(x) for x in maml.model.layers}
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.saving.load_model(tmp_path / "adapted.keras")
    wanted = adapted.predict(X["query_x"][1], verbose=0)
    np.testing.assert_array_equal(loaded.predict(X["query_x"][1], verbose=0), wanted)
    adapted.compile("sgd", "mse", run_eagerly=True)
    adapted.fit(*SUPPORT, epochs=2, verbose=0)
    for old, v in zip(before, maml.variables, strict=True):
        np.testing.assert_array_equal(old, v.numpy())
    fit(maml)
    np.testing.assert_array_equal(loaded.predict(X["query_x"][1], verbose=0), wanted)


def test_steps_of_adapt():
    maml = meta(steps=1, test_inner_steps=3)
    by_steps = [maml.adapt(*SUPPORT, steps=k).get_weights() for k in (0, 1, 3)]
    default = maml.adapt(*SUPPORT).get_weights()
    for none, one, three, own, v in zip(*by_steps, default, maml.model.weights, strict=True):
        np.testing.assert_array_equal(none, v)
        assert not np.array_equal(one, three)
        np.testing.assert_allclose(three, own, rtol=1e-6)
    losses = [loss_of(maml.adapt(*SUPPORT, steps=k), *SUPPORT) for k in (0, 1, 3)]
    assert losses[0] > losses[1] > losses[2]


def test_adapt_follows_the_meta_weights_and_a_new_loss():
    """Its function is compiled once, and reads the variables each time."""
    maml = meta()
    maml.adapt(*SUPPORT)
    maml.model.set_weights([w + 0.1 for w in maml.model.get_weights()])
    first = maml.adapt(*SUPPORT).get_weights()
    fresh = meta(maml.model).adapt(*SUPPORT).get_weights()
    maml.compile("sgd", "mae")
    other = maml.adapt(*SUPPORT).get_weights()
    for a, b, c in zip(first, fresh, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert not np.allclose(a, c)


def test_a_lambda_layer_is_adapted():
    maml = meta(network(layers.Lambda(lambda x: 2 * x)))
    got = maml.adapt(*SUPPORT)(X["query_x"][1])
    np.testing.assert_allclose(got, maml(X)[1], rtol=1e-5, atol=1e-6)


def test_without_compile_and_inner_loss_adapting_says_so():
    maml = MAML(network())
    for run in (
        lambda: maml.adapt(*SUPPORT),
        lambda: maml(X),
        lambda: maml.predict(X, verbose=0),
        lambda: maml.predict_along(X, 2),
    ):
        with pytest.raises(ValueError, match=r"(?s)compile\(loss=.*inner_loss"):
            run()
    with pytest.raises(ValueError, match="loss=None"):
        maml.compile("adam")


def test_inner_loss_without_compile_adapts_as_the_compiled_one():
    compiled = meta()
    maml = MAML(compiled.model, 2, RATE, inner_loss=keras.losses.MeanSquaredError())
    np.testing.assert_allclose(maml.predict(X, verbose=0), compiled(X), rtol=1e-5, atol=1e-6)
    for a, b in zip(
        maml.adapt(*SUPPORT).get_weights(), compiled.adapt(*SUPPORT).get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_predict_along_is_predict_after_each_step():
    maml = meta()
    along = maml.predict_along(X, 2)
    assert isinstance(along, np.ndarray) and along.shape == (TASKS, 3, QUERIES, 2)
    for k in range(3):
        for t in range(TASKS):
            model = maml.adapt(X["support_x"][t], X["support_y"][t], steps=k)
            np.testing.assert_allclose(along[t, k], model(X["query_x"][t]), rtol=1e-5, atol=1e-6)
    assert maml.predict_along(X, 0).shape == (TASKS, 1, QUERIES, 2)
    with pytest.raises(ValueError, match="`steps` must be an integer from 0.*-1"):
        maml.predict_along(X, -1)


# ----------------------------------------------------------------------- reports and metrics


@pytest.mark.parametrize("training", [False, True])
def test_reports_are_losses_of_adapted_models(training):
    """All in evaluation; in meta-training those that need no further passes."""
    maml = meta(optimizer=keras.optimizers.SGD(0.0))
    tasks = range(TASKS)
    models = [maml.adapt(X["support_x"][t], X["support_y"][t]) for t in tasks]
    wanted = {
        "loss": [loss_of(models[t], X["query_x"][t], Y[t]) for t in tasks],
        "query_loss_before": [loss_of(maml.model, X["query_x"][t], Y[t]) for t in tasks],
        "support_loss_before": [
            loss_of(maml.model, X["support_x"][t], X["support_y"][t]) for t in tasks
        ],
        "support_loss_after": [
            loss_of(models[t], X["support_x"][t], X["support_y"][t]) for t in tasks
        ],
    }
    if training:  # Two batches, of two tasks and of one.
        got = {key: values[0] for key, values in fit(maml, batch_size=2).items()}
        wanted = {key: wanted[key] for key in ("loss", "support_loss_before")}
    else:
        got = maml.evaluate(X, Y, batch_size=2, verbose=0, return_dict=True)
    assert set(got) == set(wanted)
    for key, values in wanted.items():
        np.testing.assert_allclose(got[key], np.mean(values), rtol=1e-5, err_msg=key)


def test_metrics_of_classification():
    """On the queries of all tasks, as one batch."""
    rng = np.random.default_rng(1)
    support_y, y = (np.eye(3)[rng.integers(3, size=(TASKS, n))] for n in (SHOTS, QUERIES))
    metrics = ["accuracy", keras.metrics.AUC(), keras.metrics.F1Score("macro")]
    maml = MAML(network(outputs=3, activation="softmax"), 2, RATE)
    maml.compile("sgd", "categorical_crossentropy", metrics=metrics)
    x = {**X, "support_y": support_y}
    got = maml.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    answers = maml.predict(x, verbose=0).reshape(-1, 3)
    flat = y.reshape(-1, 3)
    accuracy = np.mean(answers.argmax(-1) == flat.argmax(-1))
    auc, f1 = keras.metrics.AUC(), keras.metrics.F1Score("macro")
    np.testing.assert_allclose(got["accuracy"], accuracy, rtol=1e-6)
    np.testing.assert_allclose(got["auc"], auc(flat, answers), rtol=1e-6)
    np.testing.assert_allclose(got["f1_score"], f1(flat, answers), rtol=1e-6)
    wanted = -np.mean(np.sum(flat * np.log(answers), axis=-1))
    np.testing.assert_allclose(got["loss"], wanted, rtol=1e-5)


def test_masked_outputs_do_not_count():
    """In the history as in the meta-gradient."""
    rng = np.random.default_rng(3)
    ids = rng.integers(1, 6, size=(TASKS, SHOTS, 4)) * (np.arange(4) < 2)
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), layers.Embedding(6, 3, mask_zero=True), layers.Dense(1)]
    )
    y = rng.normal(size=(TASKS, SHOTS, 4, 1)).astype("float32")
    maml = meta(model, steps=0)
    x = {"support_x": ids, "support_y": y, "query_x": ids}
    got = maml.evaluate(x, y, batch_size=TASKS, verbose=0, return_dict=True)
    outputs = model(ids.reshape(-1, 4))
    wanted = np.mean((outputs - y.reshape(-1, 4, 1))[:, :2] ** 2)
    np.testing.assert_allclose(got["query_loss_before"] / got["loss"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(got["loss"], wanted, rtol=1e-5)


# ------------------------------------------------------------------------------ sample_weight


@pytest.mark.parametrize("per_query", [False, True])
def test_sample_weight_in_evaluate(per_query):
    weights = np.random.default_rng(2).uniform(size=(TASKS, QUERIES)[: 1 + per_query])
    maml = MAML(network(), 2, RATE)
    maml.compile("sgd", "mse", metrics=["mae"], weighted_metrics=["mse"], run_eagerly=True)
    got = maml.evaluate(X, Y, sample_weight=weights, batch_size=3, verbose=0, return_dict=True)
    answers = maml(X)
    each = weights if per_query else weights[:, None] * np.ones((1, QUERIES))
    errors = np.mean((answers - Y) ** 2, axis=-1)
    np.testing.assert_allclose(got["loss"], np.mean(errors * each), rtol=1e-5)
    np.testing.assert_allclose(got["mse"], np.sum(errors * each) / np.sum(each), rtol=1e-5)
    np.testing.assert_allclose(got["mae"], np.mean(np.abs(answers - Y)), rtol=1e-5)


def test_a_task_of_weight_zero_does_not_count():
    weights = np.array([1.0, 0.0, 1.0])
    results = []
    for y in (Y, np.where(np.arange(TASKS)[:, None, None] == 1, 100.0, Y)):
        keras.utils.set_random_seed(0)
        maml = meta()
        fit(maml, y=y, sample_weight=weights)
        results.append(maml.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# -------------------------------------------------------------------------------------- state


class Recorder(keras.layers.Layer):
    """Keeps what passes, in eager code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, x):
        if isinstance(x, tf.Tensor) and hasattr(x, "numpy"):
            self.seen.append(x.numpy())
        return x * 1.0


def test_dropout_masks_differ_between_tasks_steps_and_batches():
    recorder = Recorder()
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dropout(0.5, seed=3), recorder, layers.Dense(2)]
    )
    ones = {key: np.ones((TASKS, 4, 64), "float32") for key in ("support_x", "query_x")}
    x = {**ones, "support_y": X["support_y"]}
    maml = meta(model, steps=3)

    def masks(run):
        recorder.seen.clear()
        run()
        return {array.tobytes() for array in recorder.seen}

    first = masks(lambda: maml(x, training=True))
    assert len(first) == len(recorder.seen) == TASKS * 4  # Three steps and the queries.
    assert masks(lambda: maml(x, training=True)) == first  # A call moves no state.
    seen = masks(lambda: fit(maml, x, Y[:, :4]))
    assert first <= seen  # What is run again in the gradient draws as before.
    assert len(recorder.seen) > len(seen)
    assert not masks(lambda: fit(maml, x, Y[:, :4])) & seen
    assert len(masks(lambda: maml(x))) == 1


class Interruption(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.first(1)
@pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, eager):
    """With dropout, statistics of steps, a part adapted, and an optimiser with slots."""

    def make():
        keras.utils.set_random_seed(1)
        model = network(layers.BatchNormalization(), layers.Dropout(0.5, seed=4))
        adam = keras.optimizers.Adam(0.01)
        return meta(model, 2, RATE, adam, eager, adapted=is_of_head, batch_normalization="per_step")

    whole = make()
    history = fit(whole, epochs=3, batch_size=2)
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    with pytest.raises(KeyboardInterrupt):
        fit(make(), epochs=3, batch_size=2, callbacks=[backup, Interruption()])
    resumed = make()
    rest = fit(resumed, epochs=3, batch_size=2, callbacks=[backup])
    assert rest["loss"] == history["loss"][2:]
    for a, b in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    for a, b in zip(whole.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.mark.slow
def test_a_saved_model_goes_on_as_it_would_have(tmp_path):
    model = network(layers.BatchNormalization(), layers.Dropout(0.5, seed=4))
    adam = keras.optimizers.Adam(0.01)
    inner = keras.optimizers.SGD(0.2, momentum=0.5)
    maml = meta(model, optimizer=adam, adapted=is_of_head, inner_optimizer=inner)
    fit(maml, epochs=2)
    maml.save(tmp_path / "maml.keras")
    loaded = keras.saving.load_model(tmp_path / "maml.keras")
    assert loaded.inner_steps == 2 and loaded.adapted is is_of_head
    np.testing.assert_array_equal(loaded(X), maml(X))
    loaded.run_eagerly = True
    assert fit(loaded)["loss"] == fit(maml)["loss"]
    for a, b in zip(maml.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


# ---------------------------------------------------------------------------- mixed precision


@pytest.mark.first(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_near_single_precision(policy):
    steps = []
    for dtype in ("float32", policy):
        keras.utils.set_random_seed(2)
        keras.config.set_dtype_policy(dtype)
        try:
            maml = meta(network(layers.LayerNormalization()), optimizer=keras.optimizers.SGD(1.0))
        finally:
            keras.config.set_dtype_policy("float32")
        before = [v.numpy() for v in maml.model.trainable_variables]
        loss = fit(maml)["loss"][0]
        after = [v.numpy() for v in maml.model.trainable_variables]
        assert all(v.dtype == np.float32 for v in after)
        steps.append((loss, [b - a for b, a in zip(before, after, strict=True)]))
    (loss, wanted), (half_loss, got) = steps
    np.testing.assert_allclose(half_loss, loss, rtol=0.05)
    for a, b in zip(got, wanted, strict=True):
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)
    assert maml(X).dtype == policy.removeprefix("mixed_")


@pytest.mark.slow
def test_a_compiled_step_equals_tensorflows():
    """By XLA; without dropout, of which XLA draws other masks."""
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(3)
        maml = MAML(network(layers.BatchNormalization()), 2, RATE)
        maml.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        results.append((fit(maml, epochs=2)["loss"], maml.get_weights()))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    for a, b in zip(results[1][1], results[0][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
