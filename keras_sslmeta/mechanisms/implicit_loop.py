"""Adaptation whose derivative is that of the point it leads to, whatever the way there.

Steps minimise ``F(φ) = L(φ, w) + λ/2 ‖φ − θ‖²``. Where ``∇F(φ) = 0``, with H the Hessian of L in φ,

    ∂φ/∂θ = λ (H + λ I)⁻¹          ∂φ/∂w = −(H + λ I)⁻¹ ∂²L/∂φ∂w

so that a cotangent g becomes ``λ v`` for θ and ``−(∂²L/∂φ∂w)ᵀ v`` for w, with ``(H + λ I) v = g``, solved by
conjugate gradients on Hessian-vector products.
"""

import tensorflow as tf

from keras_sslmeta.mechanisms.inner_loop import InnerLoop


class ImplicitLoop(InnerLoop):
    """Gradient steps on a proximal loss, with the implicit derivative.

    Args:
        *arguments: of `InnerLoop`.
        solver_steps: number of steps of conjugate gradients.
        **keywords: of `InnerLoop`; `proximal` is λ.
    """

    def __init__(self, *arguments, solver_steps: int, **keywords):
        super().__init__(*arguments, **keywords)
        self.solver_steps = solver_steps

    def _carried(self, task, steps):
        if steps == 0:
            return task.start()
        number = len(task.begin.adapted)
        rest: list[tf.Tensor] = []

        @tf.custom_gradient
        def run(*inputs):
            constants = [tf.stop_gradient(x) for x in inputs[number:]]
            first = [*map(tf.stop_gradient, inputs[:number]), *task.start()[number:]]
            _, after = tf.while_loop(
                lambda k, *_: k < steps,
                lambda k, carried: (k + 1, task.step(k, carried, constants)),
                (0, first),
                parallel_iterations=1,
                maximum_iterations=steps,
            )
            after = [tf.stop_gradient(x) for x in after]
            rest.extend(after[number:])

            def gradient(*upstream):
                cotangents = [tf.convert_to_tensor(g) for g in upstream]
                return self._implicit(task, after, constants, cotangents, steps)

            return after[:number], gradient

        weights = run(*(tf.identity(x) for x in (*task.begin.adapted, *task.constants)))
        return [*weights, *(tf.stop_gradient(x) for x in rest)]

    def _implicit(self, task, after, constants, upstream, steps):
        """The cotangents of θ and of the constants."""
        weights, number = after[: len(upstream)], len(upstream)

        def products(vector, sources):
            """The derivative of ``∇L · vector`` in the sources."""
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*weights, *constants])
                gradients = task.gradients(steps, [*weights, *after[number:]], constants)
                along = _dot(gradients, vector)
            return tape.gradient(along, sources, unconnected_gradients="zero")

        def of_system(vector):
            of_weights = products(vector, weights)
            return [h + self.proximal * v for h, v in zip(of_weights, vector, strict=True)]

        # The system is linear: half precision would overflow at the scale of the whole loss.
        size = tf.sqrt(_dot(upstream, upstream))
        units = [tf.math.divide_no_nan(g, tf.cast(size, g.dtype)) for g in upstream]
        unit = _conjugate_gradients(of_system, units, self.solver_steps)
        of_constants = products(unit, constants) if constants else []
        solution, of_constants = (
            [tf.convert_to_tensor(x) * tf.cast(size, x.dtype) for x in part]
            for part in (unit, of_constants)
        )
        return [*(self.proximal * v for v in solution), *(-x for x in of_constants)]


def _conjugate_gradients(product, target, steps):
    """x with ``product(x) = target`` (Hestenes and Stiefel 1952), after so many steps from zero."""

    def body(k, x, residual, direction, square):
        image = product(direction)
        length = tf.math.divide_no_nan(square, _dot(direction, image))
        x = _plus(x, direction, length)
        residual = _plus(residual, image, -length)
        new = _dot(residual, residual)
        direction = _plus(residual, direction, tf.math.divide_no_nan(new, square))
        return k + 1, x, residual, direction, new

    zeros = [tf.zeros_like(g) for g in target]
    _, x, _, _, _ = tf.while_loop(
        lambda k, *_: k < steps,
        body,
        (0, zeros, list(target), list(target), _dot(target, target)),
        parallel_iterations=1,
        maximum_iterations=steps,
    )
    return x


def _dot(a, b):
    return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b, strict=True)])


def _plus(a, b, factor):
    return [x + tf.cast(factor, x.dtype) * y for x, y in zip(a, b, strict=True)]
