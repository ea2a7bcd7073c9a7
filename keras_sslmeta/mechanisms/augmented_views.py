"""Random views of samples, made by one augmentation for all views or by one for each."""

import inspect
import numbers
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_sslmeta.mechanisms import stateful_draws
from keras_sslmeta.mechanisms.state_recorder import StateRecorder


def check(augmentation, views) -> None:
    """Refuses what `make` cannot use."""
    if not isinstance(views, numbers.Integral) or isinstance(views, bool) or views < 1:
        raise ValueError(f"`views` must be a positive integer. Received: views={views!r}")
    several = isinstance(augmentation, (list, tuple))
    if several and len(augmentation) != views:
        raise ValueError(
            "`augmentation` must be one callable, or a list of one a view (to chain several, use "
            "keras.Sequential). "
            f"Received: {len(augmentation)} of them and views={views}"
        )
    for augment in augmentation if several else [augmentation]:
        if inspect.isclass(augment):
            raise ValueError(
                f"`augmentation` must be a layer, not a class of them: write `{augment.__name__}(…)`. "
                f"Received: {augment!r}"
            )
        if not callable(augment):
            raise ValueError(
                "`augmentation` must be a Keras layer or another callable, or a list of one a "
                f"view. Received: {augment!r}"
            )


def can_be_drawn_again(augmentation, samples, views: int) -> bool:
    """Whether all that it draws follows from states that Keras knows: layers that draw by `keras.random`."""
    several = isinstance(augmentation, (list, tuple))
    augmentations = augmentation if several else [augmentation]
    if not all(isinstance(augment, keras.layers.Layer) for augment in augmentations):
        return False
    specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), samples)

    def draw(x):
        with StateRecorder():  # Traced and never run: nothing is assigned to.
            return make(x, augmentation, views)

    traced = tf.function(draw, autograph=False).get_concrete_function(specs)
    return not stateful_draws.of(traced.graph)


def make(samples, augmentation: "Callable | list[Callable] | tuple[Callable, ...]", views: int):
    """`(batch, …)` → `(batch, views, …)`, for structures of tensors.

    A single augmentation is called once for each view: some draw once a batch (Keras's RandomCrop,
    `tf.image.random_brightness`), and would make equal views of copies in one batch.
    """
    if isinstance(augmentation, (list, tuple)):
        augmentations = list(augmentation)
    else:
        augmentations = [augmentation] * views
    made = [_augment(augment, samples) for augment in augmentations]
    shapes = {str(keras.tree.map_structure(lambda x: tuple(x.shape), view)) for view in made}
    if len(shapes) > 1:
        raise ValueError(
            "`augmentation` must give all views of a sample one shape. "
            f"Received: {', '.join(sorted(shapes))}"
        )
    return keras.tree.map_structure(_stacked, *made)


def _stacked(*views):
    """On axis 1; integers as floats where other views are."""
    floats = [view.dtype for view in views if view.dtype.is_floating]
    if floats:
        views = tuple(v if v.dtype.is_floating else tf.cast(v, floats[0]) for v in views)
    return tf.stack(views, axis=1)


def _augment(augmentation, samples):
    """Random also where the model around is not in training: a loss on views is defined on them."""
    function = augmentation.call if isinstance(augmentation, keras.layers.Layer) else augmentation
    try:
        takes_training = "training" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # Built-in functions have no signature.
        takes_training = False
    view = augmentation(samples, **({"training": True} if takes_training else {}))
    before, after = ([len(x.shape) for x in keras.tree.flatten(nest)] for nest in (samples, view))
    if before != after:
        raise ValueError(
            "`augmentation` must make one view of each sample, of the same rank: it is called for "
            f"as many views as are wanted. Received: ranks {after} from samples of ranks {before}"
        )
    with tf.control_dependencies(_rows_are_kept(samples, view)):
        return keras.tree.map_structure(tf.identity, view)


def _rows_are_kept(samples, view):
    """Refuses a batch taken for one sample: series with 3 channels look like an image. Checks to be run."""
    checks = []
    for before, after in zip(keras.tree.flatten(samples), keras.tree.flatten(view), strict=True):
        if before.shape[0] == after.shape[0] and after.shape[0] is not None:
            continue
        message = (
            "`augmentation` must make one view of each sample, and keep the batch axis. An augmentation for "
            "images takes a batch of series with one or three channels for one image. "
            f"Received: shape={tuple(after.shape)} from samples of shape={tuple(before.shape)}"
        )
        if after.shape[0] is not None:  # It is what it is, whatever the batch.
            raise ValueError(message)
        checks.append(tf.debugging.assert_equal(tf.shape(after)[0], tf.shape(before)[0], message))
    return [check for check in checks if check is not None]
