"""Datasets of augmented views, for a plain Keras model with a contrastive loss."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import arguments, augmented_views, sample_nest
from keras_sslmeta.mechanisms.prompt_epochs import untuned

_BUFFER = 10_000  # Samples of a dataset to shuffle among, where its user names no number.


def two_views(
    x: Any,
    y: Any = None,
    *,
    augmentation: Callable | list[Callable] | tuple[Callable, ...],
    batch_size: int,
    views: int = 2,
    shuffle: bool | int = True,
    seed: int | None = None,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Makes batches of augmented views, `(batch, views, height, width, channels)`.

    It is for people who compile a plain `keras.Model` with a loss such as `NTXent`; the models of
    `keras_sslmeta` make their views themselves. The augmentation runs in the input pipeline on
    the CPU, one batch after another so that a fixed seed gives the same views again, while the
    model computes. Give `fit` its `shuffle=False` with it: of a dataset, Keras warns otherwise.

    Args:
        x: samples `(n, height, width, channels)`, or a nest of such arrays (the augmentation then
            gets the nest); or an unbatched `tf.data.Dataset` of samples, or of `(sample, label)`.
            Every array comes out as float32.
        y: labels `(n, …)` or None. They pass through. A dataset brings its own.
        augmentation: a Keras layer or another function of a float32 batch of samples, made of
            TensorFlow or `keras.ops` operations. Layers are called with `training=True`. A list
            or tuple has one for each view; a single one makes every view, each with its own
            randomness.
        batch_size: samples a batch.
        views: views a sample. Defaults to 2.
        shuffle: whether each pass over the dataset has another order. Arrays are shuffled
            wholly, a dataset among 10,000 samples or, where `shuffle` is an integer, so many.
        seed: the order of an array in the k-th pass is a function of `(seed, k)`, that of a
            dataset of `(seed, k)` and TensorFlow's global seed. Default: a seed from Python's
            generator, which `keras.utils.set_random_seed` sets. The views' randomness is the
            augmentation's own.
        drop_remainder: whether a last batch of fewer samples is left out. Defaults to False.

    Returns:
        A `tf.data.Dataset` of views, or of `(views, y)`. Its cardinality is known where the
        number of samples is.

    Raises:
        ValueError: if an argument is out of range, the lengths of the arrays differ, the number
            of augmentations isn't `views`, or views of one sample differ in shape.

    Example:
    >>> images = np.zeros((10, 8, 8, 1), "uint8")
    >>> dataset = two_views(images, augmentation=keras.layers.RandomFlip(), batch_size=4)
    >>> [tuple(batch.shape) for batch in dataset]
    [(4, 2, 8, 8, 1), (4, 2, 8, 8, 1), (2, 2, 8, 8, 1)]

    Reference:
        - Chen et al. 2020, A Simple Framework for Contrastive Learning (two views a sample)
    """
    arguments.count("batch_size", batch_size)
    arguments.count("views", views)
    if not isinstance(shuffle, (bool, np.bool_)):
        arguments.count("shuffle", shuffle)
    augmented_views.check(augmentation, views)
    seed = arguments.seed(seed)
    if isinstance(x, tf.data.Dataset):
        if y is not None:
            raise ValueError("`y` must be None where `x` is a dataset, which brings its own labels")
        batches = _batches_of_dataset(x, batch_size, shuffle, int(seed), drop_remainder)
    else:
        batches = _batches_of_arrays(x, y, batch_size, bool(shuffle), int(seed), drop_remainder)

    def augment(samples, *labels):
        stack = _to_float(augmented_views.make(_to_float(samples), augmentation, views))
        return (stack, *labels) if labels else stack

    # Not in parallel: the augmentation's random state has to be drawn in order.
    return batches.map(augment).prefetch(tf.data.AUTOTUNE)


def _batches_of_arrays(x, y, batch_size, shuffle, seed, drop_remainder) -> tf.data.Dataset:
    """Batches of `(x,)` or `(x, y)`, gathered by index, so that nothing is copied sample-wise."""
    with tf.device("CPU"):
        samples = _tensors(x)
        labels = () if y is None else (_tensors(y),)
    _check_numbers(samples)
    count = _common_length(samples, *labels)
    passes = itertools.count()

    def order() -> Iterator[np.ndarray]:
        generator = np.random.default_rng((seed, next(passes)))
        yield generator.permutation(count)

    if shuffle:
        indices = tf.data.Dataset.from_generator(
            order, output_signature=tf.TensorSpec((count,), tf.int64)
        ).unbatch()
    else:
        indices = tf.data.Dataset.range(count)
    batches = count // batch_size if drop_remainder else -(-count // batch_size)
    options = untuned()
    # There are no files to share out among workers: each takes its part of every batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return (
        indices.batch(batch_size, drop_remainder=drop_remainder)
        .map(
            lambda index: keras.tree.map_structure(
                lambda array: tf.gather(array, index), (samples, *labels)
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .apply(tf.data.experimental.assert_cardinality(batches))
        .with_options(options)
    )


def _batches_of_dataset(dataset, batch_size, shuffle, seed, drop_remainder) -> tf.data.Dataset:
    """Batches of `(x,)` or `(x, y, …)` of an unbatched dataset."""
    if shuffle:
        buffer = _BUFFER if isinstance(shuffle, (bool, np.bool_)) else int(shuffle)
        dataset = dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
    batches = dataset.batch(
        batch_size,
        drop_remainder=drop_remainder,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    if not isinstance(dataset.element_spec, tuple):
        batches = batches.map(lambda samples: (samples,))
    _check_numbers(batches.element_spec[0])
    return batches


def _to_float(nest):
    return keras.tree.map_structure(lambda array: tf.cast(array, tf.float32), nest)


def _tensors(arrays):
    """Tensors of a nest of arrays; a list is an array here, and tuples and dicts are nests."""
    if isinstance(arrays, list):
        arrays = np.asarray(arrays)
    return keras.tree.map_structure(tf.convert_to_tensor, arrays)


def _common_length(*nests) -> int:
    """The number of samples of arrays that go together."""
    if not sample_nest.length(*nests):
        raise ValueError(
            "`x` and `y` must be arrays of one length, with a sample at least. "
            f"Received: shapes {sample_nest.described(nests)}"
        )
    return sample_nest.length(*nests)


def _check_numbers(samples) -> None:
    for spec in keras.tree.flatten(samples):
        dtype = spec.dtype
        if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
            raise ValueError(f"`x` must hold numbers. Received: dtype={dtype.name}")
