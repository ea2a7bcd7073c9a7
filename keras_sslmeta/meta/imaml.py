"""iMAML (Rajeswaran, Finn, Kakade and Levine 2019)."""

import keras

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.mechanisms.implicit_loop import ImplicitLoop
from keras_sslmeta.meta.adapting import AdaptingModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class IMAML(AdaptingModel):
    r"""iMAML: MAML whose meta-gradient depends on where adaptation ends, not on how it got there.

    Inner steps minimise the support loss while they stay near θ,

    ```
    φ ≈ argmin L_support(φ) + λ/2 ‖φ − θ‖²
    ```

    and the meta-gradient is the implicit one, `(I + H/λ)⁻¹ ∇L_query(φ)` with H the Hessian of the support
    loss at φ, solved by conjugate gradients on Hessian-vector products. It is exact where φ is the minimum,
    and an approximation before; the proximal term is part of every inner step.

    **When to choose it**: for many inner steps, or an inner optimiser that nothing can be differentiated
    through: memory and the cost of the gradient do not depend on the steps. For a few steps `MAML` is exact
    and cheaper. Published accuracies are close to MAML's.

    Args:
        model: any `keras.Model`, trained in place.
        inner_steps: number of inner steps. Defaults to 16 (the authors' code, Omniglot).
        inner_learning_rate: of the inner steps. Defaults to 0.1 (the authors' code).
        regularization: λ, positive. Defaults to 2.0 (the authors' code).
        solver_steps: steps of conjugate gradients. Defaults to 5 (the paper).
        **kwargs: of `MAML`; not `second_order`.

    Returns:
        As `MAML`.

    Raises:
        ValueError: as `MAML`; if λ is not positive.

    Example:

    >>> import keras, keras_sslmeta as ksm
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(40, "tanh"), keras.layers.Dense(1)])
    >>> imaml = ksm.IMAML(network, inner_learning_rate=0.05)
    >>> imaml.compile(keras.optimizers.Adam(1e-3), loss="mse")
    >>> history = imaml.fit(ksm.data.sinusoids(seed=0).batch(8), steps_per_epoch=2, verbose=0)

    Reference:
        Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019, Eq. 3, Lemma
        1 and Algorithm 2. https://arxiv.org/abs/1909.04630
    """

    def __init__(
        self,
        model,
        inner_steps: int = 16,
        inner_learning_rate: float = 0.1,
        regularization: float = 2.0,
        solver_steps: int = 5,
        **kwargs,
    ):
        if "second_order" in kwargs:
            raise ValueError(
                "`second_order` must be left out: the implicit gradient is of second order. "
                f"Received: second_order={kwargs['second_order']!r}"
            )
        self.regularization = arguments.positive_number("regularization", regularization)
        self.solver_steps = arguments.count("solver_steps", solver_steps)
        super().__init__(
            model, inner_steps=inner_steps, inner_learning_rate=inner_learning_rate, **kwargs
        )

    def inner_loop(self, network, training):
        return self.loop_of(
            ImplicitLoop,
            network,
            training,
            proximal=self.regularization,
            solver_steps=self.solver_steps,
        )

    def get_config(self):
        config = super().get_config()
        del config["second_order"]
        return {
            **config,
            "regularization": self.regularization,
            "solver_steps": self.solver_steps,
        }
