"""Gradients of a loss over a whole batch, at the memory of a part of it (Gao et al. 2021).

A loss that compares samples needs all their embeddings at once, but no more than the embeddings. So the
model runs three times over the batch, part by part:

1. forward, to get the embeddings Z and nothing else;
2. the loss on all of Z, and ∂L/∂Z;
3. forward again, with a gradient: of Σ ⟨Z_k, ∂L/∂Z_k⟩ for each part k, summed over the parts.

What a part drew at random (dropout, augmentation) it draws again in its second run, since random states go
through the loop as tensors; other state, such as moving statistics, moves once.

Reference:
    Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    RepL4NLP 2021, Sec. 3. https://arxiv.org/abs/2101.06983
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import stateful_draws
from keras_sslmeta.mechanisms.state_recorder import StateRecorder, holds


class GradientCache:
    """A model's pass in training mode over a batch, part by part.

    Args:
        model: a built model.
        call: from samples to the embeddings that the loss needs, `(samples, …)`, in training mode.
        x: the batch, a nest of tensors `(batch, …)`.
        size: samples a part; the last part may hold fewer.

    Raises:
        ValueError: if the model draws random numbers that cannot be drawn again.
    """

    def __init__(self, model: keras.Model, call: Callable[[Any], tf.Tensor], x: Any, size: int):
        self.call, self.x, self.size = call, x, size
        self.layers = [
            layer for layer in model._flatten_layers() if getattr(layer, "synchronized", False)
        ]
        self.trained = list(model.trainable_variables)
        self.spec, recorder = self._traced(model)
        self.moved = [v for v in recorder.assigned if not holds(self.trained, v)]
        self.fixed = [v for v in recorder.read if not holds([*self.trained, *self.moved], v)]
        # Tensors: variables that a loop captures would be in the way of distribution.
        self.values = [tf.convert_to_tensor(v) for v in self.trained]
        self.constants = [tf.convert_to_tensor(v) for v in self.fixed]
        rows = keras.tree.flatten(x)[0]
        self.rows = rows.shape[0] if rows.shape[0] is not None else tf.shape(rows)[0]
        # An empty share is one part, of no samples.
        self.known_rows = rows.shape[0]
        self.parts = (self.rows + size - 1) // size
        if isinstance(self.parts, int):
            self.parts = max(self.parts, 1)
        else:
            self.parts = tf.maximum(self.parts, 1)
        # XLA wants parts of one known size.
        self.are_equal = isinstance(self.rows, int) and self.rows % size == 0 and self.rows > 0

    def forward(self) -> "tuple[tf.Tensor, tf.Tensor]":
        """The embeddings of all samples, and the mean of what layers added to the loss.

        State that the model moves is assigned to once.
        """
        state = [tf.convert_to_tensor(v) for v in self.moved]
        kept = [
            tf.TensorArray(x.dtype, self.parts, element_shape=x.shape, clear_after_read=False)
            for x in state
        ]
        rows = [self.size if self.are_equal else None, *self.spec.shape[1:]]
        embeddings = tf.TensorArray(
            self.spec.dtype, self.parts, element_shape=rows, infer_shape=self.are_equal
        )

        def body(k, state, kept, embeddings, added):
            kept = [array.write(k, x) for array, x in zip(kept, state, strict=True)]
            z, more, state = self._pass(k, self.values, state)
            return k + 1, state, kept, embeddings.write(k, z), added + more

        _, state, self.kept, embeddings, added = tf.while_loop(
            lambda k, *_: k < self.parts,
            body,
            (0, state, kept, embeddings, tf.zeros([])),
            parallel_iterations=1,
            maximum_iterations=self.parts,
        )
        for variable, value in zip(self.moved, state, strict=True):
            variable.assign(value)
        if self.are_equal:
            z = tf.reshape(embeddings.stack(), [self.rows, *self.spec.shape[1:]])
        else:
            z = tf.ensure_shape(embeddings.concat(), self.spec.shape)
        return tf.stop_gradient(z), tf.stop_gradient(added)

    def backward(self, cotangent: tf.Tensor, of_added: "tf.Tensor | float") -> list[tf.Tensor]:
        """Gradients with respect to the trained variables.

        Args:
            cotangent: ∂L/∂Z.
            of_added: factor of what layers added to the loss.
        """

        def body(k, sums):
            with tf.GradientTape() as tape:
                tape.watch(self.values)
                z, added, _ = self._pass(k, self.values, [array.read(k) for array in self.kept])
                # In half precision the sum could overflow.
                wide = tf.float64 if z.dtype == tf.float64 else tf.float32
                product = tf.cast(z, wide) * tf.cast(self._part(cotangent, k), wide)
                target = tf.reduce_sum(product) + tf.cast(of_added * added, wide)
            gradients = tape.gradient(target, self.values, unconnected_gradients="zero")
            return k + 1, [
                x + tf.convert_to_tensor(g) for x, g in zip(sums, gradients, strict=True)
            ]

        _, sums = tf.while_loop(
            lambda k, *_: k < self.parts,
            body,
            (0, [tf.zeros_like(x) for x in self.values]),
            parallel_iterations=1,
            maximum_iterations=self.parts,
        )
        return list(sums)

    def _pass(self, k, values, state):
        """Embeddings of part k, its share of what layers added to the loss, and the state after it."""
        mapping = [
            *zip(self.trained, values, strict=True),
            *zip(self.fixed, self.constants, strict=True),
            *zip(self.moved, state, strict=True),
        ]
        part = keras.tree.map_structure(lambda x: self._part(x, k), self.x)
        scope = keras.StatelessScope(state_mapping=mapping, collect_losses=True)
        with scope, _on_their_own(self.layers):
            z = self.call(part)
            added = [tf.cast(tf.reduce_sum(x), tf.float32) for x in scope.losses]
            state = [tf.convert_to_tensor(scope.get_current_value(v)) for v in self.moved]
        share = tf.shape(z)[0] / tf.maximum(self.rows, 1)
        return z, tf.add_n(added) * tf.cast(share, tf.float32) if added else tf.zeros([]), state

    def _part(self, x, k):
        if self.are_equal:
            begin = [k * self.size, *[0] * (len(x.shape) - 1)]
            part = tf.slice(x, begin, [self.size, *tf.unstack(tf.shape(x)[1:])])
            return tf.ensure_shape(part, [self.size, *x.shape[1:]])
        return x[k * self.size : tf.minimum((k + 1) * self.size, self.rows)]

    def _traced(self, model):
        """What a pass gives and touches: traced once, and not run."""
        found: list[Any] = []

        def one_pass(*x):
            with StateRecorder() as recorder, _on_their_own(self.layers):
                z = self.call(keras.tree.pack_sequence_as(self.x, x))
            found[:] = [z, recorder]

        specs = [
            tf.TensorSpec([self.size, *x.shape[1:]], x.dtype) for x in keras.tree.flatten(self.x)
        ]
        traced = tf.function(one_pass, autograph=False).get_concrete_function(*specs)
        draws = stateful_draws.of(traced.graph)
        if draws:
            raise ValueError(
                "A part of a batch runs twice, and layers must draw the same both times: use `keras.random` "
                "with a `keras.random.SeedGenerator` in them, in place of `tf.random`. "
                f"Received: {type(model).__name__} with the operations {', '.join(draws)}"
            )
        z, recorder = found
        return tf.TensorSpec([None, *z.shape[1:]], z.dtype), recorder


@contextlib.contextmanager
def _on_their_own(layers: Sequence[Any]):
    """Synchronised batch normalisation by its own part's statistics: replicas do not meet in a loop."""
    for layer in layers:
        layer.synchronized = False
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = True
