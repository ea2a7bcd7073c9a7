import keras
import numpy as np
import pytest

from keras_sslmeta.optimizers import (
    SGD,
    AdamW,
    CosineSchedule,
    ScheduledWeightDecay,
    is_bias_or_norm,
)


@keras.saving.register_keras_serializable(package="tests")
class Lion(ScheduledWeightDecay, keras.optimizers.Lion):
    pass


@keras.saving.register_keras_serializable(package="tests")
def in_head(variable):
    return "head" in variable.path


def run(optimizer, steps=4):
    """The variables after a few steps with gradients of their own."""
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.normal(size=(3, 2)), name="kernel"),
        keras.Variable(rng.normal(size=2), name="bias"),
    ]
    for _ in range(steps):
        optimizer.apply([keras.ops.array(rng.normal(size=v.shape)) for v in variables], variables)
    return [keras.ops.convert_to_numpy(v) for v in variables]


@pytest.mark.parametrize(
    ("ours", "keras_own", "settings"),
    [
        (AdamW, keras.optimizers.AdamW, {}),
        (AdamW, keras.optimizers.AdamW, {"weight_decay": 0.5, "amsgrad": True, "beta_1": 0.8}),
        (AdamW, keras.optimizers.AdamW, {"epsilon": 1e-3, "beta_2": 0.9, "clipvalue": 0.1}),
        (SGD, keras.optimizers.SGD, {}),
        (SGD, keras.optimizers.SGD, {"weight_decay": 0.5, "momentum": 0.9, "nesterov": True}),
        (Lion, keras.optimizers.Lion, {"weight_decay": 0.5}),
    ],
)
def test_a_number_is_as_keras_has_it(ours, keras_own, settings):
    for got, expected in zip(
        run(ours(0.1, **settings)), run(keras_own(0.1, **settings)), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    defaults, config = keras_own().get_config(), ours().get_config()
    assert config.pop("exclude") is None
    assert {**config, "name": ""} == {**defaults, "name": ""}


def test_arguments_by_position_are_those_of_keras():
    names = ["learning_rate", "weight_decay", "beta_1", "beta_2", "epsilon", "amsgrad"]
    values = [0.1, 0.2, 0.3, 0.4, 0.5, True]
    for kind in (AdamW, keras.optimizers.AdamW):
        config = kind(*values).get_config()
        np.testing.assert_allclose([config[name] for name in names], values)
    for kind in (SGD, keras.optimizers.SGD):
        config = kind(0.1, 0.2, True, 0.4).get_config()
        names = ["learning_rate", "momentum", "nesterov", "weight_decay"]
        np.testing.assert_allclose([config[name] for name in names], [0.1, 0.2, True, 0.4])


def test_any_optimizer_of_keras():
    """Lion's step is the sign of a mean; the decay goes before it."""
    decays, kernel = [0.5, 1.25, 2.0], keras.Variable([[1.0]], name="kernel")
    optimizer = Lion(0.1, weight_decay=CosineSchedule(0.5, 2.0, 2))
    expected = 1.0
    for decay in decays:
        np.testing.assert_allclose(optimizer.weight_decay, decay, rtol=1e-6)
        optimizer.apply([[[1.0]]], [kernel])
        expected = expected * (1 - 0.1 * decay) - 0.1
    np.testing.assert_allclose(kernel, [[expected]], rtol=1e-6)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is Lion and again.get_config() == optimizer.get_config()


def test_any_schedule_of_keras(numpy_optimizers):
    optimizer = SGD(0.1, 0.8, weight_decay=keras.optimizers.schedules.ExponentialDecay(2.0, 1, 0.5))
    got, start = run(optimizer)[0], run(SGD(0.0))[0]
    rng = np.random.default_rng(0)
    rng.normal(size=8)
    oracle, expected = numpy_optimizers["SGD"](lambda k: 0.1, lambda k: 2.0 * 0.5**k), start
    for k in range(4):
        expected = oracle.step(k, expected, rng.normal(size=(3, 2)), is_spared=False)
        rng.normal(size=2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def decayed(model, optimizer, x, y):
    """Paths of the variables that a step without gradient changes; all are one at the start."""
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones(variable.shape))
    model.compile(optimizer, loss=lambda y_true, y_pred: 0.0 * keras.ops.sum(y_pred, -1))
    model.fit(x, y, verbose=0)
    return {
        "/".join(v.path.split("/")[-2:])
        for v in model.trainable_variables
        if np.abs(keras.ops.convert_to_numpy(v) - 1).max() > 1e-3
    }


def network():
    ones = {"kernel_initializer": "ones", "bias_initializer": "ones"}
    return keras.Sequential(
        [
            keras.layers.Dense(3, name="debiased", **ones),
            keras.layers.BatchNormalization(name="norm", beta_initializer="ones"),
            keras.layers.Dense(2, name="head", **ones),
        ]
    )


X, Y = np.ones((4, 3)), np.ones((4, 2))
KERNELS = {"debiased/kernel", "head/kernel"}
OTHERS = {"debiased/bias", "norm/gamma", "norm/beta", "head/bias"}


@pytest.mark.first(1)
@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("kind", [AdamW, SGD, Lion])
def test_excludes_before_and_after_the_model_is_built(kind, is_built):
    model = network()
    if is_built:
        model.build((None, 3))
    settings = {"learning_rate": 0.1, "weight_decay": 0.5}
    assert decayed(model, kind(**settings, exclude=is_bias_or_norm), X, Y) == KERNELS
    assert decayed(model, kind(**settings, exclude=in_head), X, Y) == {
        "debiased/kernel",
        "debiased/bias",
        "norm/gamma",
        "norm/beta",
    }
    assert decayed(model, kind(**settings), X, Y) == KERNELS | OTHERS


def test_keras_own_exclusion_works_besides():
    optimizer = AdamW(0.1, weight_decay=0.5, exclude=is_bias_or_norm)
    optimizer.exclude_from_weight_decay(var_names=["head"])
    assert decayed(network(), optimizer, X, Y) == {"debiased/kernel"}


def test_excludes_what_is_trained_later():
    """The optimiser of a new `compile` decides anew, of other variables."""
    model = network()
    model.build((None, 3))
    model.get_layer("debiased").trainable = False
    settings = {"learning_rate": 0.1, "weight_decay": 0.5, "exclude": is_bias_or_norm}
    assert decayed(model, SGD(**settings), X, Y) == {"head/kernel"}
    model.get_layer("debiased").trainable = True
    assert decayed(model, SGD(**settings), X, Y) == KERNELS


def test_exclusion_is_loaded(tmp_path):
    model = network()
    model.compile(SGD(0.1, weight_decay=0.5, exclude=in_head), "mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert optimizer.exclude is in_head and optimizer.weight_decay == 0.5


def test_weight_decay_can_be_set():
    optimizer = SGD(0.1, weight_decay=0.5)
    optimizer.weight_decay = CosineSchedule(0.25, 1.0, 2)
    np.testing.assert_allclose(optimizer.weight_decay, 0.25)
    optimizer.weight_decay = 2
    assert optimizer.weight_decay == 2.0 and optimizer.get_config()["weight_decay"] == 2.0
    optimizer.weight_decay = None
    with pytest.raises(ValueError, match="`weight_decay` must be a number from 0"):
        optimizer.weight_decay = -1.0


def test_adam_w_needs_a_weight_decay_as_in_keras():
    with pytest.raises(ValueError, match="`weight_decay` must be a float"):
        AdamW(0.1, weight_decay=None)
