"""`LARS`: layer-wise adaptive rates for large batches (You et al. 2017)."""

import keras
from keras import ops

from keras_sslmeta.mechanisms import arguments
from keras_sslmeta.optimizers.is_bias_or_norm import is_bias_or_norm
from keras_sslmeta.optimizers.scheduled_weight_decay import ScheduledWeightDecay


@keras.saving.register_keras_serializable(package="keras_sslmeta.optimizers")
class LARS(ScheduledWeightDecay):
    """SGD with momentum whose rate, for each variable, is in proportion to the variable's norm.

    ```
    g ← ∇L(w) + weight_decay · w
    v ← momentum · v + learning_rate · trust_coefficient · ‖w‖ / ‖g‖ · g
    w ← w − v                                    Nesterov: w ← w − (momentum · v + the last summand above)
    ```

    For each variable on its own. Where ‖w‖ or ‖g‖ is zero, the ratio with its coefficient is 1. Excluded
    variables get neither the ratio nor the decay: theirs is the step of `keras.optimizers.SGD`.

    **What implementations differ in.** The norm in the denominator is that of the gradient with the decay
    in it, as in the authors' code of SimCLR, BYOL, Barlow Twins and VICReg; the paper (Eq. 6) and lightly
    add the two norms. The learning rate is inside v, as in the paper (Algorithm 1), SimCLR's code and
    Keras's SGD. BYOL, Barlow Twins, VICReg, lightly and Lightning Bolts multiply v by it afterwards, as
    PyTorch's SGD does: the same at a constant rate, and nearly so where the rate changes slowly against
    the 1 / (1 − momentum) steps that v remembers.

    Args:
        learning_rate: a number, a `LearningRateSchedule` or a callable. Rates of LARS are large, in
            proportion to the batch, and begin with a warm-up: SimCLR 0.3 · batch / 256, BYOL and VICReg
            0.2 · batch / 256.
        momentum: in [0, 1]. Defaults to 0.9 (the paper, and all of the above).
        weight_decay: a number from 0, a `keras.optimizers.schedules.LearningRateSchedule`, or None for
            none. Defaults to 1e-6 (SimCLR, VICReg; BYOL 1.5e-6; 5e-4 in the paper).
        trust_coefficient: η, a positive number. Defaults to 0.001 (the paper, and all of the above).
        nesterov: whether momentum is Nesterov's. Defaults to False.
        exclude: a predicate on variables (`keras.Variable`, with `path`, `name` and `shape`) that says which
            get neither decay nor ratio, decided when the optimiser is built; None excludes none. Defaults
            to `optimizers.is_bias_or_norm`. Variables given to `exclude_from_weight_decay` of Keras keep
            the ratio.
        **kwargs: of `keras.optimizers.Optimizer`: `clipnorm` clips before the decay is added.

    Raises:
        ValueError: if an argument is not as above.

    Example:

    >>> import keras
    >>> from keras_sslmeta.optimizers import LARS
    >>> kernel = keras.Variable([[3.0], [4.0]], name="kernel")              # of norm 5
    >>> optimizer = LARS(1.0, weight_decay=0.0, trust_coefficient=0.1)
    >>> optimizer.apply([[[0.0], [1000.0]]], [kernel])
    >>> [round(float(weight), 4) for weight in kernel[:, 0]]                # a tenth of 5, however steep
    [3.0, 3.5]

    Reference:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Eq. 6 and
        Algorithm 1. https://arxiv.org/abs/1708.03888
        Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
        Representations", ICML 2020, Sec. 2.2 and 2.3. https://arxiv.org/abs/2002.05709
    """

    def __init__(
        self,
        learning_rate,
        momentum=0.9,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        nesterov=False,
        exclude=is_bias_or_norm,
        **kwargs,
    ):
        if not arguments.is_number(momentum) or not 0 <= momentum <= 1:
            raise ValueError(
                f"`momentum` must be a number from 0 to 1. Received: momentum={momentum!r}"
            )
        trust_coefficient = arguments.positive_number("trust_coefficient", trust_coefficient)
        super().__init__(
            learning_rate=learning_rate, weight_decay=weight_decay, exclude=exclude, **kwargs
        )
        self.momentum = float(momentum)
        self.trust_coefficient = trust_coefficient
        self.nesterov = bool(nesterov)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momentums = []
        if self.momentum:
            self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        # Squares of half precision overflow, and small steps are lost in it.
        dtype = "float64" if variable.dtype == "float64" else "float32"
        w = ops.cast(variable, dtype)
        # Rows of an embedding come alone; the decay and the norm are of all rows.
        g = ops.cast(ops.convert_to_tensor(gradient), dtype)
        rate = ops.cast(learning_rate, dtype)
        if self.weight_decay is not None and self._use_weight_decay(variable):
            g += ops.cast(self.weight_decay, dtype) * w
        if not self._is_excluded(variable):
            rate *= self._trust_ratio(w, g)
        move = rate * g
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            velocity = self.momentum * ops.cast(buffer, dtype) + move
            self.assign(buffer, velocity)
            move = self.momentum * velocity + move if self.nesterov else velocity
        self.assign(variable, w - move)

    def _trust_ratio(self, w, g):
        # Of all entries: `ops.norm` takes two axes at most.
        w_norm, g_norm = (ops.norm(ops.reshape(x, (-1,))) for x in (w, g))
        ratio = self.trust_coefficient * ops.divide_no_nan(w_norm, g_norm)
        return ops.where((w_norm > 0) & (g_norm > 0), ratio, 1.0)

    def _apply_weight_decay(self, variables):
        """Nothing: the decay is in the gradient, where the ratio sees it."""

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
            "nesterov": self.nesterov,
        }
