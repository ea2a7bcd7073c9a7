"""Parts of a labelled set that share no class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sslmeta.data.labelled_arrays import labelled_arrays
from keras_sslmeta.mechanisms import arguments, sample_nest


def split_classes(
    data: tuple[Any, Any], sizes: Sequence[int] | Sequence[float], seed: int | None = None
) -> tuple[tuple[Any, np.ndarray], ...]:
    """Splits a labelled set by class, so that no part has a class of another.

    That is the split that few-shot learning asks for: what is learnt on the classes of one part
    is tested on classes that were never seen. Classes go to the parts at random.

    Args:
        data: `(x, y)`: samples, an array `(n, …)` or a nest of such arrays, and their labels
            `(n,)`, integers or strings; or a finite `tf.data.Dataset` of such pairs, batched or not,
            which is read into memory.
        sizes: for each part the number of its classes, as integers; or its share of the classes,
            as floats above 0 whose sum is at most 1. Classes that are left over go nowhere.
            The k-th part ends at the sum of the first k shares, rounded to a whole class.
        seed: which classes go where is a function of the seed and the set of labels. Default: a
            seed from Python's generator, which `keras.utils.set_random_seed` sets.

    Returns:
        A pair `(x, y)` for each part: copies of the samples, in the order that they had, with
        the labels that they had.

    Raises:
        ValueError: if `sizes` are neither all integers nor all floats, ask for more classes than
            there are, or leave a part without a class.

    Example:
    >>> x, y = np.arange(12), np.repeat(["ant", "bee", "cat", "dog"], 3)
    >>> (_, train_y), (test_x, test_y) = split_classes((x, y), [3, 1], seed=0)
    >>> len(train_y), len(test_x), set(train_y) & set(test_y)
    (9, 3, set())
    >>> [len(part_y) for _, part_y in split_classes((x, y), [0.5, 0.25], seed=0)]
    [6, 3]

    Reference:
        - Vinyals et al. 2016, Matching Networks for One Shot Learning, section 4.1
    """
    x, labels = labelled_arrays(data, kinds="biuUS")
    classes, label_ids = np.unique(labels, return_inverse=True)
    ends = _ends(sizes, len(classes))
    order = np.random.default_rng(arguments.seed(seed)).permutation(len(classes))
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        members = np.flatnonzero(np.isin(label_ids, order[start:end]))
        parts.append((sample_nest.take(x, members), labels[members]))
    return tuple(parts)


def _ends(sizes: Any, classes: int) -> list[int]:
    """Where each part ends in the order of classes."""
    sizes = sizes.tolist() if isinstance(sizes, np.ndarray) else sizes
    listed = list(sizes) if isinstance(sizes, (tuple, list)) else []
    are_counts = all(arguments.is_integer(size) for size in listed)
    are_shares = all(isinstance(size, (float, np.floating)) for size in listed)
    if not listed or not (are_counts or are_shares) or not all(size > 0 for size in listed):
        raise ValueError(
            "`sizes` must be a sequence of positive numbers of classes (integers), or of shares of "
            f"them (floats). Received: sizes={sizes!r}"
        )
    sums = np.cumsum(listed)
    if are_counts:
        if sums[-1] > classes:
            raise ValueError(
                f"`sizes` must sum to at most the number of classes, {classes}. "
                f"Received: sizes={sizes!r}"
            )
        return sums.tolist()
    if sums[-1] > 1 + 1e-9:
        raise ValueError(f"`sizes` must sum to at most 1 as shares. Received: sizes={sizes!r}")
    ends = np.rint(sums * classes).astype(int)
    counts = np.diff(ends, prepend=0)
    if not counts.all():
        raise ValueError(
            f"`sizes` must leave a class to every part. Received: sizes={sizes!r} of {classes} "
            f"classes, which gives parts of {', '.join(map(str, counts))} classes"
        )
    return ends.tolist()
