import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.optimizers import LARS, CosineSchedule, is_bias_or_norm

START = np.array([[0.5, -1.0, 2.0], [0.25, 3.0, -0.5]])
CURVATURE = np.array([[1.0, 2.0, 0.5], [3.0, 0.1, 1.5]])


def run(optimizer, steps=4, start=START, dtype="float64", name="kernel"):
    """Steps on the quadratic whose minimum is at 1 and whose curvature is given."""
    variable = keras.Variable(start, dtype=dtype, name=name)
    for _ in range(steps):
        optimizer.apply([CURVATURE * (variable - 1)], [variable])
    return keras.ops.convert_to_numpy(variable)


# Of lightly 1.6's LARS in float64, four steps at rate 0.5 with trust coefficient 0.02, no ε, and a decay
# of 1e-15, without which it would not adapt.
LIGHTLY = {
    (0.0, False): [[0.51489428, -0.88218669, 1.98502127], [0.31552329, 2.99398136, -0.43335382]],
    (0.9, False): [[0.53371029, -0.73346942, 1.96609162], [0.39816378, 2.98637305, -0.34919177]],
    (0.9, True): [[0.54558322, -0.64332886, 1.95391088], [0.446205, 2.98140125, -0.29713335]],
}
# The same at rates 0.5, 0.4, 0.2, 0.1, which lightly applies after the momentum.
LIGHTLY_FALLING = [
    [0.51592528, -0.87338269, 1.98402552],
    [0.32078245, 2.99359444, -0.42855722],
]


@pytest.mark.parametrize(("momentum", "nesterov"), LIGHTLY)
def test_equals_lightly_at_a_constant_rate(momentum, nesterov):
    optimizer = LARS(0.5, momentum, 0.0, trust_coefficient=0.02, nesterov=nesterov)
    np.testing.assert_allclose(run(optimizer), LIGHTLY[momentum, nesterov], atol=2e-8)


def test_a_falling_rate_lags_where_it_is_inside_the_momentum(numpy_optimizers):
    rates = [0.5, 0.4, 0.2, 0.1]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1, 2], rates)
    got = run(LARS(schedule, weight_decay=0.0, trust_coefficient=0.02))
    oracle, expected = numpy_optimizers["LARS"](rates.__getitem__, lambda k: 0.0), START
    for k in range(4):
        expected = oracle.step(k, expected, CURVATURE * (expected - 1), is_spared=False)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.all(np.abs(got - START) > np.abs(np.array(LIGHTLY_FALLING) - START))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay", [0.0, 1e-2, 3.0])
def test_equals_the_recurrence(momentum, nesterov, decay, numpy_optimizers):
    optimizer = LARS(0.5, momentum, decay, trust_coefficient=0.02, nesterov=nesterov)
    oracle = numpy_optimizers["LARS"](lambda k: 0.5, lambda k: decay, momentum, nesterov)
    expected = START
    for k in range(4):
        expected = oracle.step(k, expected, CURVATURE * (expected - 1), is_spared=False)
    np.testing.assert_allclose(run(optimizer), expected, rtol=1e-7)


def test_the_papers_coefficients_are_the_default():
    config = LARS(0.1).get_config()
    assert config["momentum"] == 0.9 and config["trust_coefficient"] == 0.001
    assert config["weight_decay"] == 1e-6 and config["nesterov"] is False
    assert LARS(0.1).exclude is is_bias_or_norm


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_excluded_variables_take_the_steps_of_sgd(settings):
    settings = {"learning_rate": 0.1, "momentum": 0.0, **settings}
    expected = run(keras.optimizers.SGD(**settings))
    np.testing.assert_allclose(run(LARS(**settings, weight_decay=9.0), name="bias"), expected)
    optimizer = LARS(**settings, weight_decay=9.0, exclude=lambda v: v.path == "mine")
    np.testing.assert_allclose(run(optimizer, name="mine"), expected)
    assert np.abs(run(LARS(**settings, weight_decay=9.0)) - expected).max() > 1e-2


def test_excludes_none(numpy_optimizers):
    optimizer = LARS(0.5, 0.9, 0.1, trust_coefficient=0.02, exclude=None)
    oracle = numpy_optimizers["LARS"](lambda k: 0.5, lambda k: 0.1)
    expected = oracle.step(0, START, CURVATURE * (START - 1), is_spared=False)
    np.testing.assert_allclose(run(optimizer, 1, name="bias"), expected)


def test_keras_own_exclusion_takes_the_decay_and_leaves_the_ratio():
    optimizer = LARS(0.5, weight_decay=9.0, trust_coefficient=0.02)
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    np.testing.assert_allclose(run(optimizer), LIGHTLY[0.9, False], atol=2e-8)


def test_no_decay():
    optimizer = LARS(0.5, weight_decay=None, trust_coefficient=0.02)
    np.testing.assert_allclose(run(optimizer), LIGHTLY[0.9, False], atol=2e-8)


def test_the_ratio_is_one_where_a_norm_is_zero():
    zeros = np.zeros((2, 3))
    got = run(LARS(0.1, weight_decay=0.5), 1, start=zeros)
    np.testing.assert_allclose(got, 0.1 * CURVATURE)
    # At the minimum there is no gradient, and nothing is divided by it.
    got = run(LARS(0.1, weight_decay=0.0), 2, start=np.ones((2, 3)))
    np.testing.assert_array_equal(got, np.ones((2, 3)))
    # With decay, the norm is that of the decay alone: a step of 0.1 · 0.001 · ‖w‖, in the direction of w.
    got = run(LARS(0.1, weight_decay=0.5), 1, start=np.ones((2, 3)))
    np.testing.assert_allclose(got, np.full((2, 3), 1 - 0.1 * 0.001))


def test_nan_gives_nan():
    variable = keras.Variable(START, name="kernel")
    LARS(0.1).apply([np.full(START.shape, np.nan)], [variable])
    assert np.isnan(variable).all()


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_step_does_not_depend_on_the_scale_of_the_gradient(scale):
    results = []
    for factor in (1.0, scale):
        variable = keras.Variable(START, name="kernel")
        LARS(0.1, weight_decay=0.0).apply([factor * CURVATURE], [variable])
        results.append(keras.ops.convert_to_numpy(variable) - START)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3)
    assert np.abs(results[0]).max() > 1e-5


def test_half_precision_norms_do_not_overflow():
    variable = keras.Variable(np.full((300, 300), 10.0), dtype="float16", name="kernel")
    optimizer = LARS(1.0, weight_decay=0.0, trust_coefficient=0.1)
    optimizer.apply([np.full((300, 300), 100.0, "float16")], [variable])
    np.testing.assert_allclose(variable, np.full((300, 300), 9.0), rtol=1e-3)


def test_rows_of_an_embedding(numpy_optimizers):
    """Only some rows have a gradient; decay and norm are of all of them."""
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(4, 3)])
    start = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model.set_weights([start])
    rate, decay = (lambda k: 0.5), (lambda k: 0.3)
    oracle, expected = numpy_optimizers["LARS"](rate, decay), start.astype("float64")
    model.compile(LARS(0.5, weight_decay=0.3, trust_coefficient=0.02), "mse")
    model.fit(np.array([[0, 2], [2, 2]]), np.zeros((2, 2, 3)), epochs=3, verbose=0)
    for k in range(3):
        counts = np.array([1, 0, 3, 0])[:, None]
        expected = oracle.step(k, expected, 2 * expected * counts / 12, is_spared=False)
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-5)


def test_state_is_one_buffer_a_variable_or_none():
    variables = [keras.Variable(START, name="kernel"), keras.Variable([1.0], name="bias")]
    for momentum, expected in [(0.9, 2), (0.0, 0)]:
        optimizer = LARS(0.1, momentum)
        optimizer.build(variables)
        assert len(optimizer.momentums) == expected
        # Besides: the iteration and the learning rate.
        assert len(optimizer.variables) == expected + 2


def test_gradients_in_a_function():
    """Without `fit`, under XLA."""
    variable = keras.Variable(START, dtype="float32", name="kernel")
    optimizer = LARS(0.5, trust_coefficient=0.02)
    optimizer.build([variable])

    @tf.function(jit_compile=True)
    def step():
        optimizer.apply([tf.constant(CURVATURE, tf.float32) * (variable - 1)])

    for _ in range(4):
        step()
    np.testing.assert_allclose(variable, LIGHTLY[0.9, False], rtol=1e-4)


def test_config():
    optimizer = LARS(
        CosineSchedule(0.1, 0.2, 3),
        np.float32(0.5),
        CosineSchedule(0.3, 0.4, 5),
        0.25,
        True,
        None,
        clipnorm=2.0,
        gradient_accumulation_steps=3,
    )
    config = optimizer.get_config()
    assert LARS.from_config(config).get_config() == config == optimizer.get_config()
    assert (config["momentum"], config["trust_coefficient"], config["nesterov"]) == (
        0.5,
        0.25,
        True,
    )
    assert (config["exclude"], config["clipnorm"]) == (None, 2.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.9", None, True])
def test_refused_momentum(value):
    with pytest.raises(ValueError, match="`momentum` must be a number from 0 to 1") as error:
        LARS(0.1, momentum=value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [0, -0.1, float("inf"), "0.9", None])
def test_refused_trust_coefficients(value):
    with pytest.raises(ValueError, match="`trust_coefficient` must be a positive number") as error:
        LARS(0.1, trust_coefficient=value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (3, 3, 2, 4)], ids=str)
def test_variables_of_any_rank(shape):
    """A convolution's kernel has four axes; its norm is that of all its entries."""
    rng = np.random.default_rng(0)
    start, gradient = rng.normal(size=(2, *shape))
    kernel = keras.Variable(start, name="kernel", dtype="float64")
    LARS(0.5, weight_decay=0.1, trust_coefficient=0.02, exclude=None).apply([gradient], [kernel])
    decayed = gradient + 0.1 * start
    ratio = 0.02 * np.sqrt(np.sum(start**2)) / np.sqrt(np.sum(decayed**2))
    np.testing.assert_allclose(kernel, start - 0.5 * ratio * decayed, rtol=1e-6)
