"""What second derivatives need: moments that have them, and an error that names a layer that has none."""

import contextlib
import re
import threading

import keras
import tensorflow as tf


def moments(x, axes, shift=None, keepdims=False, name=None):
    """Mean and variance, as `tf.nn.moments`, whose second derivative is wrong.

    TensorFlow takes the variance about a mean that counts as a constant. That leaves the first derivative
    right, since the sum of the differences is 0, and drops ``−2/N²`` from every entry of the second.
    """
    y = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    mean = tf.reduce_mean(y, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(y, mean), axes, keepdims=keepdims)
    if not keepdims:
        mean = tf.squeeze(mean, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def resize(images, size, method="bilinear", *args, **kwargs):
    """`tf.image.resize`, which counts the gradient of bilinear resizing as constant, without a word."""
    resized = _resize(images, size, method, *args, **kwargs)
    is_plain = not args and not {"preserve_aspect_ratio", "antialias"} & {
        k for k, v in kwargs.items() if v
    }
    is_bilinear = getattr(method, "value", method) == "bilinear"
    if not (is_plain and is_bilinear and images.shape.rank == 4 and images.dtype.is_floating):
        return resized

    @tf.custom_gradient
    def forward(x):
        def gradient(upstream):
            return backward(upstream)

        return _resize(x, size, method), gradient

    @tf.custom_gradient
    def backward(upstream):
        like = tf.zeros(tf.shape(images), tf.float32)
        value = tf.raw_ops.ResizeBilinearGrad(
            grads=upstream, original_image=like, half_pixel_centers=True
        )
        return tf.ensure_shape(value, images.shape), forward

    # Linear: the gradient of the gradient is the resizing itself.
    return forward(tf.cast(images, tf.float32))


_resize = tf.image.resize
_LOCK = threading.RLock()


@contextlib.contextmanager
def exact():
    """Layers that normalise (batch, layer, group …) or resize take `moments` and `resize` of this module.

    One thread at a time, since TensorFlow's own functions are replaced.
    """
    with _LOCK:
        before = tf.nn.moments, tf.image.resize
        tf.nn.moments, tf.image.resize = moments, resize
        try:
            yield
        finally:
            tf.nn.moments, tf.image.resize = before


@contextlib.contextmanager
def explained(model):
    """Turns TensorFlow's LookupError for an operation without gradient into one about layers.

    Raises:
        ValueError: in its place.
    """
    try:
        yield
    except LookupError as error:
        found = re.search(r"op type: (\w+)", str(error))
        found = found or re.search(r"gradient registry has no entry for: (\w+)", str(error))
        if found is None:
            raise
        kind = found.group(1)
        name = next((x.name for x in _leaves(model) if _lacks_second_derivative(x, kind)), None)
        of_layer = "a layer of the model" if name is None else f"the layer {name!r}"
        remedy = (
            "Build recurrent layers with `use_cudnn=False`"
            if "cudnn" in kind.lower()
            else "Replace that layer"
        )
        raise ValueError(
            f"`second_order=True` differentiates the model twice, and {of_layer} has no second "
            f"derivative (TensorFlow has no gradient of {kind}). {remedy}, or pass "
            f"`second_order=False`. Received: second_order=True"
        ) from error


def _leaves(model):
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if not list(layer._flatten_layers(include_self=False, recursive=False))
        and not isinstance(layer, keras.layers.InputLayer)
    ]


def _lacks_second_derivative(layer, kind):
    """Whether the second derivative of this layer alone fails for the same operation."""
    shapes = layer._build_shapes_dict or {}
    shape = shapes.get("input_shape")
    if shape is None:
        try:
            shape = tuple(layer.input.shape)
        except AttributeError:
            return False
    if not all(n is None or isinstance(n, int) for n in shape):
        return False

    def twice(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = layer(x, training=True) if layer._call_has_training_arg else layer(x)
            first = inner.gradient(y, x)
        return x if first is None else outer.gradient(first, x)

    spec = tf.TensorSpec((2, *(n or 2 for n in shape[1:])), layer.compute_dtype)
    try:
        tf.function(twice, autograph=False).get_concrete_function(spec)
    except LookupError as error:
        return kind in str(error)
    except Exception:  # Another failure, such as of integers: not what is looked for.
        return False
    return False
