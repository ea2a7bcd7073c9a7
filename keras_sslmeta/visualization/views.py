"""Images beside their augmented views."""

from typing import Any

import keras
import numpy as np

from keras_sslmeta.visualization.palette import INK


def plot_views(images: Any, views: Any, figure: Any = None) -> Any:
    """Draws each image in a column of its own, its augmented views below it.

    Integers count as 0..255. Floats are taken as 0..1 or 0..255 where they lie in one of these,
    and otherwise (standardised images, say) stretched from their least to their greatest value.

    Args:
        images: `(n, height, width, channels)` with 1, 3 or 4 channels. All are drawn: pass as
            many as you want to see, eight or so.
        views: `(n, views, height, width, channels)`, the layout that `data.two_views` gives. The
            size may differ from the images'.
        figure: matplotlib `Figure` or `SubFigure` to draw on. Default: a new `Figure`, large
            enough for the grid.

    Returns:
        The figure. `figure.savefig("views.png")` saves it.

    Raises:
        ValueError: if the shapes don't fit, or images have 2 or more than 4 channels.

    Example:
    >>> images = np.random.rand(4, 8, 8, 1)
    >>> figure = plot_views(images, np.stack([images, images[:, :, ::-1]], axis=1))
    >>> len(figure.axes)
    12

    Reference:
        - Chen et al. 2020, A Simple Framework for Contrastive Learning, figure 4 (such a grid)
    """
    images = _pixels("images", images, rank=4)
    views = _pixels("views", views, rank=5)
    if len(images) != len(views):
        raise ValueError(
            "`views` must hold the views of each image. "
            f"Received: {len(views)} and {len(images)} images"
        )
    columns, rows = len(images), 1 + views.shape[1]
    if figure is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(0.9 * columns + 0.8, 0.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04}
    )
    for column in range(columns):
        stack = [images[column], *views[column]]
        for row, pixels in enumerate(stack):
            _draw_image(axes[row, column], pixels)
    for row in range(rows):
        axes[row, 0].set_ylabel(
            f"view {row}" if row else "image", rotation=0, ha="right", va="center", color=INK
        )
    figure.suptitle("Images and their augmented views", color=INK)
    return figure


def _draw_image(ax, pixels: np.ndarray) -> None:
    if pixels.shape[-1] == 1:
        ax.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        ax.imshow(pixels, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _pixels(name: str, array: Any, rank: int) -> np.ndarray:
    """Pixels from 0 to 1, in float32."""
    array = np.asarray(keras.ops.convert_to_numpy(array))
    if array.ndim != rank or array.size == 0 or array.shape[-1] not in (1, 3, 4):
        layout = "(n, height, width, channels)" if rank == 4 else "(n, views, height, width, …)"
        raise ValueError(
            f"`{name}` must be {layout} with 1, 3 or 4 channels. Received: shape={array.shape}"
        )
    if array.dtype == bool:
        return array.astype("float32")
    pixels = np.nan_to_num(array.astype("float32"), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(pixels.min()), float(pixels.max())
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 255:
        return pixels / 255
    # Interpolation overshoots by a rounding error: that is no other range.
    if low >= -1e-3 and high <= 1 + 1e-3:
        return np.clip(pixels, 0, 1)
    if low >= -0.5 and high <= 255.5:
        return np.clip(pixels / 255, 0, 1)
    return (pixels - low) / max(high - low, 1e-12)
