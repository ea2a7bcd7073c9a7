import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_sslmeta.visualization import plot_views

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 1), dtype="uint8")
VIEWS = np.stack([IMAGES, 255 - IMAGES], axis=1)


def shown(figure, row, column):
    return np.asarray(figure.axes[row * 3 + column].images[0].get_array())


def test_grid_has_an_image_a_column(tmp_path):
    figure = plot_views(IMAGES, VIEWS)
    assert len(figure.axes) == 9
    for column in range(3):
        np.testing.assert_allclose(shown(figure, 0, column), IMAGES[column, ..., 0] / 255)
        np.testing.assert_allclose(shown(figure, 2, column), VIEWS[column, 1, ..., 0] / 255)
    assert [figure.axes[3 * row].get_ylabel() for row in range(3)] == ["image", "view 1", "view 2"]
    figure.savefig(tmp_path / "views.png")
    assert (tmp_path / "views.png").stat().st_size > 1000


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (IMAGES, IMAGES / 255),
        (IMAGES.astype("float64"), IMAGES / 255),
        (IMAGES.astype("int64"), IMAGES / 255),
        (IMAGES.astype("float32") / 255, IMAGES / 255),
        ((IMAGES / 255).astype("float16"), IMAGES / 255),
        (IMAGES > 100, (IMAGES > 100).astype(float)),
        (np.minimum(IMAGES, 1), np.minimum(IMAGES, 1) / 255),  # Integers are 0..255, dark or not.
        (IMAGES / 100.0 - 3, (IMAGES - IMAGES.min()) / np.ptp(IMAGES.astype(int))),
        (IMAGES * 40.0, (IMAGES - IMAGES.min()) / np.ptp(IMAGES.astype(int))),
        (np.full(IMAGES.shape, -2.0), np.zeros(IMAGES.shape)),
    ],
)
def test_any_value_range(array, expected):
    figure = plot_views(array, VIEWS)
    np.testing.assert_allclose(shown(figure, 0, 1), expected[1, ..., 0], atol=1e-3)


def test_colour_images_and_views_of_another_size():
    images, views = np.random.rand(3, 8, 8, 3), np.random.rand(3, 4, 5, 5, 3)
    figure = plot_views(images, views)
    assert len(figure.axes) == 15
    np.testing.assert_allclose(shown(figure, 0, 2), images[2], atol=1e-6)
    assert shown(figure, 4, 0).shape == (5, 5, 3)


def test_bad_pixels_are_black():
    views = VIEWS / 255
    views[0, 0] = np.nan
    assert shown(plot_views(IMAGES, views), 1, 0).max() == 0


def test_draws_on_a_part_of_a_figure():
    figure = Figure(layout="constrained")
    part = figure.subfigures(2, 1)[0]
    assert plot_views(IMAGES, VIEWS, figure=part) is part
    assert len(figure.axes) == 9


def test_pyplot_is_left_alone():
    from matplotlib import pyplot

    plot_views(IMAGES, VIEWS)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("images", "views", "message"),
    [
        (IMAGES[..., 0], VIEWS, r"`images` must be \(n, height.*\(3, 6, 5\)"),
        (IMAGES, IMAGES, r"`views` must be \(n, views"),
        (IMAGES, VIEWS[:2], "views of each image. Received: 2 and 3 images"),
        (np.zeros((3, 6, 5, 2)), VIEWS, "with 1, 3 or 4 channels"),
        (IMAGES[:0], VIEWS[:0], "`images` must be"),
    ],
)
def test_bad_input(images, views, message):
    with pytest.raises(ValueError, match=message):
        plot_views(images, views)
