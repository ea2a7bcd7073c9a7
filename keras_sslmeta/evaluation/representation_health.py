"""How widely features spread, and how well views of a sample agree, without labels."""

import itertools
import math
from typing import Any

import keras
import numpy as np

from keras_sslmeta.evaluation.features import unit_length
from keras_sslmeta.evaluation.representation_health_result import RepresentationHealthResult
from keras_sslmeta.mechanisms import arguments

_EPSILON = 1e-7  # RankMe's for float32; LiDAR has one too.
_ROUNDING = 1e-6  # Of float32 features, relative to the largest.
_ROWS = 1024  # Compared at a time.


def representation_health(
    features: Any, *, alpha: float = 2.0, t: float = 2.0, lidar_delta: float = 1e-4
) -> RepresentationHealthResult:
    """Measures, without labels, whether a representation has collapsed, and how far.

    With Z the features, one row a view of a sample, σ its singular values, and z the rows divided by
    their norm,

    ```
    RankMe      = exp(−Σ_k p_k log p_k)          p_k = σ_k / Σ_j σ_j + 1e-7
    LiDAR       = exp(−Σ_k p_k log p_k)          p_k = λ_k / Σ_j λ_j + 1e-7
    λ           = eigenvalues of  Σ_w^(−1/2) Σ_b Σ_w^(−1/2)
    Σ_b         = covariance of the samples' means over their views
    Σ_w         = mean over samples of the covariance of their views + δ I
    alignment   = mean_i ‖z_ia − z_ib‖^α         over the pairs of views
    uniformity  = log mean_{i<j} exp(−t ‖z_i − z_j‖²)       mean over the views
    feature std = √dim · mean over dimensions of the standard deviation of z's entries
    ```

    Both covariances are divided by the number, where LiDAR's paper takes unbiased estimates: only δ tells
    the difference. Alignment and uniformity are those of `losses.AlignmentUniformity`. Computed in float64,
    which costs O(n · views · dim²) and n² · views distances, in blocks. With a feature that is not
    finite, everything is NaN.

    RankMe is bounded by the number of rows: compare only at the same number of samples and views, and
    take several times as many rows as dimensions. It counts directions whatever they say, and a random
    encoder has many: a high RankMe does not prove a good representation, a small one is a bad sign.
    Neither RankMe nor LiDAR compares encoders on different data.

    Args:
        features: `(n, dim)`, or `(n, views, dim)` of augmented views of each sample, on which LiDAR
            and alignment depend.
        alpha: α of the alignment. Defaults to 2 (the paper).
        t: t of the uniformity. Defaults to 2 (the paper).
        lidar_delta: δ, in the features' own unit squared. Defaults to 1e-4, as others have it.

    Returns:
        A `RepresentationHealthResult`, of the numbers above, `dead_dimensions` and `singular_values`.

    Raises:
        ValueError: if features have another rank or are none, or an argument is not a positive number.

    Example:
    >>> random = np.random.default_rng(0)
    >>> spread = random.normal(size=(500, 2, 8))
    >>> flat = spread * [1, 1, 0, 0, 0, 0, 0, 0]
    >>> representation_health(flat).dead_dimensions
    6
    >>> round(representation_health(spread).rankme), round(representation_health(flat).rankme)
    (8, 2)

    Reference:
        - Garrido et al. 2023, RankMe: Assessing the Downstream Performance of Pretrained
          Self-Supervised Representations by Their Rank, Eq. 1. https://arxiv.org/abs/2210.02885
        - Thilak et al. 2024, LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL
          Architectures, section 4. https://arxiv.org/abs/2312.04000
        - Wang and Isola 2020, Understanding Contrastive Representation Learning through Alignment and
          Uniformity on the Hypersphere, section 4. https://arxiv.org/abs/2005.10242
        - Chen and He 2021, Exploring Simple Siamese Representation Learning, section 4.1 (the standard
          deviation). https://arxiv.org/abs/2011.10566
    """
    arguments.positive_number("alpha", alpha)
    arguments.positive_number("t", t)
    arguments.positive_number("lidar_delta", lidar_delta)
    z = _checked(features)
    _, views, dim = z.shape
    rows = z.reshape(-1, dim)
    if not np.isfinite(rows).all():
        return _unknown(z.shape)
    unit = unit_length(z)
    singular_values = _singular_values(rows)
    return RepresentationHealthResult(
        rankme=_smooth_rank(singular_values),
        lidar=_lidar(z, lidar_delta) if views > 1 else math.nan,
        alignment=_alignment(unit, alpha) if views > 1 else math.nan,
        uniformity=float(np.mean([_uniformity(unit[:, v], t) for v in range(views)])),
        feature_std=float(np.sqrt(dim) * unit.reshape(-1, dim).std(axis=0).mean()),
        dead_dimensions=int(np.sum(np.ptp(rows, axis=0) <= _ROUNDING * np.abs(rows).max())),
        singular_values=singular_values,
        shape=z.shape,
    )


def _unknown(shape: tuple[int, int, int]) -> RepresentationHealthResult:
    """Of features that are not finite."""
    samples, views, dim = shape
    return RepresentationHealthResult(
        rankme=math.nan,
        lidar=math.nan,
        alignment=math.nan,
        uniformity=math.nan,
        feature_std=math.nan,
        dead_dimensions=0,
        singular_values=np.full(min(samples * views, dim), np.nan),
        shape=shape,
    )


def _checked(features: Any) -> np.ndarray:
    """`(n, views, dim)` in float64."""
    z = np.asarray(keras.ops.convert_to_numpy(features))
    if z.ndim not in (2, 3) or z.size == 0 or z.dtype.kind not in "fiub":
        raise ValueError(
            "`features` must be numbers, (n, dim) or (n, views, dim). "
            f"Received: shape={z.shape}, dtype={z.dtype}"
        )
    z = z.astype("float64")
    return z[:, np.newaxis] if z.ndim == 2 else z


def _singular_values(rows: np.ndarray) -> np.ndarray:
    """From the largest, `(min(n, dim),)`, exact to 1e-8 of the largest: float32 features are no better.

    By the smaller of the two Gram matrices, many times faster than a singular value decomposition.
    """
    scale = np.abs(rows).max()
    if scale == 0:
        return np.zeros(min(rows.shape))
    rows = rows / scale  # Its squares neither overflow nor vanish.
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    return scale * np.sqrt(np.linalg.eigvalsh(gram)[::-1].clip(min=0))


def _smooth_rank(values: np.ndarray) -> float:
    """The exponential of the entropy of `values`, as Roy and Vetterli's effective rank."""
    total = values.sum()
    if total == 0:
        return 0.0
    p = values / total + _EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def _lidar(z: np.ndarray, delta: float) -> float:
    samples, _, dim = z.shape
    means = z.mean(axis=1, keepdims=True)
    within = (z - means).reshape(-1, dim)
    between = (means - means.mean(axis=0))[:, 0]
    if np.abs(between).max() <= _ROUNDING * np.abs(z).max():
        return 0.0  # Samples differ by rounding alone, which would be whitened into a full rank.
    values, vectors = np.linalg.eigh(within.T @ within / len(within))
    whitening = vectors / np.sqrt(values.clip(min=0) + delta)  # Σ_w^(−1/2), up to a rotation.
    eigenvalues = _singular_values(between @ whitening) ** 2 / samples
    return _smooth_rank(np.pad(eigenvalues, (0, dim - len(eigenvalues))))


def _alignment(unit: np.ndarray, alpha: float) -> float:
    distances = [
        np.linalg.norm(unit[:, a] - unit[:, b], axis=-1)
        for a, b in itertools.combinations(range(unit.shape[1]), 2)
    ]
    return float(np.mean(np.power(distances, alpha)))


def _uniformity(unit: np.ndarray, t: float) -> float:
    samples = len(unit)
    if samples == 1:
        return 0.0
    logs = []
    for start in range(0, samples, _ROWS):
        block = unit[start : start + _ROWS]
        # ‖z − z'‖² = 2 − 2 z·z'; a zero vector is at a right angle to all, as in the loss.
        squared = (2 - 2 * block @ unit.T).clip(min=0)
        rows = np.arange(len(block))
        squared[rows, start + rows] = np.inf  # Not with itself.
        logs.append(np.logaddexp.reduce(-t * squared, axis=None))
    return float(np.logaddexp.reduce(logs) - np.log(samples * (samples - 1)))
