"""`is_bias_or_norm`: which variables weight decay usually spares."""

import keras

# What Keras's layers call them. `scale` of RMSNormalization has one axis.
_NAMES = ("bias", "gamma", "beta")


@keras.saving.register_keras_serializable(package="keras_sslmeta.optimizers")
def is_bias_or_norm(variable: "keras.Variable") -> bool:
    """Whether a variable is a bias, or a scale or an offset of a normalisation layer.

    It is where it has at most one axis, which is the rule in the authors' code of Barlow Twins, VICReg and
    DINO, or where its own name is bias, gamma or beta: in Keras, biases of `MultiHeadAttention` and `GRU`
    have two axes, and so do the scales of a `LayerNormalization` over two axes. A scalar, such as the
    scale of `layers.LogitScale`, is one too.

    It is the predicate to pass as `exclude` to the optimisers of this package.

    Args:
        variable: a `keras.Variable`.

    Returns:
        A truth value.

    Example:

    >>> import keras
    >>> from keras_sslmeta.optimizers import is_bias_or_norm
    >>> dense = keras.layers.Dense(3, name="dense")
    >>> dense.build((None, 2))
    >>> [(variable.name, is_bias_or_norm(variable)) for variable in dense.variables]
    [('kernel', False), ('bias', True)]

    Reference:
        Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
        Sec. 3.3 (optimisation). https://arxiv.org/abs/2006.07733
    """
    return len(variable.shape) <= 1 or variable.name in _NAMES
