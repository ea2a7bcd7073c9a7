import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import negatives
from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.losses.clip import CLIP
from keras_sslmeta.losses.info_nce import InfoNCE
from keras_sslmeta.losses.matryoshka import Matryoshka
from keras_sslmeta.losses.nt_xent import NTXent
from keras_sslmeta.losses.self_distillation import SelfDistillation
from keras_sslmeta.losses.swapped_prediction import SwappedPrediction

LARGE = 2**53 + 1


def embeddings(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape or (6, 2, 8)).astype(dtype)


@keras.saving.register_keras_serializable(package="matryoshka_test")
class Seen(BatchLoss):
    """Notes what came, and gives each sample the sum of its components."""

    def __init__(self, negatives=(), **kwargs):
        super().__init__(**kwargs)
        self.negatives = negatives
        self.seen = []

    def targets(self, y_true, y_pred):
        return y_true

    def call(self, y_true, y_pred):
        self.seen.append(y_true)
        return tf.reduce_sum(tf.reshape(y_pred, [tf.shape(y_pred)[0], -1]), axis=1)


class Variance(BatchStatisticLoss):
    def statistic(self, y_true, y_pred):
        return tf.math.reduce_variance(y_pred)


class DictLoss(BatchLoss):
    """One minus the product with the key; twice for samples of a label that is large and odd."""

    def targets(self, y_true, y_pred):
        return y_true

    def call(self, y_true, y_pred):
        of_label = 1 + tf.cast(tf.equal(y_true["labels"], LARGE), y_pred.dtype)
        return of_label * (
            1 - tf.reduce_sum(tf.cast(y_true["keys"], y_pred.dtype) * y_pred, axis=-1)
        )


class Rule:
    def __init__(self, key):
        self.key = key


@pytest.mark.parametrize(
    "loss", [NTXent(0.5), SelfDistillation(), SwappedPrediction()], ids=lambda loss: loss.name
)
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0]])
def test_is_the_weighted_sum_over_cuts(loss, weights):
    dims, x = [2, 8, 5], embeddings()
    y = embeddings(seed=1) if isinstance(loss, SelfDistillation) else None
    w = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 1.0], "float32")
    for sample_weight in (None, w):
        expected = 0.0
        for m, weight in zip(dims, weights or [1, 1, 1], strict=True):
            cut = None if y is None else y[..., :m]
            expected += weight * loss(cut, x[..., :m], sample_weight=sample_weight)
        got = Matryoshka(loss, dims, weights)(y, x, sample_weight=sample_weight)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert Matryoshka(loss, dims, weights, reduction=None)(y, x).shape == (6,)


def test_one_whole_length_is_the_loss_itself():
    x = embeddings()
    np.testing.assert_array_equal(Matryoshka(NTXent(), [8])(None, x), NTXent()(None, x))


def test_it_is_a_sum_and_not_a_mean():
    x = np.ones((4, 2, 8), "float32")  # log(2B − 1) at every length.
    got = Matryoshka(NTXent(), [2, 4, 8])(None, x)
    np.testing.assert_allclose(got, 3 * np.log(7), rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.MeanSquaredError(),
        keras.losses.CosineSimilarity(),
        keras.losses.MeanAbsoluteError(reduction="sum"),
    ],
    ids=lambda loss: loss.name,
)
@pytest.mark.parametrize("shape", [(6, 8), (6, 2, 8)])
def test_around_losses_of_keras(loss, shape):
    x, y = embeddings(*shape), embeddings(*shape, seed=1)
    per_sample = type(loss)(reduction=None)
    expected = sum(
        np.reshape(per_sample(y[..., :m], x[..., :m]), (6, -1)).mean(axis=1) for m in (2, 8)
    )
    got = Matryoshka(loss, [2, 8], reduction=None)(y, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    # The wrapped loss's own reduction is not used.
    np.testing.assert_allclose(Matryoshka(loss, [2, 8])(y, x), expected.mean(), rtol=1e-5)


def test_around_a_loss_of_keras_on_labels():
    """`Circle` compares unit embeddings by integer labels, which are no embeddings."""
    x, y = embeddings(6, 8), np.array([0, 0, 1, 1, 2, 2])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = sum(keras.losses.Circle()(y, x[:, :m]) for m in (3, 8))
    np.testing.assert_allclose(Matryoshka(keras.losses.Circle(), [3, 8])(y, x), expected, rtol=1e-5)


def test_gradient_by_finite_differences():
    x = embeddings(3, 2, 4, dtype="float64")
    loss = Matryoshka(NTXent(0.5, dtype="float64"), [2, 4], [1.0, 0.25])

    def value(x):
        return float(NTXent(0.5, dtype="float64")(None, x[..., :2])) + 0.25 * float(
            NTXent(0.5, dtype="float64")(None, x)
        )

    z = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = loss(None, z)
    assert total.dtype == "float64"
    got = tape.gradient(total, z).numpy()
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        np.testing.assert_allclose(
            got[index], (value(up) - value(down)) / 2e-6, rtol=1e-4, atol=1e-8
        )


def test_no_gradient_where_the_loss_stops_it():
    teacher, student = tf.constant(embeddings()), tf.constant(embeddings(seed=1))
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = Matryoshka(SelfDistillation(), [2, 4])(teacher, student)
    by_teacher, by_student = tape.gradient(value, [teacher, student])
    assert by_teacher is None
    assert np.abs(by_student[..., :4]).max() > 0
    np.testing.assert_array_equal(by_student[..., 4:], np.zeros((6, 2, 4)))


@pytest.mark.parametrize(
    "labels",
    [
        np.array([LARGE, LARGE + 1, 1]),
        [5, 2, 1],
        np.array(["a", "b", "c"], object),
        ["a", "b", "c"],
        np.zeros((3, 8), "int32"),  # One-hot rows of as many classes as there are components.
        np.zeros((3, 5), "float32"),
        np.zeros(8, "float32"),
        None,
    ],
    ids=repr,
)
def test_labels_pass_as_they_are(labels):
    loss = Seen()
    Matryoshka(loss, [2, 8])(labels, embeddings(3, 8))
    for seen in loss.seen:
        if labels is None:
            assert seen is None
            continue
        seen = seen.numpy().astype(str) if seen.dtype == "string" else seen
        np.testing.assert_array_equal(seen, labels)


def test_embeddings_in_dicts_and_tuples_are_cut():
    keys, hard, memory = embeddings(3, 8), embeddings(3, 2, 8), embeddings(20, 8, dtype="float64")
    labels, short = np.array([LARGE, 2, 3]), embeddings(3, 4)
    y = {
        "keys": keys,
        "labels": labels,
        "more": (hard, memory, None),
        "other": short,
        "name": ["a"],
    }
    loss = Seen()
    Matryoshka(loss, [5])(y, embeddings(3, 8))
    (seen,) = loss.seen
    assert seen.keys() == y.keys()
    np.testing.assert_array_equal(seen["keys"], keys[:, :5])
    np.testing.assert_array_equal(seen["more"][0], hard[..., :5])
    np.testing.assert_array_equal(seen["more"][1], memory[..., :5])
    assert seen["more"][2] is None and seen["more"][1].dtype == "float64"
    np.testing.assert_array_equal(seen["labels"], labels)
    np.testing.assert_array_equal(seen["other"], short)


def test_what_rules_on_negatives_ask_for_stays_whole():
    """A guide's embeddings may be as long as those that are cut."""
    keys, guide, memory = embeddings(3, 8), embeddings(3, 2, 8, seed=1), embeddings(9, 8, seed=2)
    loss = Seen(negatives=[object(), Rule("guide")])
    y = {"keys": keys, "guide": guide, "memory_guide": memory, "memory": memory}
    for wrapped in (loss, Matryoshka(loss, [4])):
        loss.seen.clear()
        Matryoshka(wrapped, [4])(y, embeddings(3, 8))
        (seen,) = loss.seen
        np.testing.assert_array_equal(seen["keys"], keys[:, :4])
        np.testing.assert_array_equal(seen["memory"], memory[:, :4])
        np.testing.assert_array_equal(seen["guide"], guide)
        np.testing.assert_array_equal(seen["memory_guide"], memory)
    # A plain tensor serves for the rule, whatever its name.
    Matryoshka(loss, [4])(guide, embeddings(3, 2, 8))
    np.testing.assert_array_equal(loss.seen[-1], guide)


def test_two_towers_with_exact_labels():
    x, keys = embeddings(8, 8), embeddings(8, 8, seed=1)
    labels = np.array([LARGE, LARGE + 1] * 4)
    loss = Matryoshka(DictLoss(), [2, 8])
    expected = sum((1 - (keys * x)[:, :m].sum(1)) * (1 + (labels == LARGE)) for m in (2, 8)).mean()
    y = {"keys": keys, "labels": labels}
    np.testing.assert_allclose(loss(y, x), expected, rtol=1e-5)
    np.testing.assert_allclose(tf.function(loss)(y, x), expected, rtol=1e-5)


def test_two_towers_of_this_package():
    """Keys as targets, alone and in a dict with a memory and labels for a rule."""
    x, keys, memory = embeddings(6, 8), embeddings(6, 8, seed=1), embeddings(9, 8, seed=2)
    rules = [negatives.ExcludeSameLabel(), negatives.Hardest(4)]
    labels, memory_labels = np.array([LARGE, LARGE + 1] * 3), np.arange(9) + LARGE
    for loss in (InfoNCE(), InfoNCE(negatives=[negatives.Hardest(3)]), CLIP()):
        expected = sum(loss(keys[:, :m], x[:, :m]) for m in (2, 8))
        np.testing.assert_allclose(Matryoshka(loss, [2, 8])(keys, x), expected, rtol=1e-5)

    def targets(m):
        return {
            "keys": keys[:, :m],
            "memory": memory[:, :m],
            "labels": labels,
            "memory_labels": memory_labels,
        }

    loss = InfoNCE(negatives=rules)
    expected = sum(loss(targets(m), x[:, :m]) for m in (2, 8))
    np.testing.assert_allclose(Matryoshka(loss, [2, 8])(targets(8), x), expected, rtol=1e-5)
    assert abs(expected - sum(InfoNCE()(keys[:, :m], x[:, :m]) for m in (2, 8))) > 0.1


def test_a_guide_as_long_as_the_embeddings():
    x, guide = embeddings(), embeddings(seed=1)
    loss = NTXent(negatives=[negatives.ExcludeByGuide()])
    expected = sum(loss(guide, x[..., :m]) for m in (2, 8))
    for y in (guide, {"guide": guide}):
        np.testing.assert_allclose(Matryoshka(loss, [2, 8])(y, x), expected, rtol=1e-5)
    assert abs(expected - sum(loss(guide[..., :m], x[..., :m]) for m in (2, 8))) > 1e-3


def test_statistics_refuse_weights_and_give_their_scalar():
    x = embeddings(6, 8)
    expected = sum(x[:, :m].var() for m in (2, 8))
    for loss in (Matryoshka(Variance(), [2, 8]), Matryoshka(Matryoshka(Variance(), [2]), [4])):
        with pytest.raises(ValueError, match="statistic of the whole batch"):
            loss(None, x, sample_weight=np.ones(6))
    np.testing.assert_allclose(Matryoshka(Variance(), [2, 8])(None, x), expected, rtol=1e-5)


def test_nested_in_itself():
    x = embeddings()
    inner = Matryoshka(NTXent(), [2, 4], [1.0, 3.0])
    expected = 2 * inner(None, x[..., :4]) + inner(None, x)
    got = Matryoshka(inner, [4, 8], [2.0, 1.0])(None, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="at least 4 components"):
        Matryoshka(inner, [3])(None, x)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision(dtype, tolerance):
    x = tf.cast(embeddings(), dtype)
    expected = Matryoshka(NTXent(dtype="float64"), [2, 4, 8])(None, tf.cast(x, tf.float64))
    np.testing.assert_allclose(Matryoshka(NTXent(), [2, 4, 8])(None, x), expected, rtol=1e-5)
    half = Matryoshka(NTXent(), [2, 4, 8], dtype=dtype)(None, x)
    assert half.dtype == dtype
    np.testing.assert_allclose(tf.cast(half, tf.float64), expected, rtol=tolerance)
    large = Matryoshka(NTXent(), [2, 8])(None, x * 1e4)
    assert np.isfinite(large)


def test_zero_prefixes_are_finite_and_nan_gives_nan():
    x = embeddings()
    x[0, 0, :2] = 0
    z = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = Matryoshka(NTXent(), [2, 8])(None, z)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, z)).all()
    x[0, 0, 0] = np.nan
    assert np.isnan(Matryoshka(NTXent(), [2, 8])(None, x))


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}]
)
def test_under_fit_and_after_saving(settings, tmp_path):
    model = keras.Sequential([keras.Input((2, 8)), keras.layers.Dense(8)])
    model.compile(keras.optimizers.SGD(0.05), Matryoshka(NTXent(0.5), [2, 8], [1, 0.5]), **settings)
    x = embeddings(8, 2, 8)
    history = model.fit(x, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.loss.get_config() == model.loss.get_config()
    np.testing.assert_allclose(
        again.evaluate(x, verbose=0), model.evaluate(x, verbose=0), rtol=1e-5
    )


@pytest.mark.parametrize(
    "wrapped",
    [NTXent(0.3, dtype="float64"), keras.losses.Huber(2.0), Matryoshka(NTXent(0.2), [4])],
    ids=lambda loss: loss.name,
)
def test_config(wrapped):
    loss = Matryoshka(wrapped, (np.int64(2), 8), (1, 0.5), reduction="sum", name="nested")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.dims, again.weights) == ([2, 8], [1.0, 0.5])
    assert (again.reduction, again.name, again.dtype) == ("sum", "nested", wrapped.dtype)
    assert type(again.loss) is type(wrapped)
    assert again.loss.get_config() == wrapped.get_config()


@pytest.mark.parametrize(
    ("name", "value", "required"),
    [
        ("loss", "mse", "a loss, an instance of"),
        ("loss", NTXent, "a loss, an instance of"),
        ("dims", [], "a list of different positive integers"),
        ("dims", 8, "a list of different positive integers"),
        ("dims", [2, 0], "a list of different positive integers"),
        ("dims", [2, 4.0], "a list of different positive integers"),
        ("dims", "28", "a list of different positive integers"),
        ("dims", [4, 4], "different"),
        ("weights", [1.0], "a number from 0 for each of the 2"),
        ("weights", [1.0, -1.0], "a number from 0 for each of the 2"),
        ("weights", [1.0, float("nan")], "a number from 0 for each of the 2"),
        ("weights", 1.0, "a number from 0 for each of the 2"),
    ],
)
def test_refused(name, value, required):
    with pytest.raises(ValueError, match=f"`{name}` must be {required}") as error:
        Matryoshka(**{"loss": NTXent(), "dims": [2, 8], name: value})
    assert repr(value) in str(error.value)


def test_refused_inputs():
    with pytest.raises(ValueError, match="at least 9 components"):
        Matryoshka(NTXent(), [2, 9])(None, embeddings())
    with pytest.raises(ValueError, match="floating-point"):
        Matryoshka(NTXent(), [2])(None, np.zeros((6, 2, 8), int))
    with pytest.raises(ValueError, match="at least two views"):
        Matryoshka(NTXent(), [2])(None, embeddings(6, 1, 8))

    class Scalar(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return tf.reduce_mean(y_pred)

    with pytest.raises(ValueError, match="a value for each sample"):
        Matryoshka(Scalar(), [2])(embeddings(), embeddings())
