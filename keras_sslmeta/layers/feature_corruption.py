"""Random feature corruption of tables (SCARF, Bahri et al. 2022)."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.sample_augmentation import SampleAugmentation


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class FeatureCorruption(SampleAugmentation):
    """Replaces a random part of the features of each row by those of other rows.

    Of the `M` features of a row, `⌊rate · M⌋` are chosen uniformly, and each takes the value that
    the same feature has in a row drawn uniformly for it alone: a draw from the feature's empirical
    marginal distribution (algorithm 1). The rows to draw from are

    - those given to `adapt`, as the paper draws from all the training data;
    - else, the other rows of the batch (on each replica, of its share); a batch of one row stays.

    SCARF compares each row with a corrupted copy, so its augmentation is a pair, of which the first
    changes nothing: see the example.

    Args:
        rate: Part of the features to replace, in [0, 1]. Default 0.6, the paper's.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name` and `dtype`.

    Call arguments:
        inputs: rows, `(batch, features)`, the number of features known in advance.

    Returns:
        As the inputs, in the layer's compute dtype.

    Raises:
        ValueError: if `rate` is not as above, or the inputs have another rank or features than
            the rows given to `adapt`.

    Example:

    >>> import keras, numpy
    >>> from keras_sslmeta.layers import FeatureCorruption
    >>> rows = numpy.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    >>> corruption = FeatureCorruption(rate=0.6, seed=0)
    >>> corruption.adapt(rows)
    >>> (corruption(rows[:4]).numpy() != rows[:4]).sum(axis=1)
    array([3, 3, 3, 3])
    >>> augmentation = [keras.layers.Identity(), corruption]  # of a model or of `two_views`

    Reference: Bahri, Jiang, Tay, Metzler 2022, SCARF: Self-Supervised Contrastive Learning using
        Random Feature Corruption, section 3 and algorithm 1. https://arxiv.org/abs/2106.15147
    """

    ranks = (2,)
    axes = "(batch, features)"

    def __init__(self, rate: float = 0.6, seed: int | None = None, **kwargs):
        self.rate = image_arguments.probability("rate", rate)
        super().__init__(seed=seed, **kwargs)
        self._reference_rows = 0
        self.reference: Any = None  # a weight, once there are rows

    def adapt(self, data) -> None:
        """Takes the rows to draw from; to be called before the layer's first call.

        They are kept in a weight, which is saved with the model: where there are millions of rows,
        some thousands drawn at random have the same marginals for all purposes.

        Args:
            data: rows `(n, features)`, an array or a batched `tf.data.Dataset` of them.

        Raises:
            ValueError: if `data` is not as above, or if the layer has been called before without
                rows or with another number of them.
        """
        if isinstance(data, tf.data.Dataset):
            data = np.concatenate([np.asarray(batch) for batch in data])
        rows = np.asarray(data)
        if rows.ndim != 2 or not rows.size:
            raise ValueError(
                "`data` must be rows (n, features), one at least. "
                f"Received: data of shape {rows.shape}"
            )
        if not self.built:
            self._reference_rows = len(rows)
            self.build(rows.shape)
        elif self.reference is None or tuple(self.reference.shape) != rows.shape:
            held = None if self.reference is None else tuple(self.reference.shape)
            raise ValueError(
                "`adapt` must come before the layer is first called, and take as many rows again "
                "later: graphs that exist already would not know the new ones. Make a new layer. "
                f"Received: data of shape {rows.shape}, where the layer holds {held}"
            )
        self.reference.assign(rows)

    def build(self, input_shape):
        (_, features) = self.compute_output_shape(input_shape)
        if self._reference_rows:
            self.reference = self.add_weight(
                shape=(self._reference_rows, features),
                initializer="zeros",
                trainable=False,
                name="reference",
            )
        self.built = True

    def get_build_config(self):
        config = super().get_build_config()
        return config and {**config, "reference_rows": self._reference_rows}

    def build_from_config(self, config):
        config = dict(config)
        self._reference_rows = config.pop("reference_rows", 0)
        super().build_from_config(config)

    def augment(self, rows: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        batch, features = tf.unstack(tf.shape(rows))
        choice_seed, row_seed = self.split(seed)
        # A tiny part more, for 0.29 · 100 is 28.999….
        corrupted = math.floor(self.rate * rows.shape[1] + 1e-9)
        order = tf.argsort(self.uniform(choice_seed, [batch, features]), axis=1)
        is_corrupted = tf.argsort(order, axis=1) < corrupted  # the rank of each feature's draw
        if self.reference is None:
            source = rows
            others = self.integers(row_seed, [batch, features], tf.maximum(batch - 1, 1))
            chosen = (tf.range(batch)[:, tf.newaxis] + 1 + others) % batch
        else:
            source = tf.cast(tf.convert_to_tensor(self.reference), rows.dtype)
            chosen = self.integers(row_seed, [batch, features], source.shape[0])
        values = tf.gather(tf.reshape(source, [-1]), chosen * features + tf.range(features))
        return tf.where(is_corrupted, values, rows)

    def compute_output_shape(self, input_shape):
        shape = super().compute_output_shape(input_shape)
        held = None if self.reference is None else self.reference.shape[1]
        if shape[1] is None or held not in (None, shape[1]):
            raise ValueError(
                "`inputs` must have as many features as the rows given to `adapt`, known in "
                f"advance. Received: shape={shape}, and {held or 'no'} features given to `adapt`"
            )
        return shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}
