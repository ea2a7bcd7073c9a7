import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from keras_sslmeta.evaluation import AdaptationCurve
from keras_sslmeta.visualization import plot_adaptation_curve

RANDOM = np.random.default_rng(0)
ERRORS = AdaptationCurve(RANDOM.uniform(size=(20, 4)), "mean_squared_error")
OTHERS = AdaptationCurve(RANDOM.uniform(size=(9, 7)), "mean_squared_error")


def band(collection):
    """Lowest and highest y of a shaded band at each x."""
    x, y = collection.get_paths()[0].vertices.T
    return {k: (y[x == k].min(), y[x == k].max()) for k in np.unique(x)}


def test_mean_and_interval(tmp_path):
    ax = plot_adaptation_curve(ERRORS)
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), ERRORS.per_episode.mean(0))
    drawn = band(ax.collections[0])
    for k in range(4):
        column = ERRORS.per_episode[:, k]
        half = 1.96 * column.std(ddof=1) / np.sqrt(20)
        np.testing.assert_allclose(drawn[k], [column.mean() - half, column.mean() + half])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("adaptation steps", "mean squared error")
    assert ax.get_legend() is None
    ax.figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert not any(text.get_text().endswith("%") for text in ax.get_yticklabels())


def test_several_curves_are_named_and_told_apart():
    axes = Figure().subplots()
    ax = plot_adaptation_curve({"MAML": ERRORS, "pretrained": OTHERS}, ax=axes)
    assert ax is axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["MAML", "pretrained"]
    first, second = ax.get_lines()
    assert len(first.get_xdata()) == 4 and len(second.get_xdata()) == 7
    assert first.get_color() != second.get_color()
    for line, shade in zip(ax.get_lines(), ax.collections, strict=True):
        assert to_hex(shade.get_facecolor()[0]) == to_hex(line.get_color())


def test_accuracy_in_percent():
    ax = plot_adaptation_curve(AdaptationCurve(RANDOM.uniform(size=(5, 3)), "binary_accuracy"))
    ax.figure.draw_without_rendering()
    assert all(text.get_text().endswith("%") for text in ax.get_yticklabels())


def test_a_single_episode_has_a_line_and_no_steps_a_point(tmp_path):
    ax = plot_adaptation_curve(AdaptationCurve(np.array([[0.5]]), "loss"))
    assert ax.get_lines()[0].get_marker() == "o"
    ax.figure.savefig(tmp_path / "curve.png")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "`curves` must be an AdaptationCurve, or a dict"),
        ([ERRORS], "`curves` must be an AdaptationCurve"),
        ({"a": ERRORS.mean}, "`curves` must be an AdaptationCurve"),
        (
            {"a": ERRORS, "b": AdaptationCurve(ERRORS.per_episode, "accuracy")},
            "of one metric. Received: accuracy, mean_squared_error",
        ),
    ],
)
def test_bad_input(curves, message):
    with pytest.raises(ValueError, match=message):
        plot_adaptation_curve(curves)
