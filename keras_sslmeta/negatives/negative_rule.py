"""`NegativeRule`: parent of the rules that say which negatives count, and how much."""

import tensorflow as tf

from keras_sslmeta.mechanisms import pair_selection


class NegativeRule:
    """Parent of rules on negatives, for the argument `negatives` of the softmax losses.

    A rule gives every pair of an anchor and a negative a log-weight: 0 leaves the pair as it is, −inf
    leaves it out, log w lets it count w times. It is evaluated on tiles of the similarity matrix, so it
    costs no memory of the matrix's size, and sees the negatives of all replicas and of a memory. Rules of
    a list apply in their order, and their log-weights add up. No gradient goes through a rule.

    A rule of your own defines two methods. `negatives` gives what it needs to know, of rows and of keys:
    `of_samples(name)` of information with one entry a sample, `vectors(name)` of one a view, `(batch, views,
    …)`, `labels(name)` of labels as numbers; a rule that needs nothing returns `[], []`.

    ```python
    @keras.saving.register_keras_serializable()        # to be saved with the loss
    class ExcludeEarlier(ksm.negatives.NegativeRule):
        def of_pairs(self, negatives):                 # one entry a row, one entry a key
            return negatives.of_samples("time")        # of y_true["time"], (batch,)

        def log_weights(self, similarity, of_rows, of_keys):
            return tf.where(of_keys[None] < of_rows[:, None], -np.inf, 0.0)
    ```

    """

    def of_pairs(self, negatives):
        """What the rule knows of rows and keys: a pair of tensors or of lists of them."""
        raise NotImplementedError(f"{type(self).__name__} must define `of_pairs`.")

    def log_weights(self, similarity, of_rows, of_keys) -> tf.Tensor:
        """Log-weights `(rows, keys)`; `similarity` holds the cosines of a tile, −inf where left out."""
        raise NotImplementedError(f"{type(self).__name__} must define `log_weights`.")

    def prepare(self, negatives) -> pair_selection.Rule:
        """The rule on one batch of `mechanisms.negative_keys.NegativeKeys`."""
        pair = self.of_pairs(negatives)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(
                f"`{type(self).__name__}.of_pairs` must return two things, of rows and of keys, each a "
                f"tensor or a list of tensors. Received: {pair!r}"
            )
        of_rows, of_keys = pair
        are_lists = isinstance(of_rows, (list, tuple))

        def log_weights(similarity, a, b):
            weights = self.log_weights(similarity, *((a, b) if are_lists else (a[0], b[0])))
            return tf.cast(weights, similarity.dtype)

        return pair_selection.Rule(
            log_weights,
            list(of_rows) if are_lists else [of_rows],
            list(of_keys) if are_lists else [of_keys],
        )

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config):
        """The rule of that configuration."""
        return cls(**config)


def left_out(where: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Log-weights that leave out the pairs `where` and no others."""
    return tf.where(where, tf.constant(float("-inf"), like.dtype), tf.zeros([], like.dtype))
