"""What each method computes, by hand or by another method that it equals at some setting."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from small_methods import LABELS, METHODS, RNG, SAMPLES, VIEWS, encoder, head, identity

import keras_sslmeta as ksm

every_method = pytest.mark.parametrize("name", METHODS)
PREDICTING = ["SimSiam", "BYOL", "MoCoV3", "NNCLR"]
MOMENTUM = ["BYOL", "MoCo", "MoCoV3"]


def compiled(model, rate=0.1, **kwargs):
    model.compile(keras.optimizers.SGD(rate), **kwargs)
    return model


def loss_of(model, x=VIEWS, y=None):
    return compiled(model).evaluate(x, y, batch_size=len(x), verbose=0)


def weights_after_a_step(model, x=VIEWS, y=None):
    compiled(model).fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    return [w.numpy() for w in model.encoder.weights]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(logits):
    logits = logits.astype("float64")
    logits -= logits.max(axis=1, keepdims=True)
    return -np.mean(np.diag(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))))


def projected(model, x=VIEWS):
    """`(views, batch, dim)` in float64, by the model's own parts."""
    return np.stack(
        [np.asarray(model.projector(model.encoder(x[:, v])), "float64") for v in range(x.shape[1])]
    )


# --------------------------------------------------------------------------- each method's loss


LOSSES = {
    "SimCLR": ksm.losses.NTXent(0.1),
    "SupCon": ksm.losses.SupervisedContrastive(0.1),
    "DCL": ksm.losses.DecoupledContrastive(0.1),
    "BarlowTwins": ksm.losses.BarlowTwins(),
    "VICReg": ksm.losses.VICReg(),
    "LeJEPA": ksm.losses.LeJEPA(),
    "SimCSE": ksm.losses.InfoNCE(0.05),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_that_of_the_projected_views(name):
    model = METHODS[name]()
    z = np.moveaxis(projected(model), 0, 1).astype("float32")
    labels = LABELS if name == "SupCon" else None
    expected = LOSSES[name](labels, z)
    np.testing.assert_allclose(loss_of(model, y=labels), expected, rtol=1e-5)
    np.testing.assert_allclose(model(VIEWS), z, rtol=1e-5, atol=1e-6)


def test_sim_siam_by_hand():
    model = METHODS["SimSiam"]()
    z = projected(model)
    p = unit(np.stack([np.asarray(model.predictor(v.astype("float32"))) for v in z]))
    cosines = [np.sum(p[0] * unit(z[1]), axis=1), np.sum(p[1] * unit(z[0]), axis=1)]
    np.testing.assert_allclose(loss_of(model), -np.mean(cosines), rtol=1e-5)


def test_byol_without_momentum_and_predictor_is_sim_siam():
    byol = ksm.BYOL(encoder(), projector=head(), predictor=identity(), momentum=0.0)
    sim_siam = ksm.SimSiam(encoder(), projector=head(), predictor=identity())
    np.testing.assert_allclose(loss_of(byol), 4 + 4 * loss_of(sim_siam), rtol=1e-5)
    byol.compile(keras.optimizers.SGD(0.025))
    byol.fit(VIEWS, batch_size=12, shuffle=False, epochs=3, verbose=0)
    sim_siam.compile(keras.optimizers.SGD(0.1))
    sim_siam.fit(VIEWS, batch_size=12, shuffle=False, epochs=3, verbose=0)
    for a, b in zip(byol.encoder.weights, sim_siam.encoder.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert np.abs(byol.encoder.weights[0] - encoder().weights[0]).max() > 1e-3


def test_moco_v3_without_momentum_is_symmetric_info_nce():
    model = ksm.MoCoV3(encoder(), projector=head(), predictor=identity(), momentum=0.0)
    one, two = unit(projected(model))
    logits = one @ two.T / 0.2
    expected = 2 * 0.2 * (cross_entropy(logits) + cross_entropy(logits.T))
    np.testing.assert_allclose(loss_of(model), expected, rtol=1e-5)
    model.compile(loss=ksm.losses.InfoNCE(1.0))
    logits = one @ two.T
    expected = 2 * (cross_entropy(logits) + cross_entropy(logits.T))
    np.testing.assert_allclose(model.evaluate(VIEWS, batch_size=12, verbose=0), expected, rtol=1e-5)


def test_moco_is_info_nce_on_keys_and_queue():
    model = ksm.MoCo(encoder(), projector=head(), momentum=0.5, queue_size=16)
    held = unit(RNG.normal(size=(16, 5)))
    model.queue.keys.assign(held)
    for weight in model.encoder.trainable_variables:  # So that the copy differs.
        weight.assign(weight + 0.3)
    queries = unit(projected(model)[0])
    copied = model.momentum_projector(model.momentum_encoder(VIEWS[:, 1]))
    keys = unit(np.asarray(copied, "float64"))
    logits = np.concatenate([np.sum(queries * keys, 1)[:, None], queries @ held.T], axis=1) / 0.2
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
    np.testing.assert_allclose(loss_of(model), expected, rtol=1e-5)
    history = compiled(model).fit(VIEWS, batch_size=12, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
    # The keys went in after the loss, in place of the oldest.
    np.testing.assert_allclose(model.queue.keys[:12], keys, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.queue.keys[12:], held[12:], rtol=1e-6)


def test_nnclr_by_hand():
    model = METHODS["NNCLR"]()
    held = unit(RNG.normal(size=(16, 5)))
    model.queue.keys.assign(held)
    z = projected(model)
    p = unit(np.stack([np.asarray(model.predictor(v.astype("float32"))) for v in z]))
    near = [held[np.argmax(unit(v) @ held.T, axis=1)] for v in z]
    expected = np.mean([cross_entropy(near[v] @ p[1 - v].T / 0.1) for v in (0, 1)])
    np.testing.assert_allclose(loss_of(model), expected, rtol=1e-5)
    compiled(model).fit(VIEWS, batch_size=12, verbose=0, shuffle=False)
    np.testing.assert_allclose(model.queue.keys[:12], unit(z[0]), rtol=1e-4, atol=1e-6)


def test_sup_con_of_unique_labels_is_nt_xent():
    labels = np.arange(12)
    np.testing.assert_allclose(
        loss_of(METHODS["SupCon"](), y=labels), loss_of(METHODS["SimCLR"]()), rtol=1e-5
    )
    ours = weights_after_a_step(METHODS["SupCon"](), y=labels)
    for a, b in zip(ours, weights_after_a_step(METHODS["SimCLR"]()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_sup_con_needs_labels():
    with pytest.raises(ValueError, match="SupCon needs labels"):
        weights_after_a_step(METHODS["SupCon"]())


def test_distillation_by_hand():
    model = METHODS["Distillation"]()
    ours, theirs = projected(model), np.stack([model.teacher(VIEWS[:, v]) for v in (0, 1)])
    expected = -np.mean(np.sum(unit(ours) * unit(theirs), axis=-1))
    np.testing.assert_allclose(loss_of(model), expected, rtol=1e-5)
    plain = -np.mean(
        np.sum(unit(projected(model, SAMPLES[:, None])) * unit(model.teacher(SAMPLES)), axis=-1)
    )
    np.testing.assert_allclose(loss_of(model, SAMPLES), plain, rtol=1e-5)
    model.compile(loss=keras.losses.MeanSquaredError())
    squares = np.mean((ours - theirs) ** 2)
    np.testing.assert_allclose(model.evaluate(VIEWS, batch_size=12, verbose=0), squares, rtol=1e-5)


def test_a_student_becomes_its_teacher():
    keras.utils.set_random_seed(0)
    teacher = encoder(seed=7)
    before = teacher.get_weights()
    model = ksm.Distillation(encoder(seed=8), teacher)
    x = RNG.normal(size=(256, 6)).astype("float32")
    model.compile(keras.optimizers.Adam(0.02), loss=keras.losses.MeanSquaredError())
    model.fit(x, batch_size=32, epochs=30, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), teacher(x), atol=0.05)
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_le_jepa_takes_other_directions_in_every_step():
    """With the weights held, the loss of a step is that of the directions of its number."""
    model = METHODS["LeJEPA"]()
    model.compile(keras.optimizers.SGD(0.0), loss=ksm.losses.LeJEPA(weight=1.0, directions=3))
    losses = [
        model.fit(VIEWS, batch_size=12, verbose=0, shuffle=False).history["loss"][0]
        for _ in range(3)
    ]
    z = np.moveaxis(projected(model), 0, 1).astype("float32")
    expected = [float(ksm.losses.SIGReg(directions=3)(step, z)) for step in range(3)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert np.std(losses) > 1e-3 * np.mean(losses)


def test_sim_cse_sees_each_sample_twice_with_other_dropout():
    model = ksm.SimCSE(encoder(layers.Dropout(0.5)), projector=identity())
    z = np.asarray(model(SAMPLES, training=True))
    assert z.shape == (12, 2, 8) and not np.allclose(z[:, 0], z[:, 1])
    still = np.asarray(model(SAMPLES, training=False))
    np.testing.assert_array_equal(still[:, 0], still[:, 1])
    triplets = RNG.normal(size=(12, 3, 6)).astype("float32")
    embeddings = np.asarray(model(triplets))
    expected = ksm.losses.InfoNCE(0.05)(None, embeddings)
    np.testing.assert_allclose(loss_of(model, triplets), expected, rtol=1e-5)


# ------------------------------------------------------------------------ targets and averages


@pytest.mark.parametrize("name", [*PREDICTING, "MoCo", "Distillation"])
def test_targets_get_no_gradient(name):
    """The gradient is that of targets that are held as numbers."""
    model = METHODS[name](**({"momentum": 0.0} if name in MOMENTUM else {}))
    compiled(model)
    held = np.asarray(model(VIEWS))
    half = held.shape[1] // 2

    def gradients(fixed):
        with tf.GradientTape() as tape:
            outputs = model(VIEWS)
            if fixed:
                outputs = tf.concat([outputs[:, :half], held[:, half:]], axis=1)
            loss = model.compute_loss(VIEWS, None, outputs, None, training=False)
        return tape.gradient(loss, model.trainable_variables)

    assert float(tf.linalg.global_norm(gradients(False))) > 1e-3
    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", MOMENTUM)
@pytest.mark.parametrize(
    ("execution", "accumulation"), [(1, None), (2, None), (1, 2), (2, 3)], ids=str
)
def test_averages_follow_the_weights(name, execution, accumulation):
    """As NumPy's recurrence has it, at each step of the optimizer and at no other."""

    def followed(model):
        return [*model.encoder.trainable_variables, *model.projector.trainable_variables]

    def optimizer():
        return keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulation)

    model, other = METHODS[name](momentum=0.9), METHODS[name](momentum=0.9)
    other.set_weights(model.get_weights())
    model.compile(optimizer(), steps_per_execution=execution)
    other.compile(optimizer())  # Of which every step can be seen.
    expected = [w.numpy().astype("float64") for w in followed(other)]
    for step in range(1, 7):
        other.train_on_batch(VIEWS)
        if step % (accumulation or 1) == 0:
            expected = [0.9 * e + 0.1 * w for e, w in zip(expected, followed(other), strict=True)]
    model.fit(np.tile(VIEWS, (6, 1, 1)), batch_size=12, shuffle=False, verbose=0)
    averages = [*model.momentum_encoder.averages, *model.momentum_projector.averages]
    for average, e, weight in zip(averages, expected, followed(model), strict=True):
        np.testing.assert_allclose(average, e, rtol=1e-5, atol=1e-6)
        assert not np.allclose(average, weight, atol=1e-5)


@pytest.mark.slow
def test_momentum_may_follow_a_schedule(tmp_path):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 1.0])
    model = METHODS["BYOL"](momentum=schedule)
    compiled(model).fit(VIEWS, batch_size=12, verbose=0)
    after_one = [w.numpy() for w in model.encoder.trainable_variables]
    for average, weight in zip(model.momentum_encoder.averages, after_one, strict=True):
        np.testing.assert_allclose(average, weight, rtol=1e-6)  # Momentum 0 in step 0.
    model.fit(VIEWS, batch_size=12, verbose=0)  # Step 1 has 0 too, the boundary included.
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    before = [w.numpy() for w in loaded.momentum_encoder.averages]
    loaded.fit(VIEWS, batch_size=12, verbose=0)
    for average, old in zip(loaded.momentum_encoder.averages, before, strict=True):
        np.testing.assert_array_equal(average, old)


# ------------------------------------------------------------------------------- as Keras does


@pytest.mark.first(1)
@every_method
def test_training_lowers_the_loss_and_spares_what_does_not_train(name):
    keras.utils.set_random_seed(0)
    noise = RNG.normal(size=(96, 2, 6))
    related = (RNG.normal(size=(96, 1, 6)) + 0.05 * noise).astype("float32")
    model = METHODS[name]()
    labels = np.arange(96) % 3 if name == "SupCon" else None
    rate = {"BarlowTwins": 0.01, "VICReg": 0.005}.get(name, 0.05)

    def measured():
        if name == "MoCo":  # In the batch: the queue, and with it the task, changes.
            queries, keys = np.moveaxis(np.asarray(model(related)), 1, 0)
            return float(ksm.losses.InfoNCE(0.2)(keys, queries))
        return model.evaluate(related, labels, batch_size=12, verbose=0)

    compiled(model, rate)
    before = measured()
    model.fit(related, labels, batch_size=12, epochs=20, verbose=0)
    after = measured()
    assert after < before - 0.05 * abs(before)


@pytest.mark.first(1)
@every_method
def test_saved_and_loaded(name, tmp_path):
    """Weights, queues and averages, and the encoder alone as a plain Keras model."""
    model = METHODS[name]()
    labels = LABELS if name == "SupCon" else None
    compiled(model).fit(VIEWS, labels, batch_size=12, verbose=0)
    model.save(tmp_path / "model.keras")
    model.encoder.save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    for m in (model, loaded):
        m.fit(VIEWS, labels, batch_size=12, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    encoder = keras.saving.load_model(tmp_path / "encoder.keras")
    assert type(encoder) is keras.Sequential


@pytest.mark.first(3)
@every_method
def test_frozen_encoders_stay(name):
    model = METHODS[name]()
    model.encoder.trainable = False
    before = model.encoder.get_weights()
    labels = LABELS if name == "SupCon" else None
    compiled(model).fit(VIEWS, labels, batch_size=12, verbose=0)
    for a, b in zip(before, model.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["SimSiam", "BYOL", "MoCoV3"])
def test_more_than_two_views(name):
    views = RNG.normal(size=(12, 3, 6)).astype("float32")
    model = METHODS[name](momentum=0.0) if name in MOMENTUM else METHODS[name]()
    pairs = [loss_of(model, views[:, [a, b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(loss_of(model, views), np.mean(pairs), rtol=1e-5)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.first(1)
@pytest.mark.parametrize("name", METHODS)
def test_a_vector_that_a_layer_adds_to_the_loss_counts_once(name):
    """As Keras sums it: zeros change nothing."""

    class Zeros(keras.layers.Layer):
        def call(self, x):
            self.add_loss(0.0 * keras.ops.mean(x, axis=-1))
            return x

    plain, other = METHODS[name](), METHODS[name]()
    model = type(other).from_config({**other.get_config(), "encoder": encoder(Zeros())})
    for one in (plain, model):
        one.compile(keras.optimizers.SGD(0.1))
    labels = LABELS if name == "SupCon" else None
    model.set_weights(plain.get_weights())
    for one in (plain, model):
        one.train_on_batch(VIEWS, labels)
    for a, b in zip(plain.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_one_overflow_does_not_stay_in_the_queue():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = ksm.MoCo(
            keras.Sequential([keras.Input((6,)), keras.layers.Dense(8)]),
            projector=keras.layers.Dense(5),
            queue_size=48,
        )
        model.compile(keras.optimizers.SGD(0.01))
        views = VIEWS.copy()
        views[0] = 7e4  # Too much for half precision.
        assert not np.isfinite(model.train_on_batch(views))
        assert np.isfinite(model.train_on_batch(VIEWS))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["MoCo", "NNCLR"])
def test_a_queue_smaller_than_the_batch_is_refused(name):
    model = compiled(METHODS[name]())
    views = RNG.normal(size=(32, 2, 6)).astype("float32")
    with pytest.raises(ValueError, match=r"`queue_size` must .* queue_size=16 and 32 samples"):
        model.fit(views, batch_size=32, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices(views).batch(32)  # Of unknown size.
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)  # XLA would keep the last 16.
    with pytest.raises(ValueError, match="`queue_size` must"):
        model.fit(dataset, verbose=0)
    model.fit(views, batch_size=12, verbose=0)  # A last batch that goes round the end.


@pytest.mark.parametrize("name", ["MoCo", "NNCLR"])
def test_other_than_two_views_are_refused(name):
    model = compiled(METHODS[name]())
    with pytest.raises(ValueError, match=r"takes 2 views .* 3 views"):
        model.fit(RNG.normal(size=(12, 3, 6)).astype("float32"), batch_size=12, verbose=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ksm.BYOL(encoder(), momentum=1.5), "`momentum` must .* momentum=1.5"),
        (lambda: ksm.MoCo(encoder(), queue_size=0), "`queue_size` must"),
        (lambda: ksm.SimSiam(encoder(), predictor="mlp"), "`predictor` must .* 'mlp'"),
        (
            lambda: ksm.BYOL(encoder(), projector=head(), predictor=layers.Dense(4)),
            "`predictor` must give as many .* 4 and 5",
        ),
        (lambda: ksm.Distillation(encoder(), "teacher"), "`teacher` must be a keras.Model"),
        (
            lambda: ksm.Distillation(encoder(), ksm.SimCLR(encoder())),
            "`teacher` must be an encoder: .*teacher=model.encoder",
        ),
        (
            lambda: ksm.Distillation(
                encoder(), keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3)])
            ),
            "`teacher` must give a feature vector",
        ),
        (
            lambda: ksm.BYOL(encoder(), *ksm.layers.BYOLAugmentation.pair(4)),
            "`projector` must be a head on features, not an augmentation",
        ),
        (
            lambda: ksm.SimCLR(encoder(), ksm.layers.RandomScaling(), ksm.layers.RandomJitter()),
            "`projector` must be a head on features, not an augmentation",
        ),
        (
            lambda: ksm.Distillation(encoder(), encoder(layers.Dense(7)), projector=head(3)),
            "`projector` must give as many dimensions as `teacher`.* 3 and 7",
        ),
        (
            lambda: ksm.BYOL(keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3)])),
            "`encoder` must give a feature vector",
        ),
        (lambda: ksm.SimCLR(encoder(), micro_batch_size=0), "`micro_batch_size` must"),
        (lambda: ksm.SimCSE(encoder(), views=3), "`views` must be 2: .* views=3"),
        (lambda: ksm.MoCo(encoder(), predictor=layers.Dense(5)), "MoCo has no predictor"),
        (lambda: ksm.MoCo(encoder(), views=3), "MoCo takes 2 views .* 3 views"),
        (lambda: ksm.NNCLR(encoder(), views=3), "NNCLR takes 2 views .* 3 views"),
    ],
)
def test_refused_by_the_constructor(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_distillation_takes_keras_losses_by_name():
    model = ksm.Distillation(encoder(), encoder())
    model.compile(keras.optimizers.SGD(0.0), loss="mse")
    history = model.fit(VIEWS[:, 0], verbose=0)
    difference = model.encoder.predict(VIEWS[:, 0]) - model.teacher.predict(VIEWS[:, 0])
    np.testing.assert_allclose(history.history["loss"], np.mean(difference**2), rtol=1e-4)


def test_a_teacher_cannot_teach_itself():
    model = encoder()
    with pytest.raises(ValueError, match="`teacher` must be another model"):
        ksm.Distillation(model, model)


@pytest.mark.parametrize("name", ["MoCo", "MoCoV3", "NNCLR"])
def test_a_loss_that_is_no_object_is_refused(name):
    model = METHODS[name]()
    model.compile(loss=keras.losses.mean_squared_error)
    with pytest.raises(ValueError, match=r"must be compiled with a loss .*mean_squared_error"):
        model.fit(VIEWS, verbose=0)
