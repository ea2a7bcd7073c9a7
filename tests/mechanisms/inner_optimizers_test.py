import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms import inner_optimizers
from keras_sslmeta.mechanisms.inner_optimizers import from_keras

SGD, Adam, RMSprop = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.RMSprop
SHAPES = [(3, 2), (4,), ()]
OPTIMIZERS = {
    "sgd": lambda: SGD(0.3),
    "momentum": lambda: SGD(0.3, momentum=0.8),
    "nesterov": lambda: SGD(0.3, momentum=0.8, nesterov=True),
    "adam": lambda: Adam(0.1),
    "adam of other betas": lambda: Adam(0.1, beta_1=0.5, beta_2=0.7, epsilon=1e-2),
    "rmsprop": lambda: RMSprop(0.1),
    "rmsprop of another rho": lambda: RMSprop(0.1, rho=0.5, epsilon=1e-2),
    "clipped values": lambda: SGD(0.3, momentum=0.8, clipvalue=0.7),
    "clipped norms": lambda: SGD(0.3, clipnorm=1.0),
    "a clipped norm of all": lambda: Adam(0.1, global_clipnorm=1.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-7)])
def test_equals_keras_step_for_step(name, dtype, tolerance):
    rng = np.random.default_rng(0)
    theirs = OPTIMIZERS[name]()
    variables = [
        keras.Variable(rng.normal(size=shape).astype(dtype), dtype=dtype) for shape in SHAPES
    ]
    theirs.build(variables)
    ours, rate = from_keras(OPTIMIZERS[name]())
    weights = [tf.convert_to_tensor(v.value) for v in variables]
    state = ours.start(weights)
    for k in range(6):
        # Of sizes from tiny to large, and one that is zero at first.
        gradients = [
            tf.constant(rng.normal(size=shape) * 10.0 ** (k - 3) * (i < 2 or k > 2), dtype)
            for i, shape in enumerate(SHAPES)
        ]
        rates = [tf.constant(rate, dtype)] * len(weights)
        weights, state = ours.step(tf.constant(k), weights, gradients, state, rates)
        theirs.apply(gradients, variables)
        for got, wanted in zip(weights, variables, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, wanted.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_of_its_weights_shape(name):
    ours, _ = from_keras(OPTIMIZERS[name]())
    weight, gradient = tf.constant([1.0, 2.0]), tf.constant([0.5, -0.25])
    both, _ = ours.step(
        tf.constant(0), [weight], [gradient], ours.start([weight]), [tf.constant([0.1, 0.7])]
    )
    for i, rate in enumerate([0.1, 0.7]):
        one, _ = ours.step(
            tf.constant(0), [weight], [gradient], ours.start([weight]), [tf.constant(rate)]
        )
        np.testing.assert_allclose(both[0][i], one[0][i], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_derivatives_are_finite_where_gradients_are_zero(name):
    ours, rate = from_keras(OPTIMIZERS[name]())
    weight = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(weight)
        gradient = weight * [0.0, 1.0]
        (after,), _ = ours.step(
            tf.constant(0), [weight], [gradient], ours.start([weight]), [tf.constant(rate)]
        )
    of_weight = tape.gradient(after, weight)
    assert np.isfinite(of_weight).all()
    np.testing.assert_allclose(after[0], 1.0)


def test_what_a_keras_optimizer_says_is_kept():
    optimizer, rate = from_keras(SGD(0.25, momentum=0.5, nesterov=True))
    assert (optimizer.momentum, optimizer.nesterov, rate) == (0.5, True, 0.25)
    optimizer, rate = from_keras(Adam(0.25, beta_1=0.5, beta_2=0.75, epsilon=1e-3))
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.75, 1e-3)
    assert isinstance(from_keras(RMSprop())[0], inner_optimizers.RMSprop)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: keras.optimizers.Lion(), "`inner_optimizer` must be.*SGD, Adam or RMSprop.*Lion"),
        (lambda: keras.optimizers.AdamW(), "`inner_optimizer` must be.*Received: .*AdamW"),
        (lambda: "sgd", "`inner_optimizer` must be.*Received: 'sgd'"),
        (lambda: SGD(weight_decay=0.1), "must not use `weight_decay`.*weight_decay=0.1"),
        (lambda: Adam(use_ema=True), "must not use `use_ema`"),
        (lambda: Adam(amsgrad=True), "must not use `amsgrad`.*amsgrad=True"),
        (lambda: SGD(gradient_accumulation_steps=2), "`gradient_accumulation_steps`"),
        (lambda: SGD(loss_scale_factor=2.0), "`loss_scale_factor`"),
        (lambda: RMSprop(centered=True), "must not use `centered`"),
        (lambda: RMSprop(momentum=0.5), "must not use `momentum` in RMSprop.*momentum=0.5"),
        (
            lambda: SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
            "must have a constant learning rate.*Received",
        ),
    ],
)
def test_refuses_what_the_inner_loop_lacks(optimizer, message):
    with pytest.raises(ValueError, match=message):
        from_keras(optimizer())
