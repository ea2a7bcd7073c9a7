import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_sslmeta.visualization import plot_embedding

RANDOM = np.random.default_rng(0)
LABELS = np.repeat(np.arange(3), 20)
FEATURES = (RANDOM.normal(size=(60, 8)) + 20 * np.eye(8)[LABELS]).astype("float32")


def points(ax):
    return np.asarray(ax.collections[0].get_offsets())


def test_tsne_keeps_classes_apart(tmp_path):
    ax = plot_embedding(FEATURES, LABELS)
    assert points(ax).shape == (60, 2)
    # Each class's name stands at its median: the colours around it are its own.
    colors = ax.collections[0].get_facecolors()
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    nearest = [np.argsort(((points(ax) - t.get_position()) ** 2).sum(1))[:10] for t in ax.texts]
    shades = [{tuple(color) for color in colors[near]} for near in nearest]
    assert all(len(shade) == 1 for shade in shades)
    assert len(set.union(*shades)) == 3
    ax.figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_pca_is_the_first_two_directions():
    ax = plot_embedding(FEATURES, LABELS, method="pca")
    centred = FEATURES - FEATURES.mean(0)
    _, singular, _ = np.linalg.svd(centred, full_matrices=False)
    spread = np.sqrt((points(ax) ** 2).sum(0))
    np.testing.assert_allclose(spread, singular[:2], rtol=1e-4)


def test_same_seed_same_map():
    first, second = (points(plot_embedding(FEATURES, LABELS, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_many_points_are_sampled_and_many_classes_unnamed():
    features = RANDOM.normal(size=(5000, 4))
    ax = plot_embedding(features, np.arange(5000) % 100, method="pca", seed=1)
    assert points(ax).shape == (2000, 2) and not ax.texts


def test_strings_images_and_given_axes():
    axes = Figure().subplots()
    names = np.array(["ant", "bee", "cow"])[LABELS]
    ax = plot_embedding(FEATURES.reshape(60, 2, 2, 2), names, ax=axes, method="pca")
    assert ax is axes and [text.get_text() for text in ax.texts] == ["ant", "bee", "cow"]


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize(
    "features", [RANDOM.normal(size=(3, 5)), RANDOM.normal(size=(20, 1)), np.ones((12, 4))]
)
def test_small_and_degenerate_sets(features, method):
    ax = plot_embedding(features, np.zeros(len(features), int), method=method)
    assert np.isfinite(points(ax)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "umap"}, '`method` must be "tsne" or "pca". Received: \'umap\''),
        ({"features": FEATURES * np.nan}, "`features` must be finite.*480 bad numbers"),
        ({"features": FEATURES[:2], "labels": LABELS[:2]}, "three samples or more"),
        ({"labels": LABELS[:5]}, "5 labels for 60 samples"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        plot_embedding(**{"features": FEATURES, "labels": LABELS, **change})
