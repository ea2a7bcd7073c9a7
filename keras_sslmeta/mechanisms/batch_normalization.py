"""Normalisation by the batch's own statistics, with first and second derivatives in closed form.

With ``x̂ = (x − mean) / √(variance + ε)`` over the N entries of a channel, and
``P(z) = z − mean(z) − x̂ mean(z x̂)``,

    y = γ x̂ + β          ∂/∂x: γ r P(v)          ∂/∂γ: Σ v x̂          ∂/∂β: Σ v

for a cotangent v, where r = 1 / √(variance + ε). Differentiated op by op, the same takes several times as
many passes over the data. In single precision value and first derivative are TensorFlow's fused kernels,
though not under XLA, whose variance is mean(x²) − mean(x)² and may come out negative.
"""

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import xla


def is_keras_own(layer: keras.layers.Layer) -> bool:
    """Whether the layer normalises by batches as Keras does, its subclasses' own ways left out."""
    plain = keras.layers.BatchNormalization
    return isinstance(layer, plain) and all(
        getattr(type(layer), name, None) is getattr(plain, name, None)
        for name in ("call", "_moments")
    )


def applies(layer: "keras.layers.BatchNormalization", inputs, mask) -> bool:
    """Whether `normalized` does what the layer would do in training."""
    return (
        is_keras_own(layer)
        and layer.trainable
        and mask is None
        and not layer.renorm
        and layer.axis in (-1, len(inputs.shape) - 1)
        and inputs.shape[-1] is not None
        and inputs.dtype in (tf.float32, tf.float64)
    )


def in_training(layer: "keras.layers.BatchNormalization", inputs: tf.Tensor) -> tf.Tensor:
    """What the layer does in training, its moving statistics included, where it `applies`."""
    scale, shift = (
        None if v is None else tf.cast(v, inputs.dtype) for v in (layer.gamma, layer.beta)
    )
    outputs, *statistics = normalized(inputs, scale, shift, layer.epsilon)
    momentum = layer.momentum
    for moving, value in zip((layer.moving_mean, layer.moving_variance), statistics, strict=True):
        if momentum:
            value = momentum * tf.cast(moving, value.dtype) + (1 - momentum) * value
        moving.assign(value)
    return tf.cast(outputs, layer.compute_dtype)


def normalized(x: tf.Tensor, scale, shift, epsilon: float):
    """`x` normalised over all axes but the last, and the statistics it was normalised by.

    Args:
        x: float32 or float64.
        scale, shift: γ and β, `(channels,)`, or None for ones and zeros.
        epsilon: ε.

    Returns:
        `(y, mean, variance)`; the statistics count as constants.
    """
    channels = x.shape[-1]
    scale = tf.ones([channels], x.dtype) if scale is None else scale
    shift = tf.zeros([channels], x.dtype) if shift is None else shift
    rows = x if len(x.shape) == 4 else tf.reshape(x, [-1, 1, 1, channels])
    is_fused = x.dtype == tf.float32 and not xla.is_compiling()
    kernels = _Fused(epsilon) if is_fused else _Plain(epsilon)
    statistics = []

    @tf.custom_gradient
    def forward(rows, scale, shift):
        y, mean, variance, kept = kernels.forward(rows, scale, shift)
        statistics.extend([mean, variance])

        def gradient(v):
            v = tf.convert_to_tensor(v)  # Slices, from layers that gather.
            return _backward(kernels, kept, mean, variance, v, rows, scale)

        return y, gradient

    y = forward(rows, scale, shift)
    y = tf.ensure_shape(y if len(x.shape) == 4 else tf.reshape(y, tf.shape(x)), x.shape)
    mean, variance = (tf.stop_gradient(s) for s in statistics)
    return y, mean, variance


def renormalized(
    layer: "keras.layers.BatchNormalization",
    outputs: tf.Tensor,
    own: "list[tf.Tensor]",
    given: "list[tf.Tensor]",
    amount: tf.Tensor,
) -> tf.Tensor:
    """What was normalised by its own statistics, as if by given ones, with the derivative of the former.

    ```
    y ← γ (x̂ r + d) + β         r = σ / σ_given         d = (mean − mean_given) / σ_given
    ```

    r and d count as constants (Ioffe 2017, "Batch Renormalization", https://arxiv.org/abs/1702.03275). So
    values do not depend on the batch, and yet weights have no gradient along their own length, without which
    they grow until training fails. As there, r is kept within [1 / r_max, r_max] and d within [−d_max,
    d_max], with r_max = 3 and d_max = 5.

    Args:
        layer: of batch normalisation, whose outputs these are.
        outputs: γ x̂ + β.
        own, given: mean and variance, `(channels,)` each.
        amount: a scalar from 0, which leaves the outputs as they are (r_max = 1, d_max = 0), to 1.
    """
    dtype = own[0].dtype
    amount = tf.cast(amount, dtype)
    limit, shift = 1 + 2 * amount, 5 * amount
    deviation = tf.sqrt(given[1] + tf.constant(layer.epsilon, dtype))
    r = tf.sqrt(own[1] + tf.constant(layer.epsilon, dtype)) / deviation
    r = tf.stop_gradient(tf.clip_by_value(r, 1 / limit, limit))
    d = tf.stop_gradient(tf.clip_by_value((own[0] - given[0]) / deviation, -shift, shift))
    scale, beta = (
        tf.constant(x, dtype) if v is None else tf.cast(v, dtype)
        for v, x in ((layer.gamma, 1.0), (layer.beta, 0.0))
    )
    shape = [1] * len(outputs.shape)
    shape[layer.axis] = -1
    r, rest = (
        tf.cast(tf.reshape(x, shape), outputs.dtype) for x in (r, beta * (1 - r) + scale * d)
    )
    return outputs * r + rest


def _backward(kernels, kept, mean, variance, v, rows, scale):
    """The cotangents of rows, scale and shift, differentiable."""

    @tf.custom_gradient
    def backward(v, rows, scale):
        results = kernels.backward(v, rows, scale, mean, variance, kept)

        def gradient(u, of_scale, of_shift):
            return _second(v, rows, scale, mean, variance, kernels.epsilon, u, of_scale, of_shift)

        return results, gradient

    return backward(v, rows, scale)


def _second(v, rows, scale, mean, variance, epsilon, u, of_scale, of_shift):
    """The cotangents of v, rows and scale, for those of the first derivatives: u, of_scale and of_shift."""
    count = _count(rows)
    r = tf.math.rsqrt(variance + epsilon)
    x = (rows - mean) * r
    mean_v, mean_vx = _sum(v) / count, _sum(v * x) / count
    mean_u, mean_ux = _sum(u) / count, _sum(u * x) / count
    along = _sum(u * v) - count * (mean_u * mean_v + mean_ux * mean_vx)  # Σ u P(v)
    a = scale * r
    of_v = a * u + x * (of_scale - a * mean_ux) + (of_shift - a * mean_u)
    by_v = r * of_scale - a * r * mean_ux
    by_u = -a * r * mean_vx
    by_x = -a * r * along / count - by_v * mean_vx - by_u * mean_ux
    of_rows = by_v * v + by_u * u + by_x * x - (by_v * mean_v + by_u * mean_u)
    return of_v, of_rows, r * along


class _Plain:
    """Any precision."""

    def __init__(self, epsilon):
        self.epsilon = epsilon

    def forward(self, rows, scale, shift):
        mean = tf.reduce_mean(rows, [0, 1, 2])
        variance = tf.reduce_mean(tf.math.squared_difference(rows, mean), [0, 1, 2])
        a = scale * tf.math.rsqrt(variance + self.epsilon)
        return rows * a + (shift - mean * a), mean, variance, ()

    def backward(self, v, rows, scale, mean, variance, kept):
        r = tf.math.rsqrt(variance + self.epsilon)
        x = (rows - mean) * r
        of_scale, of_shift = _sum(v * x), _sum(v)
        count = _count(rows)
        return scale * r * (v - of_shift / count - x * (of_scale / count)), of_scale, of_shift


class _Fused:
    """Single precision, by the kernels that TensorFlow has for it."""

    def __init__(self, epsilon):
        self.epsilon = epsilon

    def forward(self, rows, scale, shift):
        y, mean, variance, *kept = tf.raw_ops.FusedBatchNormV3(
            x=rows,
            scale=scale,
            offset=shift,
            mean=tf.constant([], tf.float32),
            variance=tf.constant([], tf.float32),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = _count(rows)
        # TensorFlow gives that of a sample; layers keep that of the batch.
        return y, mean, variance * ((count - 1) / count), kept

    def backward(self, v, rows, scale, mean, variance, kept):
        of_rows, of_scale, of_shift, _, _ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=v,
            x=rows,
            scale=scale,
            reserve_space_1=kept[0],
            reserve_space_2=kept[1],
            reserve_space_3=kept[2],
            epsilon=self.epsilon,
            is_training=True,
        )
        # oneDNN merges the gradients for a convolution's kernel and bias where both read the same node. With
        # second derivatives there are two candidates, and of a node with more than eight readers, such as
        # the kernel above, it takes either: in one case the graph has a cycle. So readers get a node of
        # their own, which forwards its input.
        return tf.raw_ops.Snapshot(input=of_rows), of_scale, of_shift


def _count(rows):
    """Entries of a channel."""
    sizes = rows.shape[:3]
    if None not in sizes:
        return tf.constant(float(sizes[0] * sizes[1] * sizes[2]), rows.dtype)
    return tf.cast(tf.reduce_prod(tf.shape(rows)[:3]), rows.dtype)


def _sum(rows):
    return tf.reduce_sum(rows, [0, 1, 2])
