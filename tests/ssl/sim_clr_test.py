import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm
from keras_sslmeta import SimCLR

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(32, 8, 8, 1)).astype("float32")
VIEWS = RNG.uniform(size=(32, 2, 8, 8, 1)).astype("float32")
TABLE = IMAGES[:, 0, :, 0]


def table_encoder():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])


def small_encoder(*layers):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            *(layers or [keras.layers.GlobalAveragePooling2D()]),
        ]
    )


class SubclassedEncoder(keras.Model):
    """Tells nothing of its shapes before it has been called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return self.dense(self.flatten(x))


def fit(model, x=VIEWS, **kwargs):
    model.compile(keras.optimizers.SGD(0.1))
    return model.fit(x, batch_size=16, verbose=0, **kwargs).history["loss"]


def test_the_loss_is_nt_xent_of_the_projected_views():
    model = SimCLR(small_encoder())
    model.compile()
    flat = VIEWS.reshape(64, 8, 8, 1)
    projections = np.reshape(model.projector(model.encoder(flat)), (32, 2, 128))
    expected = ksm.losses.NTXent(0.1)(None, projections)
    np.testing.assert_allclose(model.evaluate(VIEWS, batch_size=32, verbose=0), expected, rtol=1e-5)
    np.testing.assert_allclose(model(VIEWS), projections, rtol=1e-4, atol=1e-6)


def test_the_default_head_is_the_papers():
    model = SimCLR(small_encoder())
    model(VIEWS)
    widths = [layer.units for layer in model.projector.blocks if hasattr(layer, "units")]
    assert widths == [4, 128] and len(model.projector.blocks) == 3


def test_predict_gives_the_encoders_features_of_plain_samples():
    model = SimCLR(small_encoder(keras.layers.Flatten(), keras.layers.Dropout(0.5)))
    fit(model)
    features = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(features, model.encoder(IMAGES), rtol=1e-5, atol=1e-6)


def test_training_moves_encoder_and_head_and_lowers_the_loss():
    keras.utils.set_random_seed(0)
    related = np.repeat(IMAGES[:, None], 2, axis=1) + 0.01 * VIEWS
    model = SimCLR(small_encoder(keras.layers.Flatten()))
    model(related)
    before = [weight.copy() for weight in model.get_weights()]
    losses = fit(model, related, epochs=5)
    assert losses[-1] < 0.8 * losses[0]
    for x, y in zip(before, model.get_weights(), strict=True):
        assert not np.array_equal(x, y)


@pytest.mark.parametrize(
    "augmentation",
    [
        keras.layers.RandomTranslation(0.2, 0.2, seed=1),
        [keras.layers.RandomTranslation(0.2, 0.2, seed=1), keras.layers.RandomFlip(seed=2)],
        lambda x: x + tf.random.normal(tf.shape(x)),
    ],
    ids=["one for all views", "one a view", "any callable"],
)
def test_augmentation_makes_views_in_training_and_in_evaluation(augmentation):
    model = SimCLR(small_encoder(keras.layers.Flatten()), augmentation=augmentation)
    views = model.views_of(tf.constant(IMAGES)).numpy()
    assert views.shape == (32, 2, 8, 8, 1)
    assert not np.array_equal(views[:, 0], views[:, 1])
    fit(model, IMAGES)
    seen = []
    inner = model.encoder.call

    def record(x, **kwargs):
        seen.append(x)
        return inner(x, **kwargs)

    model.encoder.call = record
    model(tf.constant(IMAGES), training=False)
    merged = seen[0].numpy().reshape(32, 2, 8, 8, 1)
    assert not np.array_equal(merged[:, 0], merged[:, 1])


def test_more_than_two_views():
    model = SimCLR(small_encoder(), augmentation=keras.layers.RandomTranslation(0.2, 0.2), views=4)
    model.compile()
    assert model(IMAGES).shape == (32, 4, 128)
    assert np.isfinite(model.fit(IMAGES, verbose=0).history["loss"][0])


def test_ready_made_views_are_welcome_beside_an_augmentation():
    with_augmentation = SimCLR(small_encoder(), augmentation=keras.layers.RandomFlip())
    np.testing.assert_array_equal(with_augmentation.views_of(tf.constant(VIEWS)), VIEWS)


def mobile_net():
    return keras.applications.MobileNetV2(
        (32, 32, 3), weights=None, include_top=False, pooling="avg", alpha=0.35
    )


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (SubclassedEncoder, (8, 8, 1)),
        (lambda: keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)]), (8, 8, 1)),
        (mobile_net, (32, 32, 3)),
    ],
    ids=["subclassed", "unbuilt", "keras.applications"],
)
def test_encoders_of_every_kind(build, shape):
    encoder = build()
    x = RNG.uniform(size=(8, 2, *shape)).astype("float32")
    model = SimCLR(encoder)
    fit(model, x)
    assert model.predict(x[:, 0], verbose=0).shape == (8, encoder(x[:, 0]).shape[-1])


def test_several_inputs():
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    features = keras.layers.Dense(6)(keras.layers.Concatenate()([left, right]))
    encoder = keras.Model({"left": left, "right": right}, features)
    x = {
        "left": RNG.normal(size=(16, 2, 4)).astype("float32"),
        "right": RNG.normal(size=(16, 2, 3)).astype("float32"),
    }
    model = SimCLR(encoder)
    assert np.isfinite(fit(model, x, sample_weight=np.ones(16))[0])
    plain = {key: value[:, 0] for key, value in x.items()}
    assert model.predict(plain, verbose=0).shape == (16, 6)


def test_frozen_layers_stay_and_losses_of_layers_count():
    encoder = small_encoder(
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, kernel_regularizer="l2")
    )
    encoder.layers[0].trainable = False
    model = SimCLR(encoder)
    frozen = encoder.layers[0].get_weights()[0].copy()
    fit(model)
    np.testing.assert_array_equal(encoder.layers[0].get_weights()[0], frozen)
    model.compile()
    total = model.evaluate(VIEWS, batch_size=32, verbose=0)
    contrastive = float(ksm.losses.NTXent()(None, model(VIEWS)))
    penalty = 0.01 * float(np.sum(encoder.layers[-1].kernel.numpy() ** 2))
    np.testing.assert_allclose(total, contrastive + penalty, rtol=1e-5)


def test_weights_without_labels_are_not_dropped():
    weights = RNG.uniform(size=32).astype("float32")
    model = SimCLR(small_encoder())
    model.compile()
    got = model.evaluate(VIEWS, batch_size=32, sample_weight=weights, verbose=0)
    values = ksm.losses.NTXent(reduction=None)(None, model(VIEWS))
    np.testing.assert_allclose(got, np.mean(values * weights), rtol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_draws_what_an_uninterrupted_one_does(tmp_path):
    """Dropout and augmentation go on from where they were, bit for bit."""

    def build():
        keras.utils.set_random_seed(3)
        encoder = small_encoder(keras.layers.Flatten(), keras.layers.Dropout(0.3))
        model = SimCLR(encoder, augmentation=ksm.layers.SimCLRAugmentation(8, flip=False))
        model.compile(keras.optimizers.Adam(1e-2))
        return model

    def run(model, start, stop):
        return model.fit(
            IMAGES, batch_size=16, shuffle=False, verbose=0, initial_epoch=start, epochs=stop
        ).history["loss"]

    straight = build()
    losses = run(straight, 0, 4)
    model = build()
    first = run(model, 0, 2)
    model.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(99)
    model = keras.models.load_model(tmp_path / "model.keras")
    assert first + run(model, 2, 4) == losses
    for x, y in zip(straight.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_encoder_saved_alone_is_a_plain_keras_model(tmp_path):
    model = SimCLR(small_encoder())
    fit(model)
    model.encoder.save(tmp_path / "encoder.keras")
    encoder = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_array_equal(
        encoder.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0)
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SimCLR(3), r"`encoder` must be a keras\.Model.*Received: 3 \(of type int\)"),
        (
            lambda: SimCLR(small_encoder(keras.layers.ReLU())),
            r"Add keras\.layers\.GlobalAveragePooling2D\(\).*\(None, 6, 6, 4\)",
        ),
        (
            lambda: SimCLR(keras.Sequential([keras.Input((9, 4)), keras.layers.Conv1D(3, 2)])),
            r"GlobalAveragePooling1D.*\(None, 8, 3\)",
        ),
        (lambda: SimCLR(two_outputs()), r"must have one output.*2 outputs"),
        (lambda: SimCLR(small_encoder(), views=1), r"`views` must be.*views=1"),
        (
            lambda: SimCLR(small_encoder(), [keras.layers.RandomFlip()]),
            r"a list of one a view.*1 of them and views=2",
        ),
        (
            lambda: SimCLR(small_encoder(), "crop"),
            r"`augmentation` must be a Keras layer or another callable",
        ),
        (lambda: SimCLR(small_encoder(), projector=4), r"`projector` must be a Keras layer"),
        (
            lambda: SimCLR(small_encoder(), keras.layers.RandomFlip),
            r"not a class of them: write `RandomFlip\(…\)`",
        ),
        (lambda: SimCLR(small_encoder(), temperature=0.5), r"`temperature` belongs to the loss"),
        (lambda: SimCLR(small_encoder()).compile(loss="mse"), r"`loss` of SimCLR.*'mse'"),
        (
            lambda: SimCLR(small_encoder()).compile(metrics=["accuracy"]),
            r"`metrics` see embeddings.*KNNProbe.*\['accuracy'\]",
        ),
    ],
)
def test_refused_by_the_constructor(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("images", "value_range", "message"),
    [
        (200 * IMAGES, (0, 1), "what lies outside is clipped"),
        (IMAGES, (0, 255), "all of them look black"),
        (IMAGES, (0, 1), None),
        ((255 * IMAGES).astype("uint8"), (0, 255), None),
    ],
)
def test_images_outside_the_value_range_are_warned_of(images, value_range, message):
    model = SimCLR(
        small_encoder(),
        ksm.layers.SimCLRAugmentation(8, value_range=value_range, blur_probability=0.0),
    )
    model.compile(keras.optimizers.SGD(0.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(images, batch_size=16, verbose=0)
    found = [str(w.message) for w in caught if "value_range" in str(w.message)]
    assert (message is None and not found) or (len(found) == 1 and message in found[0])


def test_a_projector_sees_single_features():
    head = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = SimCLR(small_encoder(), projector=head)
    fit(model)
    assert model(VIEWS).shape == (32, 2, 3)


def test_bytes_reach_an_augmentation_as_floats_of_the_same_values():
    dtypes = []

    def augmentation(x):
        dtypes.append(x.dtype)
        return x * 2

    pixels = np.full((4, 8, 8, 1), 200, "uint8")
    views = SimCLR(small_encoder(), augmentation=augmentation).views_of(tf.constant(pixels))
    assert set(dtypes) == {tf.float32}
    np.testing.assert_array_equal(views, np.full((4, 2, 8, 8, 1), 400))


@pytest.mark.slow
def test_token_ids_stay_integers():
    tokens = keras.Input((5,), dtype="int32")
    vectors = keras.layers.Embedding(100_000_000, 2)
    encoder = keras.Model(tokens, keras.layers.GlobalAveragePooling1D()(vectors(tokens)))
    views = SimCLR(encoder).views_of(tf.constant(np.full((4, 2, 5), 99_999_999)))
    assert views.dtype.is_integer and views.numpy().max() == 99_999_999


def test_views_after_samples_need_a_new_compile():
    model = SimCLR(small_encoder(), augmentation=keras.layers.RandomFlip())
    fit(model, IMAGES)
    with pytest.raises(ValueError, match="call `compile` again"):
        model.fit(VIEWS, verbose=0)
    model.compile()
    model.fit(VIEWS, verbose=0)


def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(3)(inputs)])


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (lambda: SimCLR(small_encoder()), IMAGES, "got plain samples: pass an augmentation"),
        (lambda: SimCLR(small_encoder()), VIEWS[:, :1], "needs at least two"),
        (lambda: SimCLR(SubclassedEncoder()), VIEWS[:, :1], "seen no data yet"),
        (
            lambda: SimCLR(keras.Sequential([keras.layers.Conv2D(3, 3)])),
            VIEWS,
            "GlobalAveragePooling2D",
        ),
        (
            lambda: SimCLR(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])),
            IMAGES,
            "seen no data yet",
        ),
        (
            lambda: SimCLR(small_encoder(), augmentation=keras.layers.RandomFlip()),
            IMAGES[..., 0],
            r"(?s)A missing axis of channels.*8, 8\)",
        ),
        (
            lambda: SimCLR(
                keras.Sequential([keras.Input((9, 3)), keras.layers.GlobalAveragePooling1D()]),
                augmentation=ksm.layers.SimCLRAugmentation(8, blur_probability=0.0),
            ),
            np.zeros((32, 9, 3), "float32"),
            r"takes a batch of series .* for one image.*\(8, 8, 3\) from samples of",
        ),
        (
            lambda: SimCLR(small_encoder(), augmentation=lambda x: (x, x)),
            IMAGES,
            "must make one view of each sample",
        ),
        (
            lambda: SimCLR(small_encoder(), augmentation=keras.layers.RandomFlip()),
            tf.data.Dataset.from_tensor_slices((IMAGES, IMAGES)).batch(8),
            r"stack the views on axis 1",
        ),
        (
            lambda: SimCLR(table_encoder(), augmentation=keras.layers.GaussianNoise(0.1)),
            tf.data.Dataset.from_tensor_slices((TABLE, TABLE)).batch(8),
            r"stack the views on axis 1",
        ),
    ],
)
def test_refused_before_the_first_step(model, x, message):
    model = model()
    model.compile()
    with pytest.raises(ValueError, match=message):
        model.fit(x, verbose=0)
    assert model.optimizer.iterations == 0


def test_the_encoder_trains_in_fit_and_only_there():
    """BatchNorm's running statistics move in `fit`, and not in `evaluate` or `predict`."""
    norm = keras.layers.BatchNormalization()
    model = SimCLR(small_encoder(keras.layers.Flatten(), norm))
    model.compile()
    before = norm.moving_mean.numpy()
    model.evaluate(VIEWS, verbose=0)
    model.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(norm.moving_mean, before)
    fit(model)
    assert np.abs(norm.moving_mean.numpy() - before).max() > 1e-4


@pytest.mark.parametrize(
    "augmentation",
    [keras.layers.RandomCrop(8, 8, seed=3), lambda x: tf.image.random_brightness(x, 0.5)],
    ids=["RandomCrop", "random_brightness"],
)
def test_an_augmentation_that_draws_once_a_batch_still_makes_different_views(augmentation):
    larger = RNG.uniform(size=(16, 12, 12, 1)).astype("float32")
    model = SimCLR(small_encoder(), augmentation=augmentation)
    views = model.views_of(tf.constant(larger)).numpy()
    assert not np.array_equal(views[:, 0], views[:, 1])


def test_validation_weights_without_labels_are_not_dropped():
    model = SimCLR(small_encoder())
    model.compile()
    history = model.fit(
        VIEWS, validation_data=(VIEWS, None, np.zeros(32)), batch_size=16, verbose=0
    ).history
    assert history["val_loss"] == [0.0] and history["loss"][0] > 0


def test_labels_of_unknown_rank_are_ignored_like_any():
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([(VIEWS[:16], np.arange(16))]),
        output_signature=(tf.TensorSpec([None, 2, 8, 8, 1]), tf.TensorSpec(None)),
    )
    assert np.isfinite(fit_dataset(SimCLR(small_encoder()), dataset))


def fit_dataset(model, dataset):
    model.compile()
    return model.fit(dataset, verbose=0).history["loss"][0]


@pytest.mark.slow
def test_an_unbuilt_encoder_is_built_for_what_the_augmentation_gives():
    encoder = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    model = SimCLR(encoder, augmentation=ksm.layers.SimCLRAugmentation(6, flip=False))
    fit(model, IMAGES)
    assert encoder.layers[1].kernel.shape == (36, 4)


def test_a_subclassed_encoder_of_several_inputs():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(keras.ops.concatenate([x["a"], x["b"]], axis=-1))

    x = {"a": np.ones((8, 2, 4), "float32"), "b": np.ones((8, 2, 5), "float32")}
    assert np.isfinite(fit(SimCLR(Two()), x)[0])


def test_predict_refuses_views():
    model = SimCLR(small_encoder())
    model.compile()
    with pytest.raises(ValueError, match=r"`predict` gives .* of plain samples.*32, 2, 8, 8, 1"):
        model.predict(VIEWS, batch_size=32, verbose=0)


def test_predict_takes_bytes_where_fit_does():
    pixels = (255 * IMAGES).astype("uint8")

    class Convolutional(keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = keras.layers.Conv2D(3, 3)
            self.pool = keras.layers.GlobalAveragePooling2D()

        def call(self, x):
            return self.pool(self.convolution(x))

    model = SimCLR(Convolutional(), augmentation=keras.layers.RandomFlip())
    fit(model, pixels)
    expected = model.predict(pixels.astype("float32"), verbose=0)
    np.testing.assert_allclose(model.predict(pixels, verbose=0), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("augmented", [False, True])
def test_export_takes_what_fit_took(tmp_path, augmented):
    samples = RNG.uniform(0, 255, size=(8, 8, 8, 1)).astype("float32")
    augmentation = keras.layers.RandomFlip(seed=1) if augmented else None
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    model = ksm.SimCLR(encoder, augmentation=augmentation)
    model.compile()
    x = samples if augmented else np.stack([samples, samples], axis=1)
    model.fit(x, batch_size=8, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    served = exported.serve(x)
    assert served.shape == (8, 2, 128)
    if not augmented:
        np.testing.assert_allclose(served, model(x), rtol=1e-5, atol=1e-6)
