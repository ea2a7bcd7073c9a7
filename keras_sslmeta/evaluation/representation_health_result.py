"""What `representation_health` finds."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class RepresentationHealthResult:
    """How widely features spread, and how well views of a sample agree.

    Attributes:
        rankme: effective number of dimensions, from 1 to `min(samples · views, dim)`; 0 where all
            features are zero.
        lidar: effective number of dimensions that tell samples apart in spite of the augmentation;
            NaN without views.
        alignment: mean squared distance of two views of a sample, on the unit sphere, from 0, where
            they are equal, to 4; NaN without views.
        uniformity: log mean of `exp(-2 d²)` over pairs of samples, on the unit sphere: 0 where all are
            equal, near -4 where spread evenly over many dimensions.
        feature_std: mean standard deviation of a unit vector's entries, times √dim: 0 where all are
            equal, 1 where spread evenly.
        dead_dimensions: number of features that are the same for every sample.
        singular_values: of the features, from the largest, `(min(samples · views, dim),)`.
        shape: of the features, `(samples, views, dim)`.

    Example:
    >>> RepresentationHealthResult(7.5, math.nan, math.nan, -2.1, 0.9, 1, np.ones(8), (64, 1, 8))
    RankMe 7.50 of 8, uniformity -2.10, feature std 0.900, 1 dead dimension of 8
    """

    rankme: float
    lidar: float
    alignment: float
    uniformity: float
    feature_std: float
    dead_dimensions: int
    singular_values: np.ndarray
    shape: tuple[int, int, int]

    def __repr__(self) -> str:
        samples, views, dim = self.shape
        parts = [f"RankMe {self.rankme:.2f} of {min(samples * views, dim)}"]
        if not math.isnan(self.lidar):
            parts.append(f"LiDAR {self.lidar:.2f}")
        if not math.isnan(self.alignment):
            parts.append(f"alignment {self.alignment:.3f}")
        plural = "" if self.dead_dimensions == 1 else "s"
        parts += [
            f"uniformity {self.uniformity:.2f}",
            f"feature std {self.feature_std:.3f}",
            f"{self.dead_dimensions} dead dimension{plural} of {dim}",
        ]
        return ", ".join(parts)
