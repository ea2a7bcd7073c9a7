"""MAML++ (Antoniou, Edwards and Storkey 2019)."""

import dataclasses

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, cross_replica
from keras_sslmeta.mechanisms.adaptation import Results
from keras_sslmeta.meta.adapting import AdaptingModel
from keras_sslmeta.meta.episodic import number_of_tasks


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class MAMLPlusPlus(AdaptingModel):
    r"""MAML++: MAML with what its training lacks in stability and speed.

    * **Rates learnt per step and per tensor**: `θ_{k+1} = θ_k − α_k ∇ L_support(θ_k)`, a scalar α for each
      step and each adapted weight tensor.
    * **Multi-step loss**: at first the meta-loss is Σ_k w_k L_query(θ_k) over the K steps. The w are equal
      at the start, 1/K; those of all steps but the last fall linearly to 0.03/K, the last has the rest, and
      after `multi_step_iterations` the last loss counts alone.
    * **Derivative-order annealing**: first-order meta-gradients for the first `first_order_iterations`.
    * **Batch normalisation per step**: moving statistics, γ and β of their own for each step and for the
      answers. The authors' code never reads the statistics, and normalises queries by each other; here they
      are used, in meta-training too (see `MAML`). Inner steps leave γ and β alone.
    * **A cosine rate outside** is Keras's own, as in the example.

    **When to choose it**: for adaptation in several steps, where MAML is unstable, or its inner rate
    hard to find. While the multi-step loss counts, a step costs K − 1 more passes over the queries.

    Args:
        model: any `keras.Model`, trained in place. Its γ and β are where those of each step start from, and
            are not used afterwards.
        inner_steps: K. Defaults to 5 (the paper).
        inner_learning_rate: where the rates start. Defaults to 0.1 (the authors' code, Omniglot; 0.01 for
            mini-ImageNet).
        multi_step_iterations: number of meta-training steps with a multi-step loss. Defaults to 5,000
            (the paper: 10 epochs of 500 steps); 0 for none.
        first_order_iterations: number of meta-training steps with first-order gradients. Defaults to 0 (the
            authors' published configurations; the paper also reports 50 epochs of 500 steps).
        adapted: as in `MAML`. Defaults to None: all trainable variables but γ and β of batch normalisation.
        batch_normalization: as in `MAML`; γ and β are per step under all. Defaults to `"per_step"`.
        **kwargs: of `MAML`; not `second_order`, which is `first_order_iterations`' matter.

    Attributes:
        rates: the learnt rates, `(inner_steps,)` for each adapted variable. Further steps use the last.
        step_weights: γ and β, `(inner_steps + 1, channels)` each.

    Returns:
        As `MAML`. The `loss` in the history is that after the last step.

    Raises:
        ValueError: as `MAML`, and if a number of iterations is not an integer from 0.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(40, "relu"), keras.layers.Dense(1)])
    >>> maml = ksm.MAMLPlusPlus(network, inner_learning_rate=0.01, multi_step_iterations=1000)
    >>> rate = keras.optimizers.schedules.CosineDecay(1e-3, decay_steps=15_000, alpha=0.01)
    >>> maml.compile(keras.optimizers.Adam(rate), loss="mse")
    >>> history = maml.fit(ksm.data.sinusoids(seed=0).batch(8), steps_per_epoch=2, verbose=0)

    Reference:
        Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, section 4.
        https://arxiv.org/abs/1810.09502
    """

    owns_weights_for_each = True

    def __init__(
        self,
        model,
        inner_steps: int = 5,
        inner_learning_rate: float = 0.1,
        multi_step_iterations: int = 5000,
        first_order_iterations: int = 0,
        adapted=None,
        batch_normalization: str = "per_step",
        **kwargs,
    ):
        self.multi_step_iterations = arguments.count(
            "multi_step_iterations", multi_step_iterations, least=0
        )
        self.first_order_iterations = arguments.count(
            "first_order_iterations", first_order_iterations, least=0
        )
        arguments.count("inner_steps", inner_steps)
        if "second_order" in kwargs:
            raise ValueError(
                "`second_order` must be left out: `first_order_iterations` says for how long meta-gradients "
                f"are of first order. Received: second_order={kwargs['second_order']!r}"
            )
        super().__init__(
            model,
            inner_steps=inner_steps,
            inner_learning_rate=inner_learning_rate,
            adapted=adapted,
            batch_normalization=batch_normalization,
            **kwargs,
        )

    def is_adapted(self):
        if self.adapted is not None:
            return self.adapted
        ids = {id(v) for v in _scales_and_shifts(self.model)}
        return lambda v: id(v) not in ids

    def build_method(self):
        super().build_method()
        network = self._network()
        rate = keras.initializers.Constant(self._inner_step()[1])
        self.rates = [
            self.add_weight(
                shape=(self.inner_steps,),
                initializer=rate,
                dtype=v.dtype,
                name=f"rate_{v.name}_{i}",
            )
            for i, v in enumerate(network.adapted)
        ]
        ids = {id(v) for v in _scales_and_shifts(self.model)}
        self._by_step = [i for i, v in enumerate(network.others) if id(v) in ids]
        self.step_weights = [
            self.add_weight(
                shape=(self.inner_steps + 1, *network.others[i].shape),
                initializer=_repeated(network.others[i]),
                dtype=network.others[i].dtype,
                name=f"step_{network.others[i].name}_{i}",
            )
            for i in self._by_step
        ]

    def method_weights(self):
        return [*self.rates, *self.step_weights]

    def start_of(self, start, weights, steps):
        rates, by_step = weights[: len(self.rates)], weights[len(self.rates) :]
        others = list(start.others)
        for i, values in zip(self._by_step, by_step, strict=True):
            others[i] = values
        return dataclasses.replace(
            start,
            rates=rates,
            rates_by_step=True,
            others=others,
            others_by_step=frozenset(self._by_step),
        )

    def loss_of_steps(self):
        """Equal at first; those of the early steps fall to 0.03/K, until the last counts alone."""
        if not self.multi_step_iterations:
            return None
        count, floor = self.inner_steps, 0.03 / self.inner_steps
        done = tf.cast(self.optimizer.iterations, "float32") / self.multi_step_iterations
        early = tf.maximum((1 - done) / count, floor)
        early = tf.where(done < 1, early, tf.zeros_like(early))
        return tf.concat([tf.fill([count - 1], early), [1 - (count - 1) * early]], axis=0)

    def each_task(self, adaptation, episode, learnt, queries, factors):
        if not (adaptation.training and self.first_order_iterations):
            return super().each_task(adaptation, episode, learnt, queries, factors)
        first = cross_replica.first_row(number_of_tasks(episode))  # Not within a branch.

        def run(second_order):
            inner = self.inner_loop(adaptation.network, training=True)
            inner.second_order = second_order
            ordered = dataclasses.replace(adaptation, inner=inner)
            results = ordered.each(episode, learnt, queries, factors, first)
            return {f.name: getattr(results, f.name) for f in dataclasses.fields(results)}

        is_first = self.optimizer.iterations < self.first_order_iterations
        return Results(**tf.cond(is_first, lambda: run(False), lambda: run(True)))

    def get_config(self):
        config = super().get_config()
        del config["second_order"]
        return {
            **config,
            "multi_step_iterations": self.multi_step_iterations,
            "first_order_iterations": self.first_order_iterations,
        }


def _scales_and_shifts(model):
    """γ and β of batch normalisation, where they are trained."""
    return [
        v
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        for v in layer.trainable_variables
    ]


def _repeated(variable):
    return lambda shape, dtype=None: keras.ops.broadcast_to(
        keras.ops.cast(variable.value, dtype), shape
    )
