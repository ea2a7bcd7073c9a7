"""How many samples a global batch of `fit` will hold, where that can be told."""

from typing import Any

import keras
import tensorflow as tf


def known(x: Any, batch_size: "int | None") -> "int | None":
    """The number for arrays and for datasets of static batches; None for all else.

    Args:
        x: of `fit`: arrays, or a dataset, a generator and the like.
        batch_size: of `fit`.
    """
    if isinstance(x, tf.data.Dataset):
        first = keras.tree.flatten(x.element_spec)[0].shape
        return first[0] if first.rank else None
    arrays = keras.tree.flatten(x)
    if not arrays or not hasattr(arrays[0], "shape"):
        return None
    return min(batch_size or 32, len(arrays[0]))
