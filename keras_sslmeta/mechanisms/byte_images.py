"""Images of bytes, as a model takes them."""

import keras
import tensorflow as tf


def as_the_model_takes_them(model, inputs):
    """Images of bytes become floats, unless the model wants integers (an embedding of them, say)."""
    expected = [x.dtype for x in getattr(model, "inputs", None) or []]
    wants_integers = any("int" in keras.backend.standardize_dtype(dtype) for dtype in expected)
    return keras.tree.map_structure(
        lambda x: (
            tf.cast(x, keras.config.floatx()) if x.dtype == tf.uint8 and not wants_integers else x
        ),
        inputs,
    )
