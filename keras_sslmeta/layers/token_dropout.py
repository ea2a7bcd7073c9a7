"""Token dropout: random tokens of a text deleted or masked."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_sslmeta.layers import image_arguments
from keras_sslmeta.layers.sample_augmentation import SampleAugmentation
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.layers")
class TokenDropout(SampleAugmentation):
    """Drops each token with a probability: deletes it, or puts a mask in its place.

    Padding stays, and so do `keep_tokens`. Of the other tokens of a text one stays at least: where
    all would go, one of them, chosen at random, is kept. So a token of `n` goes with probability
    `rate − rateⁿ / n`.

    Deleting closes the gaps: the tokens after a deleted one move up, and padding fills the end.

    Args:
        rate: Probability of dropping a token, in [0, 1]. Published rates are 0.1 for deletion (Wei
            & Zou) and 0.15 for masking (BERT).
        mask_token: What takes the place of dropped tokens. Default None: they are deleted.
        pad_token: The padding, or None where there is none. Default 0, as in Keras's
            `TextVectorization`.
        keep_tokens: Tokens that are never dropped, such as those of the beginning and end of a
            text. Default none.
        seed: Integer, or None for one drawn from Keras's global seed.
        **kwargs: Keras's own, such as `name`.

    Call arguments:
        inputs: tokens, `(batch, time)`, of an integer dtype, or whole numbers of a floating one (as
            `ksm.data.two_views` hands them over).

    Returns:
        Tokens of the same shape and dtype, whatever the layer's own dtype is.

    Raises:
        ValueError: if an argument is not as above, tokens are to be deleted and there is no
            padding to fill the end with, or the inputs have another rank.

    Example:

    >>> import numpy
    >>> from keras_sslmeta.layers import TokenDropout
    >>> tokens = numpy.array([[5, 6, 7, 8, 0, 0]])
    >>> TokenDropout(0.5, mask_token=1, seed=2)(tokens).shape
    TensorShape([1, 6])
    >>> TokenDropout(1.0, mask_token=1, keep_tokens=[5, 6], seed=0)(tokens).numpy()[0, [0, 1, 4, 5]]
    array([5, 6, 0, 0])

    References:
        Wei, Zou 2019, EDA: Easy Data Augmentation Techniques, section 2 (random deletion).
        https://arxiv.org/abs/1901.11196
        Bowman et al. 2016, Generating Sentences from a Continuous Space, section 3.1 (word
        dropout). https://arxiv.org/abs/1511.06349
    """

    ranks = (2,)
    axes = "(batch, time) of tokens"

    def __init__(
        self,
        rate: float,
        mask_token: int | None = None,
        pad_token: int | None = 0,
        keep_tokens: Sequence[int] = (),
        seed: int | None = None,
        **kwargs,
    ):
        self.rate = image_arguments.probability("rate", rate)
        self.mask_token = _token("mask_token", mask_token)
        self.pad_token = _token("pad_token", pad_token)
        self.keep_tokens = [_token("keep_tokens", token, "integers") for token in keep_tokens]
        if self.mask_token is None and self.pad_token is None:
            raise ValueError(
                "`pad_token` must be an integer where tokens are deleted (`mask_token=None`): it "
                "fills the end. Received: pad_token=None"
            )
        # Tokens that come as floats must not be rounded to half precision.
        super().__init__(seed=seed, autocast=False, **kwargs)

    def call(self, inputs, training=True):
        tokens = tf.convert_to_tensor(inputs)
        output_shape = self.compute_output_shape(tokens.shape)
        if training:
            tokens = self.augment(tokens, self._next_seed())
        tokens.set_shape(output_shape)
        return tokens

    def augment(self, tokens: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        draw = self.uniform(seed, tf.shape(tokens))
        may_go = tf.ones_like(tokens, tf.bool)
        for token in [*self.keep_tokens, *([] if self.pad_token is None else [self.pad_token])]:
            may_go &= tokens != tf.cast(token, tokens.dtype)
        # The largest draw stays in any case, which matters only where every draw is below the rate.
        survivor = tf.argmax(tf.where(may_go, draw, -1.0), axis=1, output_type=tf.int32)
        position = tf.range(tf.shape(tokens)[1])
        is_dropped = may_go & (draw < self.rate) & (position != survivor[:, tf.newaxis])
        if self.mask_token is not None:
            return tf.where(is_dropped, tf.cast(self.mask_token, tokens.dtype), tokens)
        return self._delete(tokens, is_dropped, position)

    def compute_output_spec(self, inputs, training=True):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=inputs.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "mask_token": self.mask_token,
            "pad_token": self.pad_token,
            "keep_tokens": self.keep_tokens,
        }

    def _delete(self, tokens, is_dropped, position):
        length = tf.size(position)
        order = tf.argsort(tf.where(is_dropped, position + length, position), axis=1)
        kept = length - tf.reduce_sum(tf.cast(is_dropped, tf.int32), axis=1, keepdims=True)
        moved = tf.gather(tokens, order, axis=1, batch_dims=1)
        return tf.where(position < kept, moved, tf.cast(self.pad_token, tokens.dtype))


def _token(name, value, required="an integer or None"):
    if not (arguments.is_integer(value) or (value is None and required != "integers")):
        raise ValueError(f"`{name}` must be {required}. Received: {name}={value!r}")
    return None if value is None else int(value)
