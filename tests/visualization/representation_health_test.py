import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_sslmeta.evaluation import representation_health
from keras_sslmeta.visualization import plot_spectrum

RANDOM = np.random.default_rng(0)
SPREAD = RANDOM.normal(size=(50, 6))
FLAT = SPREAD * [3, 1, 0, 0, 0, 0]


def test_lines_are_the_singular_values(tmp_path):
    ax = plot_spectrum({"spread": SPREAD, "flat": FLAT})
    assert ax.get_yscale() == "log"
    spread, flat = ax.get_lines()
    expected = np.sqrt(np.linalg.eigvalsh(SPREAD.T @ SPREAD))[::-1]
    np.testing.assert_allclose(spread.get_ydata(), expected / expected[0], rtol=1e-9)
    assert spread.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert flat.get_ydata()[1] > 0.1 and (flat.get_ydata()[2:] == 1e-8).all()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    ranks = [representation_health(z).rankme for z in (SPREAD, FLAT)]
    assert legend == [f"spread, RankMe {ranks[0]:.1f}", f"flat, RankMe {ranks[1]:.1f}"]
    ax.figure.savefig(tmp_path / "spectrum.png")


def test_results_views_and_a_single_one():
    result = representation_health(SPREAD)
    axes = Figure().subplots()
    assert plot_spectrum(result, ax=axes) is axes
    (line,) = axes.get_lines()
    (single,) = plot_spectrum(SPREAD.reshape(25, 2, 6)).get_lines()
    np.testing.assert_allclose(line.get_ydata(), single.get_ydata())
    assert single.get_label() == f"RankMe {result.rankme:.1f}"


def test_twelve_are_told_apart():
    ax = plot_spectrum({str(i): SPREAD + i for i in range(12)})
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.get_lines()}) == 12


def test_collapsed_features():
    ax = plot_spectrum({"zeros": np.zeros((5, 3)), "one": np.ones((5, 1))})
    zeros, one = ax.get_lines()
    assert (zeros.get_ydata() == 1e-8).all()
    assert one.get_ydata().tolist() == [1] and one.get_marker() == "o"
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "`features` must hold features at least once"),
        ({"a": np.zeros(3)}, "`features` must be numbers"),
        ({"a": np.full((3, 2), np.nan)}, "`features` must be finite.*'a'"),
    ],
)
def test_bad_input(features, message):
    with pytest.raises(ValueError, match=message):
        plot_spectrum(features)
