import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.optimizers.cosine_schedule import CosineSchedule


def test_byols_momentum():
    schedule = CosineSchedule(0.996, 1.0, 500)
    expected = [1 - (1 - 0.996) * (math.cos(math.pi * k / 500) + 1) / 2 for k in range(501)]
    np.testing.assert_allclose([schedule(k) for k in range(501)], expected, rtol=2e-7)


def test_dinos_weight_decay():
    """The table of DINO's code: one value a step, none of them the last value itself."""
    steps = np.arange(100)
    expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * steps / len(steps)))
    np.testing.assert_allclose(CosineSchedule(0.04, 0.4, 100)(steps), expected, rtol=1e-6)


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.0), (1.0, 0.0), (0.0, -2.0), (0.3, 0.3)])
def test_starts_at_the_start_and_stays_at_the_end(start, end):
    schedule = CosineSchedule(start, end, 7)
    np.testing.assert_allclose(schedule(0), start, atol=1e-7)
    for k in (7, 8, 10**9):
        assert float(schedule(k)) == np.float32(end)
    values = [float(schedule(k)) for k in range(9)]
    assert values == sorted(values, reverse=end < start)


def test_falls_as_keras_own_does():
    ours, keras_own = (
        CosineSchedule(0.3, 0.03, 9),
        keras.optimizers.schedules.CosineDecay(0.3, 9, 0.1),
    )
    for k in range(12):
        np.testing.assert_allclose(ours(k), keras_own(k), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_of_a_counter_in_a_graph(jit_compile):
    schedule, counter = CosineSchedule(0.0, 1.0, 4), tf.Variable(2, dtype=tf.int64)
    value = tf.function(lambda: schedule(counter), jit_compile=jit_compile)()
    assert value.dtype == tf.float32 and abs(float(value) - 0.5) < 1e-6


def test_is_a_learning_rate():
    variable = keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(CosineSchedule(0.2, 0.4, 2))
    for _ in range(3):
        optimizer.apply([[1.0]], [variable])
    np.testing.assert_allclose(variable, [1 - 0.2 - 0.3 - 0.4], atol=1e-6)


def test_config():
    schedule = CosineSchedule(np.float32(0.5), 1, np.int64(3))
    assert schedule.get_config() == {"start": 0.5, "end": 1.0, "steps": 3}
    serialize, deserialize = (
        keras.saving.serialize_keras_object,
        keras.saving.deserialize_keras_object,
    )
    again = deserialize(serialize(schedule))
    assert type(again) is CosineSchedule and again.get_config() == schedule.get_config()
    name = keras.saving.get_registered_name(CosineSchedule)
    assert name == "keras_sslmeta.optimizers>CosineSchedule"


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", None, True])
def test_refused_values(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number") as error:
        CosineSchedule(**{"start": 0.0, "end": 1.0, "steps": 3, name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("steps", [0, -1, 2.5, None, True])
def test_refused_steps(steps):
    with pytest.raises(ValueError, match="`steps` must be a positive integer") as error:
        CosineSchedule(0.0, 1.0, steps)
    assert repr(steps) in str(error.value)
