import math

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from scipy.spatial.distance import pdist

from keras_sslmeta.evaluation import representation_health
from keras_sslmeta.losses import AlignmentUniformity

RANDOM = np.random.default_rng(0)
Z = RANDOM.normal(size=(60, 3, 8)) * np.linspace(0.1, 2, 8) + 0.3
Z[:, 1:] = 0.8 * Z[:, :1] + 0.3 * Z[:, 1:]  # Views of a sample are alike.


def entropy_rank(values):
    p = values / values.sum() + 1e-7
    return math.exp(-sum(v * math.log(v) for v in p))


def test_rankme():
    """Garrido et al., from the eigenvalues of the Gram matrix."""
    rows = Z.reshape(-1, 8)
    sigma = np.sqrt(scipy.linalg.eigh(rows.T @ rows, eigvals_only=True))
    health = representation_health(Z)
    assert health.rankme == pytest.approx(entropy_rank(sigma), rel=1e-9)
    np.testing.assert_allclose(health.singular_values, sigma[::-1], rtol=1e-9)
    assert 2 < health.rankme < 8
    assert representation_health(Z[:, 0]).rankme != health.rankme


def test_lidar():
    """Thilak et al., with a loop over samples and the square root of a matrix."""
    delta = 0.01
    between, within = np.zeros((8, 8)), np.zeros((8, 8))
    grand = Z.mean(axis=(0, 1))
    for views in Z:
        d = (views.mean(axis=0) - grand)[:, np.newaxis]
        between += d @ d.T / len(Z)
        for view in views:
            e = (view - views.mean(axis=0))[:, np.newaxis]
            within += e @ e.T / Z.shape[1] / len(Z)
    root = scipy.linalg.inv(scipy.linalg.sqrtm(within + delta * np.eye(8)))
    eigenvalues = scipy.linalg.eigh(root @ between @ root, eigvals_only=True)
    expected = entropy_rank(eigenvalues)
    assert representation_health(Z, lidar_delta=delta).lidar == pytest.approx(expected, rel=1e-8)
    assert representation_health(Z).lidar != pytest.approx(expected, rel=1e-3)


def test_lidar_counts_only_what_tells_samples_apart():
    """Directions that the augmentation fills with noise do not count, though RankMe counts them."""
    content = RANDOM.normal(size=(400, 1, 3))
    noise = RANDOM.normal(size=(400, 8, 5))
    z = np.concatenate([np.repeat(content, 8, axis=1) + 1e-2 * noise[..., :3], noise], axis=-1)
    health = representation_health(z)
    assert health.lidar == pytest.approx(3, abs=0.3)
    assert health.rankme > 6


def test_alignment_and_uniformity():
    unit = Z / np.linalg.norm(Z, axis=-1, keepdims=True)
    pairs = [(0, 1), (0, 2), (1, 2)]
    health = representation_health(Z, alpha=1.5, t=3.0)
    aligned = [np.linalg.norm(z[a] - z[b]) ** 1.5 for z in unit for a, b in pairs]
    assert health.alignment == pytest.approx(np.mean(aligned))
    spread = [math.log(np.mean(np.exp(-3 * pdist(unit[:, v]) ** 2))) for v in range(3)]
    assert health.uniformity == pytest.approx(np.mean(spread))


@pytest.mark.parametrize("zeros", [0, 4])
def test_agrees_with_the_loss(zeros):
    z = Z.copy()
    z[:zeros, 0] = 0  # Zero vectors have no direction: both must treat them alike.
    health = representation_health(z)
    loss = float(AlignmentUniformity(dtype="float64")(None, tf.constant(z)))
    assert health.alignment + health.uniformity == pytest.approx(loss, rel=1e-9)
    alone = float(AlignmentUniformity(uniformity_weight=0.0, dtype="float64")(None, tf.constant(z)))
    assert health.alignment == pytest.approx(alone, rel=1e-9)


def test_uniformity_in_blocks():
    z = RANDOM.normal(size=(2100, 3))
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    expected = math.log(np.mean(np.exp(-2 * pdist(unit) ** 2)))
    assert representation_health(z).uniformity == pytest.approx(expected, rel=1e-9)
    far = representation_health([[1.0, 0.0], [-1.0, 0.0]], t=1e4).uniformity
    assert far == pytest.approx(-4e4)  # Whose exponential is 0.


def test_feature_std():
    rows = Z.reshape(-1, 8)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = math.sqrt(8) * np.mean([unit[:, d].std() for d in range(8)])
    assert representation_health(Z).feature_std == pytest.approx(expected)
    gaussian = RANDOM.normal(size=(4000, 64))
    assert representation_health(gaussian).feature_std == pytest.approx(1, abs=0.01)


def test_dead_dimensions():
    z = RANDOM.normal(size=(50, 6)).astype("float32")
    z[:, 1], z[:, 4] = 0, 0.1
    assert representation_health(z).dead_dimensions == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_collapsed(dtype):
    point = RANDOM.normal(size=(1, 1, 16))
    z = np.tile(point, (40, 3, 1)).astype(dtype)
    z *= 1 + 1e-7 * RANDOM.normal(size=z.shape).astype(dtype)  # Rounding.
    health = representation_health(z)
    assert health.rankme == pytest.approx(1, abs=1e-4)
    assert health.lidar == 0
    assert health.feature_std < 1e-5 and abs(health.uniformity) < 1e-6
    assert health.dead_dimensions == 16
    nothing = representation_health(0 * z)
    assert (nothing.rankme, nothing.lidar, nothing.feature_std) == (0, 0, 0)


def test_without_views_and_with_a_sample():
    health = representation_health(Z[:, 0].astype("float16"))
    assert math.isnan(health.lidar) and math.isnan(health.alignment)
    assert health.shape == (60, 1, 8) and "LiDAR" not in repr(health)
    assert representation_health(Z[:1]).uniformity == 0
    tensor = representation_health(keras.ops.convert_to_tensor(Z.astype("float32")))
    assert "LiDAR" in repr(tensor) and tensor.rankme == pytest.approx(
        representation_health(Z).rankme, rel=1e-5
    )


def test_scale_of_features_does_not_matter():
    big, small = representation_health(Z * 1e20), representation_health(Z * 1e-20)
    for key in ("rankme", "alignment", "uniformity", "feature_std", "dead_dimensions"):
        assert getattr(big, key) == pytest.approx(getattr(small, key), rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(bad):
    z = Z.copy()
    z[3, 1, 2] = bad
    health = representation_health(z)
    assert math.isnan(health.rankme) and math.isnan(health.feature_std)
    assert np.isnan(health.singular_values).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": np.zeros(3)}, r"`features` must be numbers, \(n, dim\) or .*shape=\(3,\)"),
        ({"features": np.zeros((0, 3))}, "`features` must be"),
        ({"features": np.array([["a"]])}, "`features` must be numbers"),
        ({"features": Z, "alpha": 0}, "`alpha` must be a positive number. Received: alpha=0"),
        ({"features": Z, "t": -1}, "`t` must be a positive number"),
        ({"features": Z, "lidar_delta": 0}, "`lidar_delta` must be a positive number"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        representation_health(**arguments)
