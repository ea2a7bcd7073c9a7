"""UMTRA: episodes out of unlabelled images, each image a class of its own."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.data.episode_indices import draw_distinct
from keras_sslmeta.data.episode_parts import as_episode, reader, sample_arrays
from keras_sslmeta.data.task_stream import BLOCK, checked_stream, finished, task_stream
from keras_sslmeta.mechanisms import arguments, augmented_views, random_state

_SEED_BOUND = 2**31 - 1  # Seeds without a sign: XLA draws differently from negative ones.


def umtra(
    x: Any,
    augmentation: Callable,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    augment_support: bool = False,
    episodes: int | None = None,
    seed: int | None = None,
    start: int = 0,
) -> tf.data.Dataset:
    """Makes episodes without labels, `({"support_x", "support_y", "query_x"}, query_y)`, to `.batch(tasks)`.

    Each episode takes `ways` samples at random, without replacement, as classes of their own. The
    support of a class is the sample itself and, beyond the first shot, augmentations of it; its
    queries are augmentations of it. Any meta-learner trains on them as on `data.episodes`, and is
    then tested on labelled episodes.

    Two "classes" may in truth be one. Of c classes with m samples each, all are different with

        P = Π_j m (c − j) / (c m − j),  j = 0 … ways − 1

    which is 0.85 for five ways of mini-ImageNet (c = 64, m = 600), 0.99 of Omniglot (1200, 20)
    and only 0.30 of ten classes: of few classes take few ways.

    The augmentation decides what the learner becomes blind to; it must be strong, but leave the
    class recognisable. Its randomness is a function of `(seed, i)` as well if it is

    * a Keras layer that draws by `keras.random.SeedGenerator`s, as all of Keras's and ours do: it
      gets states made for the episode, so its own seed isn't used and doesn't move on;
    * a function `(samples, seed)`, which gets an int32 pair for `tf.random.stateless_*`.

    Any other function is called on one episode after another, in order, with its own randomness.

    Args:
        x: samples, an array `(n, …)` or a nest of such arrays (the augmentation then gets the
            nest). No labels.
        augmentation: a Keras layer or another function of a float32 batch of samples, made of
            TensorFlow or `keras.ops` operations; layers are called with `training=True`. It is
            called on the `ways` samples once for each augmentation of them.
        ways: samples, and so classes, an episode. Defaults to 5, as the paper trains.
        shots: support samples a class. Defaults to 1, the paper's.
        queries: query samples a class. Defaults to 1, the paper's.
        augment_support: whether the first support sample is an augmentation too, for symmetric
            tasks or where the augmentation changes the size. Defaults to False, the paper's.
        episodes: number of episodes. Default: no end.
        seed: episode i is a function of the arguments above and `(seed, i)`, whatever `start` and
            `episodes`. Default: a seed from Python's generator, which
            `keras.utils.set_random_seed` sets.
        start: the first episode. Defaults to 0.

    Returns:
        A prefetched, unbatched `tf.data.Dataset` of known shapes and cardinality: `support_x`
        `(ways * shots, …)`, `support_y` `(ways * shots,)`, `query_x` `(ways * queries, …)` and
        `query_y` `(ways * queries,)`. Labels are int64, samples float32.

    Raises:
        ValueError: if a number is out of range, there are fewer samples than `ways`, the
            augmentation changes the shape of samples beside which the sample itself stands, or a
            layer draws random numbers from another seed generator than its own.

    Example:
    >>> images = np.zeros((60, 28, 28, 1), "uint8")
    >>> augmentation = keras.layers.RandomTranslation(0.2, 0.2, fill_mode="constant")
    >>> dataset = umtra(images, augmentation, ways=5, queries=3, episodes=64, seed=0)
    >>> for episode, query_y in dataset.batch(32).take(1):
    ...     print(episode["support_x"].shape, query_y.shape)
    (32, 5, 28, 28, 1) (32, 15)

    Reference:
        - Khodadadeh, Bölöni and Shah 2019, Unsupervised Meta-Learning for Few-Shot Image
          Classification, section 3
    """
    x, count = sample_arrays(x)
    ways, shots = arguments.count("ways", ways), arguments.count("shots", shots)
    queries = arguments.count("queries", queries)
    if ways > count:
        raise ValueError(
            f"`ways` must be at most the number of samples, {count}. Received: ways={ways}"
        )
    if not isinstance(augment_support, (bool, np.bool_)):
        raise ValueError(
            f"`augment_support` must be True or False. Received: augment_support={augment_support!r}"
        )
    number, seed, start = checked_stream(episodes, seed, start)
    as_they_are = 0 if augment_support else 1
    read = reader(x)
    views, is_pure = _views_function(augmentation, shots + queries - as_they_are)

    def members(index, seed):
        """All samples of an episode, `(ways, shots + queries, …)`."""
        samples = keras.tree.map_structure(
            lambda array: tf.cast(array, tf.float32), read(index[:, tf.newaxis])
        )
        made = views(keras.tree.map_structure(lambda array: array[:, 0], samples), seed)
        made = keras.tree.map_structure(lambda array: tf.cast(array, tf.float32), made)
        if not as_they_are:
            return made
        _check_same_shape(samples, made)
        return keras.tree.map_structure(
            lambda array, view: tf.concat([array, view], axis=1), samples, made
        )

    # Once here: layers are built, and errors come before training.
    members(tf.range(ways, dtype=tf.int64), tf.zeros([2], tf.int32))

    def draw(seed):
        generator = np.random.default_rng(seed)
        taken = draw_distinct(generator, np.full(BLOCK, count), ways)
        return [taken, generator.integers(0, _SEED_BOUND, (BLOCK, 2), "int32")]

    task = [tf.TensorSpec((ways,), tf.int64), tf.TensorSpec((2,), tf.int32)]
    drawn = task_stream(draw, task, seed=seed, episodes=number, start=start)
    made = drawn.map(
        lambda index, seed: as_episode(members(index, seed), ways, shots, queries),
        # Another's random state has to be drawn in order.
        num_parallel_calls=tf.data.AUTOTUNE if is_pure else None,
        deterministic=True if is_pure else None,
    )
    return finished(made, number)


def _views_function(augmentation: Callable, views: int) -> "tuple[Callable, bool]":
    """A function `(samples, seed)` to views `(ways, views, …)`, and whether it is a pure one."""
    if isinstance(augmentation, (list, tuple)):
        raise ValueError(
            "`augmentation` must be one callable (to chain several, use keras.Sequential). "
            f"Received: {augmentation!r}"
        )
    augmented_views.check(augmentation, views)
    if isinstance(augmentation, keras.layers.Layer):
        return functools.partial(_views_of_layer, augmentation, views), True
    try:
        takes_seed = "seed" in inspect.signature(augmentation).parameters
    except (TypeError, ValueError):  # Built-in functions have no signature.
        takes_seed = False
    if not takes_seed:
        return lambda samples, seed: augmented_views.make(samples, augmentation, views), False

    def views_of_function(samples, seed):
        each: list[Callable] = [
            functools.partial(augmentation, seed=random_state.fold_in(seed, view))
            for view in range(views)
        ]
        return augmented_views.make(samples, each, views)

    return views_of_function, True


def _views_of_layer(layer: keras.layers.Layer, views: int, samples, seed):
    """What the layer makes with states of its seed generators that follow from the seed.

    Nothing of the layer is read or changed that the calls of other threads or episodes change.
    """
    if not layer.built:
        augmented_views.make(samples, layer, 1)
    states = [variable for variable in layer.variables if random_state.is_seed(variable)]
    given = [
        (state, random_state.fold_in(tf.cast(seed, state.dtype), place))
        for place, state in enumerate(states)
    ]
    with keras.StatelessScope(given) as scope:
        made = augmented_views.make(samples, layer, views)
    if scope.state_mapping.keys() - {id(variable) for variable in layer.variables}:
        raise ValueError(
            "`augmentation` must draw its random numbers from seed generators of its own, or they "
            "would be the same in every episode: keep a keras.random.SeedGenerator as an "
            f"attribute of the layer, and pass it for `seed`. Received: {layer!r}"
        )
    return made


def _check_same_shape(samples, made) -> None:
    shapes = [
        [tuple(array.shape[2:]) for array in keras.tree.flatten(nest)] for nest in (samples, made)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`augmentation` must keep the shape of the samples, which stand beside its outputs: "
            "resize `x` first, or have every sample augmented by `augment_support=True`. "
            f"Received: {shapes[1]} from samples of {shapes[0]}"
        )
