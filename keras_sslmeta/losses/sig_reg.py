"""SIGReg, the regulariser of LeJEPA (Balestriero and LeCun 2025)."""

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.mechanisms import arguments, row_functions


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class SIGReg(BatchStatisticLoss):
    r"""Sketched isotropic Gaussian regularisation: how far embeddings are from a standard normal cloud.

    The embeddings of the global batch of B samples are projected on M random unit vectors a. Each
    projection is compared with the standard normal by the Epps–Pulley statistic, the weighted distance of
    their characteristic functions, and the loss is the mean over directions:

    ```
    φ_a(t) = 1/B · Σ_i exp(i t a·z_i)          φ(t) = exp(−t²/2)
    loss   = 1/M · Σ_a  B · ∫ |φ_a(t) − φ(t)|² φ(t) dt
    ```

    with the integral by the trapezoidal rule on `knots` equal steps of [−limit, limit]. With several views
    it is the mean over views, all on the same directions. Embeddings are not divided by their norm.

    This is the regulariser alone. LeJEPA's loss is (1 − λ) · invariance + λ · SIGReg, λ 0.05, where the
    invariance is the mean squared distance of views from their mean.

    The directions are a function of `seed` and of the step that the call gives, the same on every replica.
    Fresh directions in every step see more of the space over time: give the optimiser's iteration.

    The projections are taken for some directions at a time, and again in the gradient, so that memory does
    not grow with directions and knots.

    Args:
        directions: M, a positive integer. Defaults to 1024 (the paper).
        knots: points of the integral, an integer from 3. Defaults to 17 (the paper).
        limit: where the integral ends, a positive number. Defaults to 5 (the paper). The authors'
            package has since moved to 17 knots on [0, 3], which is `knots=33, limit=3.0` here.
        seed: of the directions, an integer from 0. Defaults to 0.
        gather: whether characteristic functions are of the samples of all replicas of a `tf.distribute`
            strategy, which makes the loss independent of their number. False takes each replica's own
            samples. Defaults to True.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision embeddings are projected in float32 in any case.

    Call arguments:
        y_true: None, or the step that the directions are of, one integer (`model.optimizer.iterations`),
            the same on every replica. None is step 0. Anything with a batch axis, such as labels, is
            ignored.
        y_pred: floating-point embeddings `(batch, dim)` or `(batch, views, dim)`.

    Returns:
        The loss; with `reduction=None`, that scalar repeated to `(batch,)`. NaN in the embeddings gives
        NaN.

    Raises:
        ValueError: if `directions`, `knots`, `limit` or `seed` is not as above; if the step is a single
            number but no integer; if `y_pred` is of another rank or holds integers; if a `sample_weight`
            is given, since no sample has a loss of its own.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> normal = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    >>> loss = ksm.losses.SIGReg(directions=64)
    >>> bool(10 * loss(None, normal) < loss(None, 3 * normal))
    True
    >>> bool(loss(1, normal) == loss(2, normal))    # other directions
    False

    Reference:
        Balestriero, LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the
        Heuristics", 2025, Sec. 4, 6.1 and Algorithm 1. https://arxiv.org/abs/2511.08544
        Epps, Pulley, "A Test for Normality Based on the Empirical Characteristic Function", Biometrika
        70(3), 1983.
    """

    def __init__(
        self,
        directions: int = 1024,
        knots: int = 17,
        limit: float = 5.0,
        seed: int = 0,
        gather: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "sig_reg",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype, gather=gather)
        self.directions = arguments.count("directions", directions)
        self.knots = arguments.count("knots", knots, least=3)
        self.limit = arguments.positive_number("limit", limit)
        if not arguments.is_integer(seed) or not 0 <= seed < 2**31:
            raise ValueError(f"`seed` must be an integer from 0. Received: seed={seed!r}")
        self.seed = int(seed)

    def targets(self, y_true, y_pred):
        """The step, where a single number came; labels are ignored."""
        if arguments.is_integer(y_true):
            return tf.constant(int(y_true), tf.int64)
        shape = getattr(y_true, "shape", None)
        is_single = isinstance(y_true, (bool, float)) or (shape is not None and shape == ())
        if not is_single:
            return None
        step = tf.convert_to_tensor(y_true)
        if not step.dtype.is_integer:
            raise ValueError(
                "`y_true` must be None or the step that the directions are of, an integer. "
                f"Received: y_true={y_true!r}"
            )
        return step

    def draw_directions(self, dim: int, step=None) -> tf.Tensor:
        """The unit vectors of a step, `(directions, dim)` float64.

        The same numbers are drawn whatever the dtype of the embeddings, on every kind of device.
        """
        step = tf.cast(0 if step is None else step, tf.int64)
        # Without a sign: XLA and TensorFlow's own kernels draw different bits from negative seeds.
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.math.floormod(step, 2**31)])
        # Bits, of which XLA and TensorFlow's own kernels draw the same, and Box and Muller's normal numbers.
        bits = tf.random.stateless_uniform(
            [2, self.directions, dim], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
        radius, angle = tf.unstack((tf.cast(bits, tf.float64) + (2**31 + 0.5)) / 2**32)
        vectors = tf.sqrt(-2 * tf.math.log(radius)) * tf.cos(2 * np.pi * angle)
        return vectors / tf.norm(vectors, axis=1, keepdims=True)

    def statistic(self, y_true, y_pred):
        z = self.embeddings(y_pred, least_views=1)
        directions = tf.cast(self.draw_directions(z.shape[2], y_true), z.dtype)
        # At t = 0 both functions are 1, and what −t gives equals what t gives.
        t = np.linspace(-self.limit, self.limit, self.knots)
        t = t[t > 1e-6 * self.limit]
        waves = _wave_sums([float(x) for x in t])
        sums = [
            row_functions.of_rows(waves, directions, z[:, v], shape=(len(t), 2))
            for v in range(z.shape[1])
        ]
        samples = self.samples(z)
        # Real and imaginary part of φ_a(t), (views, directions, knots, 2).
        of_batch = self.total(tf.stack(sums)) / tf.maximum(samples, 1)
        normal = np.exp(-0.5 * t**2)
        expected = tf.constant(np.stack([normal, np.zeros_like(t)], axis=1), z.dtype)
        distance = tf.reduce_sum(tf.math.squared_difference(of_batch, expected), axis=-1)
        steps = np.full(len(t), 2 * self.limit / (self.knots - 1))
        steps[-1] /= 2
        integral = tf.linalg.matvec(distance, tf.constant(2 * steps * normal, z.dtype))
        return tf.reduce_mean(integral) * samples

    def get_config(self):
        return {
            **super().get_config(),
            "directions": self.directions,
            "knots": self.knots,
            "limit": self.limit,
            "seed": self.seed,
        }


def _wave_sums(knots):
    """``(directions, embeddings) → (directions, knots, 2)``, sums of cosines and sines over embeddings.

    Its own gradient computes the waves again, knot by knot: they are as large as the projections.
    """

    @tf.custom_gradient
    def of_projections(p):
        sums = [
            tf.stack([tf.reduce_sum(wave(t * p), axis=1) for wave in (tf.cos, tf.sin)], axis=1)
            for t in knots
        ]

        def gradient(upstream):
            result = tf.zeros_like(p)
            for k, t in enumerate(knots):
                of_cos, of_sin = (upstream[:, k, part, None] for part in (0, 1))
                result += t * (of_sin * tf.cos(t * p) - of_cos * tf.sin(t * p))
            return result

        return tf.stack(sums, axis=1), gradient

    def of_directions(directions, z):
        return of_projections(tf.matmul(tf.stop_gradient(directions), z, transpose_b=True))

    return of_directions
