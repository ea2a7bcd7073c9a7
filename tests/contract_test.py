"""What every public loss and model keeps, one row a class.

A new loss adds a row to `LOSSES`, a new model one to `MODELS`; nothing else here needs to change.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sslmeta as ksm

RNG = np.random.default_rng(0)
# Batches of 16 leave an uneven last one of 5.
SAMPLES, BATCH = 37, 16
IMAGES = RNG.uniform(0, 255, size=(SAMPLES, 6, 6, 1)).astype("float32")
VIEWS = RNG.uniform(0, 255, size=(SAMPLES, 2, 6, 6, 1)).astype("float32")
EMBEDDINGS = RNG.normal(size=(SAMPLES, 2, 8)).astype("float32")
WEIGHTS = RNG.uniform(0.5, 1.5, size=SAMPLES).astype("float32")
# Tasks of 3 classes; batches of 4 leave an uneven last one of 3.
TASKS = 7
EPISODES = {
    "support_x": RNG.normal(size=(TASKS, 6, 5)).astype("float32"),
    "support_y": RNG.permuted(np.tile(np.arange(6) % 3, (TASKS, 1)), axis=1),
    "query_x": RNG.normal(size=(TASKS, 9, 5)).astype("float32"),
}
QUERY_Y = RNG.integers(0, 3, size=(TASKS, 9))
# XLA must know the number of ways.
ONE_HOT = {**EPISODES, "support_y": np.eye(3, dtype="float32")[EPISODES["support_y"]]}


@dataclasses.dataclass
class LossRow:
    """A loss, how to build it, what to fit it on, and what it must refuse."""

    build: Callable[..., keras.losses.Loss]
    x: np.ndarray
    # Argument of the constructor, what it must not be, and what the error must say.
    refused: list[tuple[str, object, str]]
    # With what the forward pass may differ under mixed precision.
    half_precision: float = 2e-2
    y: np.ndarray | None = None
    batch: int = BATCH
    # Losses on statistics of the batch refuse weights.
    takes_weights: bool = True


@dataclasses.dataclass
class ModelRow:
    """A model, how to build it afresh, the data it fits, and what it predicts from."""

    build: Callable[[], keras.Model]
    x: Any
    plain: Any
    half_precision: float = 2e-2
    y: np.ndarray | None = None
    batch: int = BATCH
    compile: dict[str, Any] = dataclasses.field(default_factory=dict)
    takes_weights: bool = True
    # Parts that do not divide the batch are nothing for XLA.
    xla: bool = True
    # How far weights of a zero gradient, which move by its rounding, may be apart.
    rounding: float = 1e-5


def encoder():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
        ]
    )


def network(*layers):
    """Of single samples, for meta-learners."""
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, use_bias=False, kernel_regularizer="l2"),
            *layers,
            keras.layers.Activation("tanh"),
            keras.layers.Dense(3),
        ]
    )


def meta_row(build, x=EPISODES, **compile):
    """A row of a meta-learner, on episodes of three classes."""
    loss = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    return ModelRow(build, x, x, y=QUERY_Y, batch=4, compile=compile or loss)


def with_context():
    inputs = keras.Input((5,))
    x = keras.layers.Concatenate()([inputs, ksm.layers.TaskContext(2)(inputs)])
    x = keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def embedding():
    return keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4, "tanh", kernel_regularizer="l2")]
    )


def head():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])


def ps_co():
    """Whose queue holds keys already: with an empty one the loss is 0."""
    model = ksm.PsCo(encoder(), projector=head(), predictor=head(), queue_size=32, shots=2)
    model.queue(keras.random.normal((20, 8), seed=1), training=True)
    return model


def loss_row(name, refused, x=EMBEDDINGS, row=None, **arguments):
    """A row of `ksm.losses.NAME(**arguments)`; `refused` maps arguments to what they must not be."""
    return LossRow(
        lambda **kwargs: getattr(ksm.losses, name)(**{**arguments, **kwargs}),
        x,
        refused=[(argument, value, f"`{argument}` must") for argument, value in refused.items()],
        **(row or {}),
    )


LABELS = RNG.integers(0, 4, size=SAMPLES)
LABELLED = {"y": LABELS}
STATISTIC = {"takes_weights": False}
MARGIN = {"margin": -1.0, "distance_metric": "L3"}
LOSSES = {
    "NTXent": loss_row("NTXent", {"temperature": 0.0, "negatives": 3}, temperature=0.3),
    "InfoNCE": loss_row("InfoNCE", {"temperature": -1.0}, temperature=0.3),
    "SupervisedContrastive": loss_row(
        "SupervisedContrastive", {"temperature": 0}, row=LABELLED, temperature=0.3
    ),
    "DecoupledContrastive": loss_row(
        "DecoupledContrastive", {"temperature": 0, "sigma": 0}, temperature=0.3, weighted=True
    ),
    "DebiasedContrastive": loss_row("DebiasedContrastive", {"temperature": 0, "tau_plus": 1.0}),
    "HardNegative": loss_row("HardNegative", {"beta": -1.0, "tau_plus": 1.0}),
    "CLIP": loss_row("CLIP", {"temperature": 0, "negatives": "hard"}, temperature=0.3),
    "SigLIP": loss_row("SigLIP", {"temperature": 0, "bias": None}, bias=-1.0),
    "NPairs": loss_row("NPairs", {"l2_weight": -1.0}, row=LABELLED, l2_weight=0.01),
    "PairwiseContrastive": loss_row(
        "PairwiseContrastive", {"margin": -1.0}, row={"y": LABELS % 2}, margin=4.0
    ),
    "TripletSemiHard": loss_row("TripletSemiHard", MARGIN, row=LABELLED),
    "TripletHard": loss_row("TripletHard", MARGIN, row=LABELLED),
    "TripletAll": loss_row("TripletAll", MARGIN, row=LABELLED),
    "MultiSimilarity": loss_row("MultiSimilarity", {"alpha": 0, "beta": -1.0}, row=LABELLED),
    "NegativeCosine": LossRow(
        lambda **kwargs: ksm.losses.NegativeCosine(**kwargs),
        EMBEDDINGS,
        refused=[("reduction", "average", "`reduction`")],
        y=EMBEDDINGS[:, ::-1],
    ),
    "SelfDistillation": loss_row(
        "SelfDistillation",
        {"student_temperature": 0, "teacher_temperature": -1.0},
        row={"y": EMBEDDINGS[:, ::-1]},
        student_temperature=0.5,
        teacher_temperature=0.5,
    ),
    "SwappedPrediction": loss_row(
        "SwappedPrediction",
        {"temperature": 0, "epsilon": 0, "sinkhorn_steps": 0},
        temperature=1.0,
        epsilon=1.0,
    ),
    "Matryoshka": loss_row(
        "Matryoshka",
        {"dims": [], "weights": [1.0]},
        loss=ksm.losses.NTXent(0.3),
        dims=[2, 8],
    ),
    "BarlowTwins": loss_row("BarlowTwins", {"redundancy_weight": -1.0}, row=STATISTIC),
    "VICReg": loss_row("VICReg", {"variance_weight": -1.0}, row=STATISTIC),
    "SIGReg": loss_row("SIGReg", {"directions": 0, "knots": 2}, row=STATISTIC, directions=64),
    "LeJEPA": loss_row("LeJEPA", {"weight": 2, "global_views": 0}, row=STATISTIC, directions=64),
    "KoLeo": loss_row("KoLeo", {"epsilon": 0}, row=STATISTIC),
    "AlignmentUniformity": loss_row("AlignmentUniformity", {"alpha": 0, "t": 0}, row=STATISTIC),
}
MODELS = {
    "SimCLR on views": ModelRow(lambda: ksm.SimCLR(encoder()), VIEWS, IMAGES),
    "SimCLR with augmentation": ModelRow(
        lambda: ksm.SimCLR(
            encoder(), augmentation=ksm.layers.SimCLRAugmentation(6, flip=False, seed=5)
        ),
        IMAGES,
        IMAGES,
    ),
    "MAML": meta_row(lambda: ksm.MAML(network(), inner_steps=2, inner_learning_rate=0.1)),
    "MAML with statistics of each step and momentum": meta_row(
        lambda: ksm.MAML(
            network(keras.layers.BatchNormalization()),
            inner_optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
            batch_normalization="per_step",
        )
    ),
    "ANIL": meta_row(lambda: ksm.ANIL(network(), inner_steps=2, inner_learning_rate=0.1)),
    "BOIL": meta_row(lambda: ksm.BOIL(network(), inner_steps=2, inner_learning_rate=0.1)),
    "CAVIA": meta_row(lambda: ksm.CAVIA(with_context())),
    "IMAML": meta_row(lambda: ksm.IMAML(network(), inner_steps=4)),
    "MAMLPlusPlus": meta_row(
        lambda: ksm.MAMLPlusPlus(
            network(keras.layers.BatchNormalization()), 2, 0.1, 3, first_order_iterations=1
        )
    ),
    "MetaSGD": meta_row(lambda: ksm.MetaSGD(network())),
    "Reptile": meta_row(lambda: ksm.Reptile(network(), 2, 0.01, 4, test_inner_steps=2, seed=3)),
    "PrototypicalNetwork": meta_row(
        lambda: ksm.PrototypicalNetwork(embedding()), ONE_HOT, metrics=["accuracy"]
    ),
    "MatchingNetwork": meta_row(
        lambda: ksm.MatchingNetwork(embedding()), ONE_HOT, metrics=["accuracy"]
    ),
    "RelationNetwork": meta_row(
        lambda: ksm.RelationNetwork(embedding()), ONE_HOT, metrics=["accuracy"]
    ),
    "RidgeHead": meta_row(lambda: ksm.RidgeHead(embedding()), ONE_HOT, metrics=["accuracy"]),
    "PsCo": ModelRow(ps_co, VIEWS, IMAGES),
    "SupCon": ModelRow(
        lambda: ksm.SupCon(encoder(), projector=head()), VIEWS, IMAGES, y=np.arange(SAMPLES) % 4
    ),
    "DCL": ModelRow(lambda: ksm.DCL(encoder(), projector=head()), VIEWS, IMAGES),
    "BarlowTwins model": ModelRow(
        lambda: ksm.BarlowTwins(encoder(), projector=head()),
        VIEWS,
        IMAGES,
        half_precision=5e-2,
        takes_weights=False,
        rounding=1e-4,  # Standardised, projections have no use for biases before them.
    ),
    "VICReg model": ModelRow(
        lambda: ksm.VICReg(encoder(), projector=head()), VIEWS, IMAGES, takes_weights=False
    ),
    "LeJEPA model": ModelRow(
        lambda: ksm.LeJEPA(encoder(), projector=head()), VIEWS, IMAGES, takes_weights=False
    ),
    "SimSiam": ModelRow(
        lambda: ksm.SimSiam(encoder(), projector=head(), predictor=head()), VIEWS, IMAGES
    ),
    "BYOL": ModelRow(
        lambda: ksm.BYOL(encoder(), projector=head(), predictor=head()), VIEWS, IMAGES
    ),
    "BYOL in parts": ModelRow(
        lambda: ksm.BYOL(encoder(), projector=head(), predictor=head(), micro_batch_size=3),
        VIEWS,
        IMAGES,
        xla=False,
    ),
    "MoCo": ModelRow(lambda: ksm.MoCo(encoder(), projector=head(), queue_size=32), VIEWS, IMAGES),
    "MoCoV3": ModelRow(
        lambda: ksm.MoCoV3(encoder(), projector=head(), predictor=head()), VIEWS, IMAGES
    ),
    "NNCLR": ModelRow(
        lambda: ksm.NNCLR(encoder(), projector=head(), predictor=head(), queue_size=32),
        VIEWS,
        IMAGES,
    ),
    "Distillation": ModelRow(lambda: ksm.Distillation(encoder(), encoder()), VIEWS, IMAGES),
    "SimCSE": ModelRow(lambda: ksm.SimCSE(encoder()), VIEWS, IMAGES),
}

every_loss = pytest.mark.parametrize("row", LOSSES.values(), ids=LOSSES)
# A row a strategy: plain models around losses, and our own models.
FITTED = {**LOSSES, **MODELS}
# These are fitted in every run, the others with the slow tests.
REPRESENTATIVES = ("NTXent", "VICReg", "BYOL", "MAML")
# Further kinds: losses of two sides and of labels, a queue, and what compares with a support set.
FURTHER_KINDS = ("CLIP", "MultiSimilarity", "TripletHard", "NNCLR", "RidgeHead")


def rows(names):
    return pytest.mark.parametrize(
        "name",
        [
            name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.slow)
            for name in names
        ],
    )


everything = rows(FITTED)
# Losses have no state: what they do to a model's files and to evaluation, one of them tells of all.
with_state = rows(["NTXent", *MODELS])


def samples(row):
    return len(keras.tree.flatten(row.x)[0])


def build(name, **loss_arguments):
    """A model that fits the row's data, from the same seed every time, not compiled."""
    keras.utils.set_random_seed(7)
    row = FITTED[name]
    if isinstance(row, ModelRow):
        return row.build(), row.compile
    # Without a bias: where only differences count, its gradient is rounding, which Adam would enlarge.
    dense = keras.layers.Dense(8, use_bias=False)
    model = keras.Sequential([keras.Input(row.x.shape[1:]), dense])
    return model, {"loss": row.build(**loss_arguments)}


def compiled(name, **settings):
    """With an optimizer that has state, and whose steps are as large as the gradients."""
    model, loss = build(name)
    optimizer = keras.optimizers.SGD(1e-2, momentum=0.9)
    if keras.config.dtype_policy().name == "mixed_float16":
        # Keras's first scale would overflow, and steps be skipped until a smaller one is found.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
    model.compile(optimizer, **loss, **settings)
    return model


def fit(model, name, epochs=2, y=None, **kwargs):
    row = FITTED[name]
    y = row.y if y is None else y
    history = model.fit(
        row.x, y, batch_size=row.batch, epochs=epochs, shuffle=False, verbose=0, **kwargs
    )
    return np.array(history.history["loss"])


def assert_same_weights(model, weights, **tolerance):
    for x, y in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 0, "atol": 0}))


@dataclasses.dataclass
class Moment:
    """A model on its way."""

    loss: float
    weights: list[np.ndarray]


class FirstStep(keras.callbacks.Callback):
    """The weights before training, and the loss of the first batch."""

    def __init__(self, model):
        super().__init__()
        self.weights = [w.copy() for w in model.get_weights()]

    def on_train_batch_end(self, batch, logs=None):
        if not hasattr(self, "loss"):
            self.loss = logs["loss"]

    def path(self, weights):
        """How far the weights have gone."""
        return sum(
            np.linalg.norm(after - before)
            for after, before in zip(weights, self.weights, strict=True)
        )


class Straight(keras.callbacks.Callback):
    """A run of four epochs that nothing interrupts, and what it was on its way.

    Attributes:
        losses: of the epochs.
        start: with the loss of the first batch.
        two_steps: that is, of samples, before the uneven last batch; of tasks, an epoch.
        half_way: after two epochs; with it, for models, `predicted`.
        end: after four.
        file: the model half way.
        backup: the folder of `BackupAndRestore` half way.
    """

    def __init__(self, name, folder):
        super().__init__()
        self.name, self.file, self.backup = name, folder / "model.keras", folder / "backup"
        running = folder / "running"
        model = compiled(name)
        self.start = first = FirstStep(model)
        callbacks = [keras.callbacks.BackupAndRestore(running), first, self]
        self.losses = fit(model, name, epochs=4, callbacks=callbacks)
        self.end = Moment(self.losses[-1], model.get_weights())
        for callback in (first, self):
            callback.set_model(None)  # Not to be kept.

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1 and not hasattr(self, "two_steps"):
            self.two_steps = Moment(logs["loss"], self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        if epoch != 1:
            return
        self.half_way = Moment(logs["loss"], self.model.get_weights())
        self.model.save(self.file)
        shutil.copytree(self.backup.with_name("running"), self.backup)
        if self.name in MODELS:
            self.predicted = self.model.predict(MODELS[self.name].plain, verbose=0)


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """Of each row, trained where it is first asked for; `conftest.py` has a row's tests in one process."""
    return functools.cache(lambda name: Straight(name, tmp_path_factory.mktemp("straight")))


def test_every_public_loss_and_model_has_a_row():
    """A class that nobody entered here would escape every test below."""
    parents = {
        *("BatchLoss", "BatchStatisticLoss", "ContrastiveLoss", "LabelledPairsLoss", "PairedLoss"),
        *("TwoViewModel", "PredictionModel", "MomentumModel", "EpisodicModel"),
        # Of no `fit` of their own: what `adapt` gives, and what training is unrolled by.
        *("FewShotClassifier", "DifferentiableFit", "FittedModel"),
    }
    rows = {name.split()[0] for name in FITTED}
    public = {*ksm.losses.__all__, *ksm.ssl.__all__, *ksm.meta.__all__}
    assert public - parents == rows


@every_loss
def test_losses_survive_their_config(row):
    loss = row.build(name="mine", reduction="sum", dtype="float32")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again(row.y, row.x), loss(row.y, row.x))


@every_loss
def test_losses_refuse_bad_arguments(row):
    assert row.refused
    for argument, value, message in row.refused:
        with pytest.raises(ValueError, match=message) as error:
            row.build(**{argument: value})
        assert "Received" in str(error.value) and str(value) in str(error.value)


@every_loss
def test_losses_give_one_value_a_sample_that_keras_reduces(row):
    values = row.build(reduction=None)(row.y, row.x)
    assert values.shape == (SAMPLES,)
    np.testing.assert_allclose(row.build()(row.y, row.x), np.mean(values), rtol=1e-5)
    if not row.takes_weights:
        with pytest.raises(ValueError, match="pass no `sample_weight`"):
            row.build()(row.y, row.x, sample_weight=WEIGHTS)
        return
    np.testing.assert_allclose(
        row.build()(row.y, row.x, sample_weight=WEIGHTS), np.mean(values * WEIGHTS), rtol=1e-5
    )


@every_loss
def test_losses_in_half_precision(row):
    expected = row.build()(row.y, row.x)
    for dtype in ("float16", "bfloat16"):
        got = row.build()(row.y, tf.cast(row.x, dtype))
        np.testing.assert_allclose(got, expected, rtol=row.half_precision)


@with_state
def test_save_and_load_without_custom_objects(name, straight):
    again = keras.models.load_model(straight(name).file)
    assert_same_weights(again, straight(name).half_way.weights)
    np.testing.assert_array_equal(fit(again, name), straight(name).losses[2:])
    assert_same_weights(again, straight(name).end.weights)


@rows(MODELS)
def test_predict_and_summary_of_a_loaded_model(name, straight):
    row = MODELS[name]
    again = keras.models.load_model(straight(name).file)
    expected = straight(name).predicted
    assert len(expected) == samples(row)
    np.testing.assert_array_equal(again.predict(row.plain, verbose=0), expected)
    lines: list[str] = []
    again.summary(print_fn=lines.append)
    assert any("Trainable params" in line for line in lines)


@rows(
    ["NTXent", *(name for name, row in FITTED.items() if name in MODELS or not row.takes_weights)]
)
def test_sample_weights(name):
    row = FITTED[name]
    y = np.zeros(samples(row)) if row.y is None else row.y
    model = compiled(name)
    if not row.takes_weights:
        with pytest.raises(ValueError, match="pass no `sample_weight`"):
            model.fit(row.x, y, sample_weight=WEIGHTS, verbose=0)
        return
    before = [variable.numpy() for variable in model.variables]

    def loss(weights):
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)  # Models that draw at random would draw others.
        value = model.evaluate(
            row.x, y, sample_weight=weights, batch_size=row.batch, verbose=0, return_dict=True
        )["loss"]
        return value - sum(map(float, model.losses))  # Regularisers are not weighed.

    weighted, plain, doubled = (
        loss(WEIGHTS[: samples(row)]),
        loss(None),
        loss(np.full(samples(row), 2.0)),
    )
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)
    assert abs(weighted - plain) > 1e-4


@everything
def test_eager_and_graph_and_several_steps_at_once_are_the_same(name, straight):
    several = [{"steps_per_execution": 2}] if name in REPRESENTATIVES else []
    for settings in ({"run_eagerly": True}, *several):
        model = compiled(name, **settings)
        np.testing.assert_allclose(fit(model, name), straight(name).losses[:2], rtol=1e-5)
        rounding = getattr(FITTED[name], "rounding", 1e-5)
        assert_same_weights(model, straight(name).half_way.weights, rtol=1e-4, atol=rounding)


@everything
def test_compiled_by_xla(name, straight):
    """Two steps, and of one row of each kind two epochs: XLA compiles the uneven last batch apart."""
    if not getattr(FITTED[name], "xla", True):
        pytest.skip("Parts that do not divide the batch are nothing for XLA.")
    xla = compiled(name, jit_compile=True)
    if name in (*REPRESENTATIVES, *FURTHER_KINDS):
        loss, expected = fit(xla, name)[-1], straight(name).half_way
    else:
        loss, expected = fit(xla, name, epochs=1, steps_per_epoch=2)[-1], straight(name).two_steps
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-4)
    assert_same_weights(xla, expected.weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        *(pytest.param("mixed_bfloat16", n, marks=pytest.mark.slow) for n in REPRESENTATIVES),
        *(
            pytest.param("mixed_float16", n, marks=() if n in REPRESENTATIVES else pytest.mark.slow)
            for n in FITTED
            # Other losses: `test_losses_in_half_precision`.
            if n in MODELS or n in (*REPRESENTATIVES, *FURTHER_KINDS)
        ),
    ],
)
def test_mixed_precision(policy, name, straight):
    """The loss is near float32's, and steps are of the same size, not scaled away."""
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(name)
        first = FirstStep(model)
        fit(model, name, epochs=4, callbacks=[first])
    finally:
        keras.config.set_dtype_policy("float32")
    full = straight(name)
    np.testing.assert_allclose(first.loss, full.start.loss, rtol=FITTED[name].half_precision)
    path = full.start.path(full.end.weights)
    assert 0.5 * path < first.path(model.get_weights()) < 2 * path


@with_state
def test_resumed_from_a_backup_equals_uninterrupted(name, straight, tmp_path):
    resumed = compiled(name)
    # It will be deleted.
    backup = keras.callbacks.BackupAndRestore(
        shutil.copytree(straight(name).backup, tmp_path / "backup")
    )
    last = fit(resumed, name, epochs=4, callbacks=[backup])
    np.testing.assert_array_equal(last, straight(name).losses[2:])
    assert_same_weights(resumed, straight(name).end.weights)


# Models that draw at random, which replicas do apart, are left out; the other losses are tested without
# `fit` (losses/every_loss_on_replicas_test.py).
on_replicas = pytest.mark.parametrize(
    "name",
    [
        *(name for name in (*REPRESENTATIVES, *FURTHER_KINDS) if name in LOSSES),
        *(name for name in MODELS if "augmentation" not in name),
    ],
)


@pytest.mark.slow
@on_replicas
def test_one_replica_is_two(name, straight, replicas):
    """With an uneven last batch."""
    with replicas(2).scope():
        model = compiled(name)
    np.testing.assert_allclose(fit(model, name), straight(name).losses[:2], rtol=1e-4)
    expected = straight(name).half_way.weights
    scale = max(np.abs(x).max() for x in expected)
    assert_same_weights(model, expected, rtol=1e-4, atol=1e-5 * scale)
