"""`DifferentiableFit`: gradients through the training of a model (Maclaurin et al. 2015)."""

from typing import Any

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, cross_replica, inner_optimizers
from keras_sslmeta.mechanisms.multi_worker import MultiWorkerFit
from keras_sslmeta.mechanisms.unrolled_training import UnrolledTraining
from keras_sslmeta.ssl.two_view import TwoViewModel


class DifferentiableFit:
    r"""Some steps of a compiled model's training, differentiable in what entered them.

    Each step is the one that `fit` takes: the model in training mode, its compiled loss with all that
    layers and regularisers add, a step of the optimiser, constraints, moving statistics and random states:

    ```
    θ_{k+1} = θ_k + step_k(∇_θ L(θ_k, batch_k, λ))          k = 0 … steps − 1
    ```

    and `tf.GradientTape` then gives the exact gradient of any function of θ_steps, of the moving
    statistics or of the losses along the way, with respect to learning rates, weights of samples, initial
    weights, and any variable λ that the training reads. It costs the memory of one step's activations
    plus the weights of each step, whatever `steps` is; the gradient takes each step again, and costs some
    four times the training. It runs as one graph, traced once for each shape of the data (`run_eagerly`
    and `jit_compile` of `compile` have no part in it; a `tf.function(jit_compile=True)` around it has).

    **When to choose it**: to learn what a search would otherwise try: rates, the temperature of a loss,
    weights of losses, the strength of an augmentation, which samples to trust, a start to train from, the
    data themselves. Gradients through long or unstable training explode (a rate at which the loss
    oscillates gives none of use): begin with some tens of steps and watch their norm. For tasks with a
    support set and queries there is `keras_sslmeta.MAML`.

    The model itself stays as it is, until `assign`. The optimiser's state starts anew in each call.

    Args:
        model: any compiled `keras.Model`, such as a classifier or a `keras_sslmeta.SimCLR`. Its
            `train_step` must be Keras's own; `compute_loss` may be yours.
        inner_optimizer: a `keras.optimizers.SGD` (with momentum or without), `Adam` or `RMSprop` to take the
            steps by. Defaults to None: one as the compiled optimiser, at its present learning rate.
        steps: number of steps, from 1. Defaults to 1.
        hyperparameters: `keras.Variable`s of any shape that training reads and does not train, which
            get a gradient: a variable that a loss multiplies by, a layer's strength, a regulariser's
            factor. Make them with `trainable=False` where a layer holds them. Other variables count as
            constants. Defaults to none.
        same_batch: whether one batch, `(batch, …)`, serves all steps, in place of one for each, `(steps,
            batch, …)`. Defaults to False.
        through_data: whether floating-point `x` and `y` get a gradient, at the price of one more product
            with the first layer, and of augmentations that have derivatives. Defaults to False.

    Call arguments:
        x: inputs, a tensor or a nest, `(steps, batch, …)`; `(batch, …)` with `same_batch`.
        y: targets, the same axes, or None.
        sample_weight: weights of the samples, `(steps, batch)` or `(batch,)`, or a nest as `fit` takes.
            They get a gradient. Give some `y` with them. Defaults to None.
        learning_rate: a scalar; one for each step, `(steps,)`; one for each step and each of
            `model.trainable_variables`, `(steps, variables)`; or a list with one for each variable, a scalar
            or of the variable's shape. They get a gradient. Defaults to None: the optimiser's own, whose
            variable gets one if a tape watches it.
        weights: list of the weights to start from, in the order of `model.trainable_variables`. Defaults to
            None: those of the model, and the gradient is theirs.
        hyperparameters: list of values for the `hyperparameters`, tensors such as `[tf.exp(log_rate)]`,
            which get the gradient. Defaults to None: the variables' own. A tape watches a trainable
            variable by itself, and another one by `tape.watch(variable.value)`.

    Returns:
        A `FittedModel`: `fitted(x)` gives outputs, `fitted.loss(x, y)` the compiled loss in evaluation mode,
        `fitted.weights` and `fitted.losses` the weights and the loss before each step, all differentiable;
        `fitted.assign()` leaves the model as trained.

    Raises:
        ValueError: if the model is not compiled, has a `train_step` of its own, computes in float16, or its
            loss is not one number; if the optimiser is another one or uses options that differentiable
            steps lack; if a hyperparameter is read by nothing, trained, or changed by a step; if axes do
            not fit; if a layer has no second derivative; under a strategy of several replicas.

    Example:

    >>> import keras, numpy as np, tensorflow as tf, keras_sslmeta as ksm
    >>> rng = np.random.default_rng(0)
    >>> x, held = rng.normal(size=(2, 64, 5)).astype("float32")
    >>> y, held_y = x[:, :1] > 0, held[:, :1] > 0
    >>> y[:32] = rng.random((32, 1)) < 0.5               # half of the labels mean nothing
    >>> model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, activation="sigmoid")])
    >>> model.compile(loss="binary_crossentropy")
    >>> fit = ksm.meta.DifferentiableFit(model, keras.optimizers.SGD(0.5), steps=20, same_batch=True)
    >>> weights, rate = tf.Variable(tf.ones(64)), tf.Variable(0.5)
    >>> with tf.GradientTape() as tape:
    ...     fitted = fit(x, y, sample_weight=weights, learning_rate=rate)
    ...     loss = fitted.loss(held, held_y)
    >>> of_weights, of_rate = tape.gradient(loss, [weights, rate])
    >>> bool(tf.reduce_mean(of_weights[:32]) > tf.reduce_mean(of_weights[32:]))
    True

    Reference:
        Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible
        Learning", ICML 2015. https://arxiv.org/abs/1502.03492
        Franceschi, Donini, Frasconi, Pontil, "Forward and Reverse Gradient-Based Hyperparameter
        Optimization", ICML 2017. https://arxiv.org/abs/1703.01785
        Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", ICML 2018
        (sample weights). https://arxiv.org/abs/1803.09050
    """

    def __init__(
        self,
        model,
        inner_optimizer=None,
        steps: int = 1,
        hyperparameters=(),
        same_batch: bool = False,
        through_data: bool = False,
    ):
        _check_model(model)
        self.model = model
        self.inner_optimizer = model.optimizer if inner_optimizer is None else inner_optimizer
        _check_optimizer(self.inner_optimizer)
        with tf.init_scope():
            self._pure, _ = inner_optimizers.from_keras(self.inner_optimizer)
        self.steps = arguments.count("steps", steps)
        self.hyperparameters = _checked_variables(hyperparameters)
        self.same_batch = _checked_flag("same_batch", same_batch)
        self.through_data = _checked_flag("through_data", through_data)
        self._unrolled: dict[str, UnrolledTraining] = {}
        self._compilation = None

    def __call__(
        self,
        x,
        y=None,
        sample_weight=None,
        learning_rate=None,
        weights=None,
        hyperparameters=None,
    ):
        if cross_replica.count() > 1:
            raise ValueError(
                "`DifferentiableFit` runs on one device: call it outside of the strategy's scope. "
                f"Received: a strategy of {cross_replica.count()} replicas"
            )
        data = _tensors((x, y, sample_weight))
        self._check_axes(data)
        unrolled = self._unrolled_for(data)
        start = {
            "weights": _values("weights", unrolled.of_batch.trained, weights),
            "hyperparameters": _values("hyperparameters", self.hyperparameters, hyperparameters),
            "moved": _values("moved", unrolled.of_batch.moved),
            "fixed": _values("fixed", unrolled.of_batch.fixed),
            "rates": self._rates(learning_rate, unrolled.of_batch.trained),
            "data": data,
        }
        try:
            trained, moved, losses = unrolled.fit(start)
        except LookupError as error:
            raise ValueError(
                "Each step is differentiated twice, and TensorFlow has no gradient of an operation of "
                "the model: replace that layer (recurrent ones: `use_cudnn=False`); with `through_data` "
                f"the augmentation needs one too. Received: {error}"
            ) from error
        return FittedModel(unrolled, trained, start["hyperparameters"], moved, losses)

    def _check_axes(self, data):
        """Refuses data without an axis of steps, and samples whose numbers differ."""
        axis = 0 if self.same_batch else 1
        shapes = [tuple(x.shape) for x in keras.tree.flatten(data) if x is not None]
        if any(len(shape) <= axis for shape in shapes) or (
            not self.same_batch and any(shape[0] not in (None, self.steps) for shape in shapes)
        ):
            required = "(batch, …)" if self.same_batch else f"(steps, batch, …), steps={self.steps}"
            raise ValueError(
                f"With `same_batch={self.same_batch}`, `x`, `y` and `sample_weight` must be {required}. "
                f"Received: shapes {', '.join(map(str, shapes))}"
            )
        if len({shape[axis] for shape in shapes} - {None}) > 1:
            raise ValueError(
                "`x`, `y` and `sample_weight` must hold the same number of samples. "
                f"Received: shapes {', '.join(map(str, shapes))}"
            )

    def _unrolled_for(self, data):
        """What is traced for data of these shapes, by the compilation and the variables of now."""
        compilation = getattr(self.model, "_compile_config", None)
        if compilation is not self._compilation:
            self._unrolled, self._compilation = {}, compilation
        key = str(keras.tree.map_structure(lambda x: x if x is None else (x.shape, x.dtype), data))
        known = self._unrolled.get(key)
        trained = self.model.trainable_variables
        if known is None or list(map(id, known.of_batch.trained)) != list(map(id, trained)):
            known = self._unrolled[key] = UnrolledTraining(
                self.model,
                self._pure,
                self.steps,
                self.hyperparameters,
                data,
                self.same_batch,
                self.through_data,
            )
        return known

    def _rates(self, rates, trained):
        """A tensor, or a list of one a weight."""
        if rates is None:
            rates = self.inner_optimizer.learning_rate
        shapes: list[tuple]
        if isinstance(rates, (list, tuple)):
            rates = [tf.convert_to_tensor(x) for x in rates]
            shapes = [tuple(x.shape) for x in rates]
            fits = len(rates) == len(trained) and all(
                shape in ((), tuple(v.shape)) for shape, v in zip(shapes, trained, strict=True)
            )
        else:
            rates = tf.convert_to_tensor(rates)
            shapes = [tuple(rates.shape)]
            fits = shapes[0] in ((), (self.steps,), (self.steps, len(trained)))
        if not fits or not all(x.dtype.is_floating for x in keras.tree.flatten(rates)):
            raise ValueError(
                f"`learning_rate` must be a floating-point scalar, ({self.steps},) for the steps, "
                f"({self.steps}, {len(trained)}) for steps and trainable variables, or a list of "
                f"{len(trained)}, each a scalar or of its variable's shape. Received: shapes "
                f"{', '.join(map(str, shapes))}"
            )
        return rates


class FittedModel:
    """A model as some steps of training leave it: tensors, differentiable in what entered.

    Random layers that are active in evaluation (SimCLR's augmentation) draw the same in every call.

    Attributes:
        weights: list of tensors, in the order of `model.trainable_variables`.
        losses: the training loss before each step, `(steps,)`.
    """

    def __init__(self, unrolled, weights, hyperparameters, moved, losses):
        self.weights, self.losses = list(weights), losses
        self._unrolled, self._hyperparameters, self._moved = unrolled, hyperparameters, list(moved)

    def __call__(self, x, training: bool = False):
        """The outputs for a batch `(batch, …)`, or a nest of one."""
        return self._evaluated((_tensors(x), None, None), bool(training), wants_loss=False)

    def loss(self, x, y=None, sample_weight=None) -> tf.Tensor:
        """The compiled loss of a batch in evaluation mode, a scalar, with what layers add to it."""
        return self._evaluated(_tensors((x, y, sample_weight)), training=False, wants_loss=True)

    def assign(self) -> None:
        """Gives the model these weights, and the moving statistics and random states with them."""
        of_batch = self._unrolled.of_batch
        for variables, values in ((of_batch.trained, self.weights), (of_batch.moved, self._moved)):
            for v, value in zip(variables, values, strict=True):
                v.assign(value)

    def _evaluated(self, data, training, wants_loss):
        values = self.weights, self._hyperparameters, self._moved
        return self._unrolled.evaluate(values, data, training, wants_loss)


def _tensors(nest: Any):
    """Arrays as tensors, floats in Keras's `floatx`, as `fit` gives them to a model."""

    def tensor(x):
        if x is None:
            return None
        x = tf.convert_to_tensor(x)
        return tf.cast(x, keras.config.floatx()) if x.dtype.is_floating else x

    return keras.tree.map_structure(tensor, nest)


def _values(name, variables, values=None):
    """Tensors for variables: their own values, or those that were given."""
    if values is None:
        return [tf.convert_to_tensor(v.value) for v in variables]
    values = [tf.convert_to_tensor(x) for x in values]
    shapes = [tuple(x.shape) for x in values]
    expected = [tuple(v.shape) for v in variables]
    if shapes != expected:
        raise ValueError(
            f"`{name}` must be a list of one tensor for each variable, of shapes "
            f"{', '.join(map(str, expected))}. Received: shapes {', '.join(map(str, shapes))}"
        )
    return [tf.cast(x, v.dtype) for x, v in zip(values, variables, strict=True)]


def _check_model(model):
    if not isinstance(model, keras.Model) or not model.compiled:
        raise ValueError(
            "`model` must be a compiled keras.Model: call `model.compile(loss=…)` first. "
            f"Received: {model!r}"
        )
    known = (MultiWorkerFit, TwoViewModel)  # Both take Keras's step.
    for parent in type(model).__mro__:
        is_known = parent in known or parent.__module__.split(".")[0] == "keras"
        if "train_step" in vars(parent) and not is_known:
            raise ValueError(
                "`model` must train by Keras's own `train_step`, which is what gets differentiated: put what "
                f"yours does into `compute_loss`, or into layers. Received: {parent.__name__}.train_step"
            )
    if any(layer.compute_dtype == "float16" for layer in model._flatten_layers()):
        raise ValueError(
            "`model` must not compute in float16, whose gradients need a loss scale that changes on "
            "the way: use `mixed_bfloat16` or `float32`. Received: a model with compute_dtype='float16'"
        )


def _check_optimizer(optimizer):
    kinds = (keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.RMSprop)
    if type(optimizer) not in kinds:
        raise ValueError(
            "`inner_optimizer` must be a keras.optimizers.SGD, Adam or RMSprop, or None where the model is "
            f"compiled with one of them. Received: {optimizer!r}"
        )


def _checked_variables(variables):
    variables = list(variables) if isinstance(variables, (list, tuple)) else [variables]
    for v in variables:
        is_float = isinstance(v, keras.Variable) and keras.backend.is_float_dtype(v.dtype)
        if not is_float:
            raise ValueError(
                "`hyperparameters` must be a list of floating-point keras.Variable (a tf.Variable cannot be "
                f"replaced in a layer or a loss). Received: {v!r}"
            )
    return variables


def _checked_flag(name, value):
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return value
