"""A map of embeddings in the plane."""

from typing import Any, Literal

import numpy as np

from keras_sslmeta.evaluation.features import as_features, as_labels
from keras_sslmeta.visualization.palette import COLORS, INK

_POINTS = 2000  # More are slow to embed, and hide each other.
_NAMED = 30  # Classes that get their name written on the map.


def plot_embedding(
    features: Any,
    labels: Any,
    ax: Any = None,
    method: Literal["tsne", "pca"] = "tsne",
    seed: int = 0,
) -> Any:
    """Draws embeddings as points in the plane, coloured by class, names at the classes' medians.

    Args:
        features: `(n, dim)`, three samples or more. Of more than 2,000, so many are drawn at
            random.
        labels: one label a sample, `(n,)`, integers or strings. Up to 30 classes are named on the
            map. The ten colours repeat beyond ten classes.
        ax: matplotlib axes to draw on. Default: those of a new `Figure`.
        method: `"tsne"`, whose map keeps neighbours together and says nothing by its distances,
            or `"pca"`, the two directions of greatest variance.
        seed: of the sample and of t-SNE. Defaults to 0.

    Returns:
        The axes. `ax.figure.savefig("map.png")` saves the picture.

    Raises:
        ValueError: if shapes don't fit, features are not finite, or the method is unknown.

    Example:
    >>> generator = np.random.default_rng(0)
    >>> labels = np.repeat(["cat", "dog"], 10)
    >>> features = generator.normal(size=(20, 8)) + 5 * (labels == "cat")[:, np.newaxis]
    >>> ax = plot_embedding(features, labels, method="pca")
    >>> [text.get_text() for text in ax.texts]
    ['cat', 'dog']

    Reference:
        - van der Maaten and Hinton 2008, Visualizing Data using t-SNE
    """
    if method not in ("tsne", "pca"):
        raise ValueError(f'`method` must be "tsne" or "pca". Received: {method!r}')
    features = as_features(features, "features")
    labels = as_labels(labels, "labels", len(features))
    if len(features) < 3 or not np.isfinite(features).all():
        raise ValueError(
            "`features` must be finite, three samples or more. Received: "
            f"{len(features)} samples, {np.count_nonzero(~np.isfinite(features))} bad numbers"
        )
    if len(features) > _POINTS:
        kept = np.random.default_rng(seed).choice(len(features), _POINTS, replace=False)
        features, labels = features[kept], labels[kept]
    points = _plane(features, method, seed)
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(5, 4.6), layout="constrained").subplots()
    _draw_points(ax, points, labels)
    ax.set_title(f"Embedding ({'t-SNE' if method == 'tsne' else 'PCA'})", color=INK)
    return ax


def _plane(features: np.ndarray, method: str, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not np.ptp(features, axis=0).any():  # All in one point: no directions to find.
        return np.zeros((len(features), 2))
    components = min(50 if method == "tsne" else 2, *features.shape)
    # A constant column beside embeddings of a single number, which have no second direction.
    principal = PCA(components, random_state=seed).fit_transform(features)
    if principal.shape[1] == 1:
        principal = np.concatenate([principal, np.zeros_like(principal)], axis=1)
    if method == "pca":
        return principal[:, :2]
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    # At so few points threads mostly wait for each other, on a busy machine for half a minute.
    with threadpool_limits(1):
        return tsne.fit_transform(principal)


def _draw_points(ax, points: np.ndarray, labels: np.ndarray) -> None:
    classes, ids = np.unique(labels, return_inverse=True)
    size = float(np.clip(6000 / len(points), 4, 24))
    colors = np.array(COLORS)[ids % len(COLORS)]
    # One call in shuffled order, so that no class lies on top of another.
    order = np.random.default_rng(0).permutation(len(points))
    ax.scatter(*points[order].T, s=size, c=colors[order], alpha=0.8, linewidths=0)
    if len(classes) <= _NAMED:
        for i, name in enumerate(classes):
            # Dark on white, framed in the class's colour: pale colours are hard to read as text.
            ax.text(
                *np.median(points[ids == i], axis=0),
                str(name),
                color=INK,
                fontsize=9,
                fontweight="bold",
                ha="center",
                va="center",
                bbox={
                    "boxstyle": "round,pad=0.2",
                    "facecolor": "white",
                    "edgecolor": COLORS[i % len(COLORS)],
                    "linewidth": 2,
                    "alpha": 0.9,
                },
            )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
