import keras
import numpy as np
import pytest

from keras_sslmeta import optimizers

# Large, so that a decay that stands still, or comes a step late, would show.
RATE, DECAY = (0.1, 0.02, 12), (0.1, 2.0, 12)
SETTINGS = {
    "AdamW": {},
    "SGD": {"momentum": 0.8},
    "LARS": {"trust_coefficient": 0.02},
}
every_optimizer = pytest.mark.parametrize("name", SETTINGS)


def build(class_name, **kwargs):
    return getattr(optimizers, class_name)(
        learning_rate=optimizers.CosineSchedule(*RATE),
        weight_decay=optimizers.CosineSchedule(*DECAY),
        exclude=optimizers.is_bias_or_norm,
        **SETTINGS[class_name],
        **kwargs,
    )


@pytest.fixture
def recurrence(numpy_optimizers, numpy_cosine):
    """Builds the NumPy optimiser of a name, at the rate and the decay of `build`."""

    def make(name, decay=DECAY):
        return lambda: numpy_optimizers[name](numpy_cosine(*RATE), numpy_cosine(*decay))

    return make


def assert_weights(model, expected, rtol=2e-5):
    for got, weight in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(got, weight, rtol=rtol, atol=rtol / 10)


@pytest.mark.first(3)
@every_optimizer
@pytest.mark.parametrize(
    "settings",
    [{"run_eagerly": True}, {}, {"steps_per_execution": 2}, {"jit_compile": True}],
)
def test_fit_equals_the_recurrence(name, settings, regression, recurrence):
    model = regression.model(build(name), **settings)
    regression.fit(model)
    assert_weights(model, regression.numpy_weights(recurrence(name)))
    assert int(model.optimizer.iterations) == 8


@every_optimizer
def test_the_comparison_could_fail(name, regression, recurrence):
    """The schedule and the exclusion are felt: without them, weights are elsewhere, by far more than the
    tolerance."""
    scheduled = regression.numpy_weights(recurrence(name))
    constant = regression.numpy_weights(recurrence(name, (0.1, 0.1, 12)))
    assert np.abs(scheduled[0] - constant[0]).max() > 5e-3
    config = build(name).get_config()
    model = regression.model(getattr(optimizers, name).from_config({**config, "exclude": None}))
    regression.fit(model)
    assert np.abs(model.get_weights()[1] - scheduled[1]).max() > 5e-3


@pytest.mark.first(3)
@every_optimizer
@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 2}])
def test_accumulated_gradients(name, settings, regression, recurrence):
    """Schedules count batches, the learning rate's as the decay's."""
    model = regression.model(build(name, gradient_accumulation_steps=2), **settings)
    regression.fit(model)
    assert_weights(model, regression.numpy_weights(recurrence(name), accumulated=2))


@pytest.mark.first(1)
@every_optimizer
def test_clipped_gradients(name, regression, recurrence):
    model = regression.model(build(name, clipnorm=0.5))
    regression.fit(model)
    expected = regression.numpy_weights(recurrence(name), clipnorm=0.5)
    assert_weights(model, expected)
    free = regression.numpy_weights(recurrence(name))
    assert np.abs(expected[1] - free[1]).max() > 1e-3


@every_optimizer
def test_moving_average_of_weights(name, regression, recurrence):
    model = regression.model(build(name, use_ema=True, ema_momentum=0.7))
    regression.fit(model)
    assert_weights(model, regression.numpy_weights(recurrence(name), ema=0.7))


def build_for(policy, name):
    """Gradients of more than two overflow at the scale that Keras begins with: they skip steps."""
    optimizer = build(name)
    if policy != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)


@pytest.mark.first(3)
@every_optimizer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"], indirect=True)
def test_mixed_precision(name, policy, regression, recurrence):
    model = regression.model(build_for(policy, name))
    regression.fit(model)
    assert int(model.optimizer.iterations) == 8
    assert_weights(model, regression.numpy_weights(recurrence(name)), rtol=3e-2)


@pytest.mark.first(1)
@every_optimizer
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"], indirect=True)
def test_resumes_in_the_middle_of_the_schedule(name, policy, regression, recurrence, tmp_path):
    whole, half = (regression.model(build_for(policy, name)) for _ in range(2))
    regression.fit(whole, epochs=2)
    regression.fit(half)
    half.save(tmp_path / "half.keras")
    resumed = keras.saving.load_model(tmp_path / "half.keras")
    inner = getattr(resumed.optimizer, "inner_optimizer", resumed.optimizer)
    assert type(inner) is getattr(optimizers, name)
    assert inner.get_config() == build(name, name=inner.name).get_config()
    assert_weights(resumed, half.get_weights(), rtol=1e-7)
    regression.fit(resumed)
    assert_weights(resumed, whole.get_weights(), rtol=1e-7)
    if policy == "float32":
        # Four of the last eight steps are at the end of the schedule.
        assert_weights(whole, regression.numpy_weights(recurrence(name), steps=16))


@every_optimizer
def test_config(name):
    optimizer = build(name, clipnorm=1.0, name="mine")
    for again in (
        type(optimizer).from_config(optimizer.get_config()),
        # Keras has classes of the same names.
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
    ):
        assert type(again) is type(optimizer)
        assert again.get_config() == optimizer.get_config()
        assert again.exclude is optimizers.is_bias_or_norm
        np.testing.assert_allclose(again.weight_decay, DECAY[0], rtol=1e-6)
    key = f"keras_sslmeta.optimizers>{name}"
    assert keras.saving.get_registered_name(type(optimizer)) == key


@every_optimizer
def test_config_of_plain_numbers(name):
    optimizer = getattr(optimizers, name)(learning_rate=0.1, weight_decay=np.float32(0.5))
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.weight_decay == 0.5 and type(again.weight_decay) is float


@every_optimizer
@pytest.mark.parametrize("value", [-0.1, float("nan"), "0.1", True, lambda: 0.1])
def test_refused_weight_decays(name, value):
    with pytest.raises(ValueError, match="`weight_decay` must be a number from 0") as error:
        getattr(optimizers, name)(learning_rate=0.1, weight_decay=value)
    assert repr(value) in str(error.value)


@every_optimizer
@pytest.mark.parametrize("value", ["bias", ["bias"], True])
def test_refused_exclusions(name, value):
    with pytest.raises(ValueError, match="`exclude` must be None or a function") as error:
        getattr(optimizers, name)(learning_rate=0.1, exclude=value)
    assert repr(value) in str(error.value)
