"""A loop that can be differentiated at the memory of one of its steps.

``carried ← step(k, carried, constants)`` for k = 0 … steps − 1. TensorFlow's own gradient of a loop keeps
every intermediate of every step. This one keeps what each step was *given*, and runs each step again, last
to first, to pull the cotangents through it:

    v_k = (∂ step_k / ∂ carried)ᵀ v_{k+1}          c ← c + (∂ step_k / ∂ constants)ᵀ v_{k+1}

If a step is a gradient step, ``θ − α ∇L(θ)``, then v_k = v_{k+1} − α H v_{k+1}: a Hessian-vector product a
step, and exact second order. The graph holds one step, whatever their number.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf


def replay(
    step: Callable,
    carried: Sequence[tf.Tensor],
    constants: Sequence[tf.Tensor],
    steps: int,
    trajectory: bool = False,
) -> "tuple[list[tf.Tensor], list[tf.Tensor] | None]":
    """`carried` after `steps` steps, differentiable in `carried` and `constants`.

    Args:
        step: pure function ``(k, carried, constants) → carried``; k is an int32 scalar. What it captures
            besides counts as constant and gets no gradient; variables must be read into tensors before.
        carried: tensors that a step changes, of shapes and dtypes that it keeps. Integers (random
            states, counters) are replayed too, and have no gradient.
        constants: floating-point tensors that steps read, and that get a gradient.
        steps: number of steps, from 0.
        trajectory: whether the floating-point ones as they were before each step and after the last are
            wanted too, each with a cotangent of its own (losses on every step).

    Returns:
        `(carried, trajectory)`: the latter is None, or has for each floating-point tensor of `carried` a
        stack `(steps + 1, …)`.
    """
    carried, constants = list(carried), list(constants)
    is_float = [x.dtype.is_floating for x in carried]
    integers = [x for x, floating in zip(carried, is_float, strict=True) if not floating]
    number = len(carried) - len(integers)
    integers_after: list[tf.Tensor] = []

    def joined(floats, integers):
        floats, integers = iter(floats), iter(integers)
        return [next(floats) if floating else next(integers) for floating in is_float]

    def floats_of(tensors):
        return [x for x, floating in zip(tensors, is_float, strict=True) if floating]

    @tf.custom_gradient
    def run(*inputs):
        # Constants within: cotangents reach them through `gradient` alone.
        within = [tf.stop_gradient(x) for x in inputs]
        held = within[number:]
        after, kept = _forward(step, joined(within[:number], integers), held, steps)
        integers_after.extend(
            x for x, floating in zip(after, is_float, strict=True) if not floating
        )
        last = floats_of(after)
        stacks = []
        if trajectory:
            stacks = [
                tf.concat([before.stack(), x[None]], axis=0)
                for before, x in zip(floats_of(kept), last, strict=True)
            ]

        def gradient(*upstream):
            # Of embeddings, TensorFlow hands over slices of a gradient.
            cotangents = [tf.convert_to_tensor(v) for v in upstream]
            of_last, of_stacks = cotangents[:number], cotangents[number:]
            if trajectory:
                of_last = [v + s[steps] for v, s in zip(of_last, of_stacks, strict=True)]
            gradients = _backward(step, kept, held, steps, of_last, of_stacks, floats_of)
            return _once(gradients, (*inputs, *cotangents))

        return [*last, *stacks] if trajectory else last, gradient

    if number == 0:
        return _forward(step, carried, constants, steps)[0], [] if trajectory else None
    if steps == 0:
        stacks = [x[None] for x in floats_of(carried)] if trajectory else None
        return carried, stacks
    # TensorFlow loses track of the inputs of a `tf.function` unless each is a tensor of its own.
    outputs = run(*(tf.identity(x) for x in (*floats_of(carried), *constants)))
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    return joined(outputs[:number], integers_after), outputs[number:] if trajectory else None


def _once(gradients, sources):
    """The gradients; to differentiate them again is refused, since nothing else would be right."""

    @tf.custom_gradient
    def identity(*tensors):
        def refuse(*_):
            raise NotImplementedError(
                "The gradient through more than one inner step has no derivative of its own here."
            )

        return [tf.identity(x) for x in tensors[: len(gradients)]], refuse

    return identity(*gradients, *sources)


def _forward(step, carried, constants, steps):
    """`carried` after the last step, and arrays of what every step was given."""
    arrays = [
        tf.TensorArray(x.dtype, steps, element_shape=x.shape, clear_after_read=False)
        for x in carried
    ]

    def body(k, carried, arrays):
        arrays = [array.write(k, x) for array, x in zip(arrays, carried, strict=True)]
        after = [
            tf.ensure_shape(new, old.shape)
            for new, old in zip(step(k, carried, constants), carried, strict=True)
        ]
        return k + 1, after, arrays

    _, carried, arrays = tf.while_loop(
        lambda k, *_: k < steps,
        body,
        (0, carried, arrays),
        parallel_iterations=1,
        maximum_iterations=steps,
    )
    return carried, arrays


def _backward(step, kept, constants, steps, cotangents, of_stacks, floats_of):
    """The gradients with respect to `carried`'s floats and to the constants."""
    number = len(cotangents)

    def body(k, cotangents, sums):
        given = [array.read(k) for array in kept]
        inputs = [*floats_of(given), *constants]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            after = floats_of(step(k, given, constants))
        gradients = tape.gradient(
            after, inputs, output_gradients=cotangents, unconnected_gradients="zero"
        )
        gradients = [tf.convert_to_tensor(x) for x in gradients]
        before = gradients[:number]
        if of_stacks:
            before = [v + stack[k] for v, stack in zip(before, of_stacks, strict=True)]
        sums = [total + x for total, x in zip(sums, gradients[number:], strict=True)]
        return k - 1, before, sums

    # TensorFlow would run the first step again as soon as it can: while the intermediates of what comes
    # after the loop are still there.
    with tf.control_dependencies(cotangents):
        last = tf.constant(steps - 1) + 0
    _, cotangents, sums = tf.while_loop(
        lambda k, *_: k >= 0,
        body,
        (last, cotangents, [tf.zeros_like(x) for x in constants]),
        parallel_iterations=1,
        maximum_iterations=steps,
    )
    return [*cotangents, *sums]
