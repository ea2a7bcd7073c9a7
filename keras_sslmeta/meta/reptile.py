"""Reptile (Nichol, Achiam and Schulman 2018)."""

import dataclasses

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import (
    arguments,
    followed_state,
    inner_optimizers,
    random_state,
)
from keras_sslmeta.mechanisms.adaptation import Adaptation
from keras_sslmeta.meta.adapting import AdaptingModel


class _Displacement(Adaptation):
    """Adaptation whose gradient is the way that the weights went, back."""

    def _learning(self, part, learnt, queries, factor):
        start = learnt.start(learnt.tensors)
        adapted, _, answers = self._answers(part, start)
        moved = [w0 - w for w0, w in zip(start.adapted, adapted.weights, strict=True)]
        # What each task counts: the last factor is that of a mean over tasks.
        gradients = [tf.cast(factor[-1], w.dtype) * w for w in moved]
        gradients += [tf.zeros_like(x) for x in learnt.tensors[len(moved) :]]
        return self._followed(part, start, adapted, answers, queries, gradients)


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class Reptile(AdaptingModel):
    r"""Reptile: weights moved towards what each task's own training makes of them.

    Each task is trained on from θ, by `inner_steps` steps on small batches of its support set, to φ, and

    ```
    θ ← θ + ε · mean over tasks of (φ − θ)
    ```

    which is a step of `compile`'s optimiser with θ − φ for a gradient: `keras.optimizers.SGD(ε)` is the
    paper's. With one inner step of SGD on the whole support set it is SGD on the support loss.

    **When to choose it**: where MAML is too dear; it needs no second derivative and no query set. Episodes
    for meta-training should have more shots than those for testing (the paper: 10 or 15 for 1 or 5). The
    meta-step must fall to 0 at the end, as in the example, or the last tasks weigh too much.

    Queries are answered, and measured, after adaptation, as by MAML, and have no part in the gradient;
    neither has their `sample_weight`.

    Args:
        model: any `keras.Model`, trained in place.
        inner_steps: steps a task in meta-training. Defaults to 5 (the paper, 5-way Omniglot).
        inner_learning_rate: of the inner optimiser. Defaults to 1e-3 (the paper, Omniglot).
        inner_batch_size: samples an inner step takes. The support set is shuffled, gone through, and shuffled
            again. Defaults to 10 (the paper, 5-way Omniglot); None, or the size of the support set or more,
            for all of it in each step.
        test_inner_steps: steps in `evaluate`, `predict` and `adapt`. Defaults to 50 (the paper).
        inner_optimizer: as in `MAML`. Defaults to None: Adam with β₁ = 0 at `inner_learning_rate` (the
            paper). Every task of a batch starts from the same second moments, and their mean over tasks goes
            on to the next batch, in testing too.
        seed: of the batches. Defaults to None: from Python's generator.
        **kwargs: of `MAML`; not `second_order`.

    Returns:
        As `MAML`.

    Raises:
        ValueError: as `MAML`; if `inner_batch_size` is not None or a positive integer.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(40, "relu"), keras.layers.Dense(1)])
    >>> reptile = ksm.Reptile(network, inner_learning_rate=0.01, test_inner_steps=10)
    >>> epsilon = keras.optimizers.schedules.PolynomialDecay(1.0, decay_steps=2000, end_learning_rate=0.0)
    >>> reptile.compile(keras.optimizers.SGD(epsilon), loss="mse")
    >>> history = reptile.fit(ksm.data.sinusoids(seed=0).batch(5), steps_per_epoch=2, verbose=0)

    Reference:
        Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018, Algorithm 2 and Table 3.
        https://arxiv.org/abs/1803.02999
    """

    owns_weights_for_each = True

    def __init__(
        self,
        model,
        inner_steps: int = 5,
        inner_learning_rate: float = 1e-3,
        inner_batch_size: int | None = 10,
        test_inner_steps: int | None = 50,
        inner_optimizer=None,
        seed: int | None = None,
        **kwargs,
    ):
        if "second_order" in kwargs:
            raise ValueError(
                "`second_order` must be left out: Reptile differentiates no inner step. "
                f"Received: second_order={kwargs['second_order']!r}"
            )
        arguments.count("inner_steps", inner_steps)
        self.inner_batch_size = (
            None
            if inner_batch_size is None
            else arguments.count("inner_batch_size", inner_batch_size)
        )
        self.seed = arguments.seed(seed)
        super().__init__(
            model,
            inner_steps=inner_steps,
            inner_learning_rate=inner_learning_rate,
            test_inner_steps=test_inner_steps,
            inner_optimizer=inner_optimizer,
            second_order=False,
            **kwargs,
        )

    def _inner_step(self):
        if self.inner_optimizer is None:
            return inner_optimizers.Adam(beta_1=0.0), self.inner_learning_rate
        return super()._inner_step()

    def build_method(self):
        super().build_method()
        adapted = self._network().adapted
        moments = self._inner_step()[0].start([tf.zeros(v.shape, v.dtype) for v in adapted])
        self.moments = [
            self.add_weight(
                shape=x.shape,
                initializer="zeros",
                dtype=x.dtype.name,
                trainable=False,
                name=f"moment_{i}",
            )
            for i, x in enumerate(moments)
        ]
        self.inner_iterations = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="inner_iterations"
        )

    def compile(  # type: ignore[override]
        self, optimizer=None, loss=None, **kwargs
    ):
        """As `keras.Model.compile`.

        The optimiser defaults to `keras.optimizers.SGD(1.0)`, a meta-step of 1, which should fall to 0.
        """
        super().compile(
            keras.optimizers.SGD(1.0) if optimizer is None else optimizer, loss, **kwargs
        )

    def start_of(self, start, weights, steps):
        order = None
        if self.inner_batch_size is not None:
            draws = tf.stack([self.seed % 2**31, self.inner_iterations.value])

            def order(task, samples):
                return _batches(samples, self.inner_batch_size, steps, draws, task)

        return dataclasses.replace(
            start,
            optimizer=[tf.convert_to_tensor(m.value) for m in self.moments],
            steps_before=tf.convert_to_tensor(self.inner_iterations.value),
            order=order,
        )

    adaptation_class = _Displacement

    def after_step(self, adaptation, results, tasks):
        super().after_step(adaptation, results, tasks)
        means = followed_state.mean_over_tasks(results.optimizer, tasks)
        for moment, mean in zip(self.moments, means, strict=True):
            moment.assign(mean)
        self.inner_iterations.assign_add(self.inner_steps)

    def get_config(self):
        config = super().get_config()
        del config["second_order"]
        return {**config, "inner_batch_size": self.inner_batch_size, "seed": self.seed}


def _batches(samples, size, steps, seed, task):
    """Rows of each step's batch, `(steps, size)`: the support set shuffled, over and over."""
    if isinstance(samples, int) and samples <= size:
        return None
    of_task = random_state.fold_in(seed, task)

    def shuffled(i):
        of_pass = random_state.fold_in(of_task, i)
        # Integers: XLA draws other floats.
        noise = tf.random.stateless_uniform(
            [samples], of_pass, minval=0, maxval=2**31 - 1, dtype=tf.int32, alg="philox"
        )
        return tf.argsort(noise, stable=True)

    if isinstance(samples, int):
        passes = -(-steps * size // samples)
        rows = tf.concat([shuffled(i) for i in range(passes)], axis=0)
    else:  # Episodes of several sizes: Keras has forgotten the number.
        size = tf.minimum(size, samples)
        passes = -(-steps * size // samples)
        rows = tf.reshape(tf.map_fn(shuffled, tf.range(passes)), [-1])
    return tf.reshape(rows[: steps * size], [steps, size])
