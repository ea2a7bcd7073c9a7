import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.losses.self_distillation import SelfDistillation


def logits(batch=4, views=2, outputs=6, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, views, outputs)).astype(dtype)


def log_softmax(x):
    largest = max(x)
    return [v - largest - math.log(sum(math.exp(w - largest) for w in x)) for v in x]


def oracle(teacher, student, student_temperature=0.1, teacher_temperature=0.04):
    """Algorithm 1 of the paper with any number of views, pair by pair; one value a sample."""
    values = []
    for g, f in zip(teacher.astype("float64"), student.astype("float64"), strict=True):
        terms = []
        for t in range(len(g)):
            p = [math.exp(v) for v in log_softmax(g[t] / teacher_temperature)]
            for s in range(len(f)):
                if s != t:
                    log_q = log_softmax(f[s] / student_temperature)
                    terms.append(-sum(a * b for a, b in zip(p, log_q, strict=True)))
        values.append(sum(terms) / len(terms))
    return np.array(values)


@pytest.mark.parametrize("views", [(2, 2), (2, 5), (1, 2), (1, 4), (3, 3)])
@pytest.mark.parametrize("temperatures", [(0.1, 0.04), (1.0, 1.0), (0.02, 0.005)])
def test_equals_the_paper_pair_by_pair(views, temperatures):
    teacher, student = logits(views=views[0]), logits(views=views[1], seed=1)
    loss = SelfDistillation(*temperatures, reduction=None)
    expected = oracle(teacher, student, *temperatures)
    np.testing.assert_allclose(loss(teacher, student), expected, rtol=1e-5)
    mean = SelfDistillation(*temperatures)(teacher, student)
    np.testing.assert_allclose(mean, expected.mean(), rtol=1e-5)


def test_the_defaults_are_dinos():
    teacher, student = logits(), logits(seed=1)
    expected = oracle(teacher, student, 0.1, 0.04).mean()
    np.testing.assert_allclose(SelfDistillation()(teacher, student), expected, rtol=1e-5)


def test_closed_forms():
    same = np.zeros((3, 2, 16), "float32")
    np.testing.assert_allclose(SelfDistillation()(same, same), math.log(16), rtol=1e-6)
    # A teacher that is certain: the student's own negative log-probability.
    certain = np.zeros((1, 2, 3), "float32")
    certain[..., 0] = 100
    student = np.zeros((1, 2, 3), "float32")
    student[..., 0] = 0.1
    expected = math.log(math.e + 2) - 1
    np.testing.assert_allclose(SelfDistillation()(certain, student), expected, rtol=1e-5)


def test_a_view_does_not_learn_from_itself():
    teacher, student = logits(views=1), tf.constant(logits(views=2, seed=1))
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = SelfDistillation()(teacher, student)
    by_student = tape.gradient(value, student).numpy()
    np.testing.assert_array_equal(by_student[:, 0], np.zeros((4, 6)))
    assert np.abs(by_student[:, 1]).max() > 0


@pytest.mark.parametrize("views", [(2, 2), (2, 4)])
def test_gradients(views):
    """By finite differences for the student; none for the teacher."""
    teacher, student = (
        logits(3, views[0], dtype="float64"),
        logits(3, views[1], seed=1, dtype="float64"),
    )
    sources = [tf.constant(teacher), tf.constant(student)]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        value = SelfDistillation(dtype="float64")(*sources)
    by_teacher, by_student = tape.gradient(value, sources)
    assert by_teacher is None
    np.testing.assert_allclose(value, oracle(teacher, student).mean(), rtol=1e-12)
    for index in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        expected = (oracle(teacher, up).mean() - oracle(teacher, down).mean()) / 2e-6
        np.testing.assert_allclose(by_student.numpy()[index], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_computed_in_float32(dtype, tolerance):
    teacher, student = (tf.cast(x, dtype) for x in (logits(), logits(seed=1)))
    expected = oracle(*(tf.cast(x, tf.float64).numpy() for x in (teacher, student))).mean()
    np.testing.assert_allclose(SelfDistillation()(teacher, student), expected, rtol=1e-5)
    value = SelfDistillation(dtype=dtype)(teacher, student)
    assert value.dtype == dtype
    np.testing.assert_allclose(tf.cast(value, tf.float32), expected, rtol=tolerance)


def test_large_half_precision_logits_are_finite():
    """1e4 over a temperature of 0.04 is beyond float16; so are the differences."""
    teacher, student = (tf.cast(x * 1e4, tf.float16) for x in (logits(), logits(seed=1)))
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = SelfDistillation()(teacher, student)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, student)).all()


def test_nan_gives_nan():
    for bad in (0, 1):
        pair = [logits(), logits(seed=1)]
        pair[bad][0, 0, 0] = np.nan
        values = SelfDistillation(reduction=None)(*pair)
        np.testing.assert_array_equal(np.isnan(values), [True, False, False, False])


def test_sample_weights():
    teacher, student = logits(), logits(seed=1)
    weights = np.array([0.0, 1.0, 2.0, 0.5], "float32")
    got = SelfDistillation()(teacher, student, sample_weight=weights)
    np.testing.assert_allclose(got, (oracle(teacher, student) * weights).mean(), rtol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}]
)
def test_under_fit(settings):
    model = keras.Sequential([keras.Input((3, 6)), keras.layers.Dense(6)])
    model.compile(keras.optimizers.SGD(0.05), SelfDistillation(), **settings)
    x, teacher = logits(8, 3), logits(8, seed=1)
    history = model.fit(x, teacher, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    expected = oracle(teacher, model.predict(x, verbose=0)).mean()
    np.testing.assert_allclose(
        model.evaluate(x, teacher, batch_size=4, verbose=0), expected, rtol=1e-4
    )


def test_config():
    loss = SelfDistillation(0.2, 0.05, reduction="sum", name="dino", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.student_temperature, again.teacher_temperature) == (0.2, 0.05)
    assert (again.reduction, again.name, again.dtype) == ("sum", "dino", "float64")


@pytest.mark.parametrize("name", ["student_temperature", "teacher_temperature"])
@pytest.mark.parametrize("value", [0, -0.1, float("inf"), "0.1", None, True])
def test_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive number") as error:
        SelfDistillation(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (None, (4, 2, 6), "teacher's logits"),
        ((4, 6), (4, 2, 6), r"must hold logits \(batch, views, outputs\)"),
        ((4, 2, 6), (4, 6), r"must hold logits \(batch, views, outputs\)"),
        ((4, 2, 6), (4, 2, 5), "as many outputs"),
        ((1, 2, 6), (4, 2, 6), "the same samples"),
        ((4, 3, 6), (4, 2, 6), "at least two in all"),
        ((4, 1, 6), (4, 1, 6), "at least two in all"),
    ],
)
def test_refused_shapes(teacher, student, message):
    teacher = None if teacher is None else np.zeros(teacher, "float32")
    with pytest.raises(ValueError, match=message):
        SelfDistillation()(teacher, np.zeros(student, "float32"))


def test_refused_integers():
    integers = np.zeros((4, 2, 6), "int64")
    with pytest.raises(ValueError, match="floating-point"):
        SelfDistillation()(integers, logits())
    with pytest.raises(ValueError, match="floating-point"):
        SelfDistillation()(logits(), integers)
