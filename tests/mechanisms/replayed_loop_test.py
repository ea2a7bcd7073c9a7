import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.mechanisms.replayed_loop import replay

RNG = np.random.default_rng(0)
START = RNG.normal(size=3)
MATRIX = RNG.normal(size=(2, 2))
COUNTER = np.int32(1)
SHIFT, MIX = RNG.normal(size=3), RNG.normal(size=(3, 3))


def step(k, carried, constants):
    """Every tensor depends on the others; the integer sits between the floats."""
    w, n, u = carried
    shift, mix = constants
    t = tf.cast(k + 1, tf.float64)
    new_w = tf.tanh(tf.linalg.matvec(mix, w) + shift * t) + 0.1 * tf.cast(n, tf.float64) * w
    new_u = 0.9 * u + tf.sin(w[:2, None] * u) * shift[0]
    return [new_w, n + 2, new_u]


def unrolled(carried, constants, steps):
    carried = list(carried)
    seen = [carried]
    for k in range(steps):
        carried = step(tf.constant(k), carried, constants)
        seen.append(carried)
    return carried, [tf.stack([s[i] for s in seen]) for i in (0, 2)]


def replayed(carried, constants, steps, trajectory=True):
    return replay(step, carried, constants, steps, trajectory)


def objective(loop, inputs, steps, trajectory):
    """A scalar of all states, each with a weight of its own, and the integer."""
    w, u, shift, mix = inputs
    carried, stacks = loop([w, tf.constant(COUNTER), u], [shift, mix], steps)
    value = tf.reduce_sum(carried[0] ** 2) + tf.reduce_sum(tf.sin(carried[2]))
    if trajectory:
        weights = tf.cast(tf.range(1, steps + 2), tf.float64)
        value += tf.reduce_sum(stacks[0] ** 3 * weights[:, None])
        value += tf.reduce_sum(stacks[1] * weights[:, None, None] ** 2)
    return value, carried[1]


def value_and_gradients(loop, inputs, steps, trajectory):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value, counter = objective(loop, inputs, steps, trajectory)
    return value, counter, tape.gradient(value, inputs, unconnected_gradients="zero")


def tensors():
    return [tf.constant(x) for x in (START, MATRIX, SHIFT, MIX)]


def eager(loop, steps, trajectory):
    return value_and_gradients(loop, tensors(), steps, trajectory)


def in_function(loop, steps, trajectory):
    run = tf.function(lambda *x: value_and_gradients(loop, list(x), steps, trajectory))
    return run(*tensors())


def compiled(loop, steps, trajectory):
    run = tf.function(
        lambda *x: value_and_gradients(loop, list(x), steps, trajectory), jit_compile=True
    )
    return run(*tensors())


def tape_outside_function(loop, steps, trajectory):
    run = tf.function(lambda *x: objective(loop, list(x), steps, trajectory))
    inputs = tensors()
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value, counter = run(*inputs)
    return value, counter, tape.gradient(value, inputs, unconnected_gradients="zero")


CONTEXTS = [eager, in_function, compiled, tape_outside_function]


@pytest.mark.first(6)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_equals_an_unrolled_loop(steps, trajectory, context):
    def loop(carried, constants, steps):
        carried, stacks = replayed(carried, constants, steps, trajectory)
        assert (stacks is not None) == trajectory
        return carried, stacks

    value, counter, gradients = context(loop, steps, trajectory)
    expected, of_counter, expected_gradients = eager(unrolled, steps, trajectory)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert counter == of_counter == COUNTER + 2 * steps
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("in_graph", [False, True])
def test_within_map_fn_with_the_tape_outside(in_graph):
    starts = tf.constant(RNG.normal(size=(4, 3)))
    others = tensors()[1:]

    def total(loop, mapped):
        def one(w):
            return objective(loop, [w, *others], 3, True)[0]

        if mapped:
            return tf.reduce_sum(tf.map_fn(one, starts) * [1.0, 2.0, 3.0, 4.0])
        return tf.add_n([one(w) * (i + 1) for i, w in enumerate(tf.unstack(starts))])

    def gradients(loop, mapped):
        with tf.GradientTape() as tape:
            tape.watch([starts, *others])
            value = total(loop, mapped)
        return tape.gradient(value, [starts, *others])

    run = tf.function(gradients) if in_graph else gradients
    for got, wanted in zip(run(replayed, True), gradients(unrolled, False), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_the_trajectory_alone_and_the_last_state_alone():
    """A cotangent for one of the outputs only: the others' are zeros, not missing."""
    for pick in (lambda c, s: tf.reduce_sum(s[0][1] ** 2), lambda c, s: tf.reduce_sum(c[2])):
        results = []
        for loop in (replayed, unrolled):
            w, u, shift, mix = tensors()
            with tf.GradientTape() as tape:
                tape.watch([w, u, shift, mix])
                value = pick(*loop([w, tf.constant(COUNTER), u], [shift, mix], 4))
            results.append(tape.gradient(value, [w, u, shift, mix], unconnected_gradients="zero"))
        for got, wanted in zip(*results, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_integers_alone_are_stepped():
    carried, _ = replay(lambda k, carried, _: [carried[0] + k], [tf.constant(0)], [], 4)
    assert carried[0] == 6


def test_no_constants_and_one_tensor():
    x = tf.constant(0.7)
    with tf.GradientTape() as tape:
        tape.watch(x)
        (y,), _ = replay(lambda k, carried, _: [tf.sin(carried[0])], [x], [], 2)
    np.testing.assert_allclose(y, np.sin(np.sin(0.7)), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(y, x), np.cos(np.sin(0.7)) * np.cos(0.7), rtol=1e-6)


def test_second_derivatives_are_right_or_refused():
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            (y,), _ = replay(lambda k, c, _: [tf.sin(c[0])], [x], [], 2)
        return tape.gradient(y, x)

    x = tf.constant(0.7, tf.float64)
    numeric = (gradient(x + 1e-5) - gradient(x - 1e-5)) / 2e-5
    try:
        with tf.GradientTape() as tape:
            tape.watch(x)
            first = gradient(x)
        second = tape.gradient(first, x, unconnected_gradients="zero")
    except (LookupError, NotImplementedError, ValueError):
        return
    np.testing.assert_allclose(second, numeric, rtol=1e-6)


def nodes(graph_def):
    return len(graph_def.node) + sum(len(f.node_def) for f in graph_def.library.function)


def test_the_graph_does_not_grow_with_steps():
    def size(steps):
        run = tf.function(lambda *x: value_and_gradients(replayed, list(x), steps, True))
        return nodes(run.get_concrete_function(*tensors()).graph.as_graph_def())

    assert size(3) == size(30)
