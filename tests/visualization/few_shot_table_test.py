import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_sslmeta.evaluation.few_shot_result import FewShotResult
from keras_sslmeta.visualization.few_shot_table import plot_few_shot

RANDOM = np.random.default_rng(0)
WEAK, FAIR, GOOD = (FewShotResult(RANDOM.binomial(75, p, 40) / 75) for p in (0.4, 0.6, 0.99))


def intervals(ax):
    """Ends of the error bars, in the order of drawing."""
    return [segment[:, 0] for bars in ax.collections for segment in bars.get_segments()]


def test_bars_and_intervals(tmp_path):
    ax = plot_few_shot({"raw": WEAK, "SimCLR, 100 epochs": GOOD})
    for bar, ends, result in zip(ax.patches, intervals(ax), (WEAK, GOOD), strict=True):
        assert (bar.get_x(), bar.get_width()) == (0, pytest.approx(result.accuracy))
        half = 1.96 * result.per_episode.std(ddof=1) / np.sqrt(40)
        np.testing.assert_allclose(ends, [result.accuracy - half, result.accuracy + half])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["raw", "SimCLR, 100 epochs"]
    assert [text.get_text() for text in ax.texts] == [
        f"{100 * r.accuracy:.1f}" for r in (WEAK, GOOD)
    ]
    assert ax.yaxis_inverted() and ax.get_legend() is None
    assert [text.get_text() for text in ax.get_xticklabels()][:2] == ["0%", "25%"]
    ax.figure.savefig(tmp_path / "few_shot.png")
    assert (tmp_path / "few_shot.png").stat().st_size > 1000


def test_groups_by_shots_stand_beside_their_names():
    axes = Figure().subplots()
    ax = plot_few_shot({"raw": {1: WEAK}, "MAML": {1: FAIR, 5: GOOD}}, ax=axes)
    assert ax is axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1 shot", "5 shots"]
    drawn = {
        (round(bar.get_width(), 6), round(bar.get_y() + bar.get_height() / 2)): bar
        for bar in ax.patches
    }
    wanted = [(WEAK, 0), (FAIR, 1), (GOOD, 1)]
    assert set(drawn) == {(round(result.accuracy, 6), place) for result, place in wanted}
    fair, good = (drawn[round(result.accuracy, 6), 1] for result in (FAIR, GOOD))
    assert fair.get_y() + fair.get_height() <= good.get_y()  # They don't overlap.
    assert fair.get_facecolor() != good.get_facecolor()
    assert drawn[round(WEAK.accuracy, 6), 0].get_facecolor() == fair.get_facecolor()


def test_a_single_episode_has_no_interval(tmp_path):
    ax = plot_few_shot({"raw": FewShotResult(np.array([0.5]))})
    assert [text.get_text() for text in ax.texts] == ["50.0"]
    ax.figure.savefig(tmp_path / "few_shot.png")


@pytest.mark.parametrize("results", [{}, GOOD, {"a": 0.5}, {"a": {1: 0.5}}, {"a": {}}])
def test_bad_input(results):
    with pytest.raises(ValueError, match="`results` must be a dict from names"):
        plot_few_shot(results)
