import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_sslmeta as ksm
from keras_sslmeta.meta.ps_co import PsCo

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(32, 5)).astype("float32")
VIEWS = RNG.normal(size=(32, 2, 5)).astype("float32")


@pytest.fixture(autouse=True)
def seeded():
    """One draw for each test, so that it always sees the same networks."""
    keras.utils.set_random_seed(0)


def small_encoder(*between):
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(7, "tanh"), *between, layers.Dense(6, "tanh")]
    )


def build(encoder=None, compiled=True, **kwargs):
    for name in ("projector", "predictor"):
        # Wide enough that no sample finds all units dead, and has a query of length zero.
        kwargs.setdefault(name, ksm.layers.ProjectionHead(4, hidden_dim=32))
    kwargs.setdefault("queue_size", 40)
    model = PsCo(small_encoder() if encoder is None else encoder, **kwargs)
    if compiled:
        model.compile(keras.optimizers.SGD(0.1))
    return model


def fit(model, x=VIEWS, **kwargs):
    return model.fit(x, batch_size=8, shuffle=False, verbose=0, **kwargs).history["loss"]


# --------------------------------------------------------------------------- the paper's loss


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def shots_of(keys, held, shots, epsilon, steps):
    """The places in the queue that Sinkhorn–Knopp assigns to each key most."""
    codes = np.exp(keys @ held.T / epsilon)
    for _ in range(steps):
        for column in range(codes.shape[1]):
            codes[:, column] /= codes[:, column].sum()
        for row in range(codes.shape[0]):
            codes[row] /= codes[row].sum()
    return np.argsort(-codes, axis=1)[:, :shots]


def oracle(y_pred, held, temperature, supervised_temperature, shots, epsilon, steps):
    """The loss of each sample, term by term; `held` are the keys that the queue holds."""
    queries, keys = (unit(np.asarray(y_pred, "float64")[:, view]) for view in (0, 1))
    losses = []
    for q, k in zip(queries, keys, strict=True):
        positive = np.exp(q @ k / temperature)
        negatives = sum(np.exp(q @ m / temperature) for m in held)
        losses.append(-np.log(positive / (positive + negatives)))
    if len(held) >= shots:
        chosen = shots_of(keys, held, shots, epsilon, steps)
        for i, q in enumerate(queries):
            everyone = sum(
                np.exp(q @ held[m] / supervised_temperature) for of_j in chosen for m in of_j
            )
            own = [np.exp(q @ held[m] / supervised_temperature) / everyone for m in chosen[i]]
            losses[i] -= np.mean(np.log(own))
    return np.array(losses)


def with_keys(model, filled, seed=1):
    """The model with a queue of which so many places are filled; these keys."""
    held = unit(np.random.default_rng(seed).normal(size=(model.queue_size, 4)))
    model.queue.keys.assign(held)
    model.queue.enqueued.assign(filled)
    return held[: min(filled, model.queue_size)]


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("filled", [0, 2, 3, 11, 40, 95])
def test_the_loss_and_its_gradient_are_the_papers(filled):
    settings = {"temperature": 0.3, "supervised_temperature": 0.8, "epsilon": 0.1}
    model = build(shots=3, sinkhorn_steps=4, **settings)
    held = with_keys(model, filled)
    y_pred = np.random.default_rng(2).normal(size=(6, 2, 4))

    def expected(y_pred):
        return oracle(y_pred, held, 0.3, 0.8, 3, 0.1, 4).mean()

    x = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = model.compute_loss(y_pred=x, training=False)
    np.testing.assert_allclose(value, expected(y_pred), rtol=1e-10, atol=1e-14)
    assert (filled == 0) == (float(value) == 0)
    gradient = tape.gradient(value, x).numpy()
    np.testing.assert_array_equal(gradient[:, 1], np.zeros((6, 4)))  # Keys are targets.
    differences = np.zeros((6, 4))
    for place in np.ndindex(6, 4):
        up, down = y_pred.copy(), y_pred.copy()
        up[place[0], 0, place[1]] += 1e-6
        down[place[0], 0, place[1]] -= 1e-6
        differences[place] = (expected(up) - expected(down)) / 2e-6
    np.testing.assert_allclose(gradient[:, 0], differences, rtol=1e-5, atol=1e-8)


def test_the_places_that_nothing_has_filled_make_no_difference():
    model = build()
    y_pred = tf.constant(VIEWS[:8, :, :4])
    with_keys(model, 9)
    before = float(model.compute_loss(y_pred=y_pred, training=False))
    keys = model.queue.keys.numpy()
    keys[9:] = unit(RNG.normal(size=(31, 4)))
    model.queue.keys.assign(keys)
    assert float(model.compute_loss(y_pred=y_pred, training=False)) == before
    keys[3] = -keys[3]
    model.queue.keys.assign(keys)
    assert float(model.compute_loss(y_pred=y_pred, training=False)) != before


def test_weights_weigh_the_samples_own_losses():
    model = build()
    held = with_keys(model, 40)
    weights = RNG.uniform(size=32).astype("float32")
    values = oracle(model(VIEWS), held, 0.2, 1.0, 4, 0.05, 3)
    got = model.evaluate(VIEWS, batch_size=32, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(got, np.mean(weights * values), rtol=1e-5)


def test_queries_are_of_the_first_view_and_keys_of_the_second():
    model = build()
    for copy in (model.momentum_encoder, model.momentum_projector):
        for average in copy.averages:
            average.assign(average + 0.1)
    got = model(VIEWS)
    queries = model.predictor(model.projector(model.encoder(VIEWS[:, 0])))
    keys = model.momentum_projector(model.momentum_encoder(VIEWS[:, 1]))
    np.testing.assert_allclose(got[:, 0], queries, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[:, 1], keys, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------ the step


def test_the_first_step_only_fills_the_queue():
    model = build()
    before = [w.copy() for w in model.encoder.get_weights()]
    assert float(model.train_on_batch(VIEWS[:8])) == 0
    for x, y in zip(before, model.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert int(model.queue.filled) == 8
    assert float(model.train_on_batch(VIEWS[8:16])) > 0
    assert np.abs(before[0] - model.encoder.get_weights()[0]).max() > 1e-4


def test_the_queue_holds_the_latest_keys_and_the_copies_follow():
    model = build(queue_size=20, momentum=0.75)
    networks = [model.encoder, model.projector]
    copies = [model.momentum_encoder, model.momentum_projector]
    expected = [[w.numpy() for w in network.weights] for network in networks]
    keys = []
    for step in range(4):
        batch = VIEWS[8 * step : 8 * step + 8]
        keys.extend(unit(model.momentum_projector(model.momentum_encoder(batch[:, 1])).numpy()))
        model.train_on_batch(batch)
        for network, copy, averages in zip(networks, copies, expected, strict=True):
            for i, weight in enumerate(network.weights):
                averages[i] = 0.75 * averages[i] + 0.25 * weight.numpy()
                np.testing.assert_allclose(copy.averages[i], averages[i], rtol=1e-5, atol=1e-6)
    held, latest = model.queue.keys.numpy(), np.array(keys[-20:])
    np.testing.assert_allclose(
        held[np.lexsort(held.T)], latest[np.lexsort(latest.T)], rtol=1e-5, atol=1e-6
    )
    assert np.abs(expected[0][0] - model.encoder.weights[0].numpy()).max() > 1e-4


def test_gradients_reach_encoder_head_and_predictor_alone():
    model = build()
    with_keys(model, 40)
    parts = (model.encoder, model.projector, model.predictor)
    assert len(model.trainable_variables) == sum(len(part.weights) for part in parts)
    with tf.GradientTape() as tape:
        value = model.compute_loss(y_pred=model(VIEWS, training=True), training=False)
    for gradient in tape.gradient(value, model.trainable_variables):
        assert np.abs(gradient).max() > 0


def test_evaluation_changes_nothing():
    model = build(small_encoder(layers.BatchNormalization()))
    fit(model)
    # The random states that metrics and Keras count with are none of the model's weights.
    before = [w.copy() for w in model.get_weights()]
    first = model.evaluate(VIEWS, verbose=0)
    model.predict(SAMPLES, verbose=0)
    assert model.evaluate(VIEWS, verbose=0) == first
    for x, y in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_batch_normalisation_of_the_copy_follows_the_networks():
    norm = layers.BatchNormalization(momentum=0.5)
    model = build(small_encoder(norm))
    seen = []
    inner = norm.call

    def record(x, **kwargs):
        seen.append(np.array(x))
        return inner(x, **kwargs)

    norm.call = record
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.train_on_batch(VIEWS[:8])
    assert len(seen) == 2  # The query's, then the key's, which moves nothing.
    np.testing.assert_allclose(norm.moving_mean, 0.5 * seen[0].mean(0), rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------- as Keras does


def test_the_default_heads_are_the_authors():
    model = PsCo(small_encoder())
    head, predictor = (
        [type(x).__name__ for x in m.blocks] for m in (model.projector, model.predictor.head)
    )
    assert head == ["Dense", "BatchNormalization", "ReLU", "Dense", "BatchNormalization"]
    assert predictor == head[:4]
    assert model(VIEWS).shape == (32, 2, 256)
    assert model.queue.keys.shape == (16384, 256)
    assert [len(m.trainable_variables) for m in (model.projector, model.predictor)] == [4, 4]


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(5)

    def call(self, x):
        return self.dense(x)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        (Subclassed, {}),
        (lambda: keras.Sequential([layers.Dense(4)]), {}),
        (small_encoder, {"run_eagerly": True}),
        (small_encoder, {"steps_per_execution": 2}),
    ],
    ids=["subclassed", "unbuilt", "run_eagerly", "steps_per_execution"],
)
def test_encoders_and_ways_of_running(encoder, options):
    model = build(encoder(), compiled=False)
    model.compile(keras.optimizers.SGD(0.1), **options)
    assert np.isfinite(fit(model, epochs=2)).all()
    assert model.predict(SAMPLES, verbose=0).shape[0] == 32


def test_plain_samples_with_an_augmentation_or_two():
    noise = layers.GaussianNoise(0.1, seed=1)
    for augmentation in (noise, [noise, lambda x: x]):
        model = build(augmentation=augmentation)
        losses = fit(model, SAMPLES, epochs=2)
        assert losses[1] > 0 and np.isfinite(losses).all()


@pytest.mark.slow
def test_xla():
    """It needs shapes that do not change: the filled places are told apart without."""
    model, plain = build(), build()
    plain.set_weights(model.get_weights())
    for each, jit_compile in ((model, True), (plain, False)):
        each.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        with_keys(each, 6)
    values = [[float(each.train_on_batch(VIEWS[:8])) for _ in range(3)] for each in (model, plain)]
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_mixed_precision():
    plain = build()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = build()
        assert half(VIEWS).dtype == tf.float16
        half.set_weights(plain.get_weights())
        with_keys(half, 40)
        with_keys(plain, 40)
        np.testing.assert_allclose(
            half.evaluate(VIEWS, verbose=0), plain.evaluate(VIEWS, verbose=0), rtol=2e-3
        )
        assert np.isfinite(fit(half, epochs=2)).all()
        assert half.queue.keys.dtype == half.momentum_encoder.averages[0].dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
def test_saved_loaded_and_resumed(tmp_path):
    """The queue and the copies go on from where they were, bit for bit."""

    def start():
        keras.utils.set_random_seed(3)
        model = build(
            small_encoder(layers.Dropout(0.3)),
            compiled=False,
            augmentation=layers.GaussianNoise(0.3),
            shots=2,
            momentum=0.9,
            supervised_temperature=0.7,
            epsilon=0.06,
            sinkhorn_steps=2,
        )
        model.compile(keras.optimizers.Adam(1e-2))
        return model

    straight = start()
    losses = fit(straight, SAMPLES, epochs=4)
    model = start()
    first = fit(model, SAMPLES, epochs=2)
    model.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(99)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    numbers = [name for name, x in model.get_config().items() if isinstance(x, (int, float))]
    assert len(numbers) == 8  # And `trainable`.
    for name in numbers:
        assert loaded.get_config()[name] == model.get_config()[name], name
    for x, y in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert first + fit(loaded, SAMPLES, epochs=2) == losses
    for x, y in zip(straight.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(
        straight.predict(SAMPLES, verbose=0), loaded.predict(SAMPLES, verbose=0)
    )


def test_the_encoder_saved_alone_is_a_plain_keras_model(tmp_path):
    model = build()
    fit(model)
    model.encoder.save(tmp_path / "encoder.keras")
    encoder = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_array_equal(
        encoder.predict(SAMPLES, verbose=0), model.predict(SAMPLES, verbose=0)
    )


# ----------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": 3}, r"`encoder` must be a keras\.Model"),
        ({"projector": 3}, "`projector` must be a Keras layer.*Received: 3"),
        ({"predictor": 3}, "`predictor` must be a Keras layer.*Received: 3"),
        ({"predictor": ksm.layers.ProjectionHead(5)}, "Received: 5 and 4 dimensions"),
        ({"shots": 0}, "`shots` must be a positive integer"),
        ({"queue_size": 3}, "`queue_size` must be an integer from 4. Received: queue_size=3"),
        ({"momentum": 1.5}, "Received: momentum=1.5"),
        ({"temperature": 0}, "`temperature` must be a positive number"),
        ({"supervised_temperature": -1}, "`supervised_temperature` must be a positive number"),
        ({"epsilon": 0}, "`epsilon` must be a positive number"),
        ({"sinkhorn_steps": 0}, "`sinkhorn_steps` must be a positive integer"),
    ],
)
def test_refused_by_the_constructor(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_loss_of_ones_own_is_refused():
    with pytest.raises(ValueError, match="leave `loss` out.*NTXent"):
        build(compiled=False).compile("adam", ksm.losses.NTXent())


def test_other_than_two_views_and_plain_samples_are_refused():
    with pytest.raises(ValueError, match="takes 2 views of each sample.*Received: 3 views"):
        build()(RNG.normal(size=(4, 3, 5)))
    with pytest.raises(ValueError, match="got plain samples: pass an augmentation"):
        fit(build(), SAMPLES)


def dataset(drop_remainder):
    return tf.data.Dataset.from_tensor_slices(VIEWS).batch(16, drop_remainder=drop_remainder)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "start",
    [
        lambda model: model.fit(VIEWS, batch_size=16, verbose=0),
        lambda model: model.fit(VIEWS, verbose=0),
        lambda model: model.fit(dataset(True), verbose=0),
        lambda model: model.fit(dataset(False), verbose=0),
        lambda model: model.train_on_batch(VIEWS[:16]),
    ],
    ids=["batch_size", "default", "static", "unknown", "train_on_batch"],
)
def test_a_queue_smaller_than_the_batch_is_refused(start):
    model = build(queue_size=15)
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(ValueError, match="(?s)queue.*15.*batch"):
        start(model)
    for x, y in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    model.fit(VIEWS, batch_size=15, verbose=0)


# --------------------------------------------------------------------------- what it is good for


def clustered(samples, seed):
    """Ten classes in four of the dimensions, and noise in the other twenty."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % 10
    centres = 1.5 * np.random.default_rng(0).normal(size=(10, 4))
    signal = centres[labels] + 0.3 * rng.normal(size=(samples, 4))
    return np.concatenate([signal, rng.normal(size=(samples, 20))], axis=1).astype(
        "float32"
    ), labels


def with_other_noise(x):
    signal, noise = x[:, :4], x[:, 4:]
    return tf.concat(
        [signal + 0.2 * tf.random.normal(tf.shape(signal)), tf.random.normal(tf.shape(noise))], 1
    )


@pytest.mark.slow
def test_few_shot_and_nearest_neighbour_accuracy_rise():
    keras.utils.set_random_seed(0)
    model = build(
        keras.Sequential([keras.Input((24,)), layers.Dense(64, "relu"), layers.Dense(16)]),
        compiled=False,
        projector=ksm.layers.ProjectionHead(16),
        predictor=ksm.layers.ProjectionHead(16),
        augmentation=with_other_noise,
        queue_size=256,
    )
    model.compile(keras.optimizers.Adam(3e-3))
    (train, labels), test = clustered(640, 1), clustered(300, 2)

    def accuracies():
        few_shot = ksm.evaluation.few_shot(model, test, ways=5, shots=1, episodes=200).accuracy
        known, asked = (model.predict(x, verbose=0) for x in (train, test[0]))
        return few_shot, ksm.evaluation.knn_accuracy(known, labels, asked, test[1])

    before = accuracies()  # 0.31, 0.34
    model.fit(train, batch_size=64, epochs=15, verbose=0)
    after = accuracies()  # 0.73, 0.82
    assert after[0] > before[0] + 0.2 and after[1] > before[1] + 0.2, (before, after)


# ------------------------------------------------------------------------------------- replicas

TWELVE = np.random.default_rng(0).normal(size=(12, 2, 5)).astype("float32")
# An uneven last batch.
BATCHES = np.tile(TWELVE, (3, 1, 1))[:35]


def on_replicas(**kwargs):
    keras.utils.set_random_seed(0)
    heads = {name: ksm.layers.ProjectionHead(4) for name in ("projector", "predictor")}
    return build(**{**heads, **kwargs}, queue_size=20, shots=3, momentum=0.8)


@pytest.mark.slow
@pytest.mark.parametrize("sample_weight", [None, "random"])
def test_steps_on_replicas(sample_weight):
    """Three: the queue is empty, holds one batch, and has gone round."""
    ksm.testing.assert_batch_invariant(
        on_replicas(), TWELVE, sample_weight=sample_weight, replicas=2
    )


@pytest.mark.slow
def test_fit_on_replicas(replicas):
    data = tf.data.Dataset.from_tensor_slices(BATCHES).batch(12)
    results = []
    for count in (1, 2):
        with replicas(count).scope():
            model = on_replicas()
        history = model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]
        results.append([np.array(history), *[w.numpy() for w in model.weights]])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_replicas_stay_alike(replicas):
    """With the default heads, whose BatchNorm is synchronised."""
    with replicas(2).scope():
        model = on_replicas(projector=None, predictor=None)
    data = tf.data.Dataset.from_tensor_slices(BATCHES).batch(12)
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    for weight in model.weights:
        copies = replicas(2).experimental_local_results(weight.value)
        assert len(copies) == 2
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0], err_msg=weight.path)
