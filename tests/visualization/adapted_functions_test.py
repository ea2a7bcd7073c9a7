import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

import keras_sslmeta as ksm
from keras_sslmeta.visualization import plot_adapted_functions


@pytest.fixture(scope="module")
def maml():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    )
    model = ksm.MAML(network, inner_learning_rate=0.05)
    model.compile(loss="mse")
    return model


def episode(**arguments):
    return next(iter(ksm.data.sinusoids(**{"shots": 5, "seed": 3, **arguments})))


SCATTERED = episode()
GRID = episode(query_grid=True, queries=40)


def lines(ax):
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in ax.get_lines()
    }


def test_functions_are_those_of_adapted_models(maml, tmp_path):
    ax = plot_adapted_functions(maml, GRID, steps=(0, 1, 4))
    drawn = lines(ax)
    assert list(drawn) == [
        "true curve",
        "before adaptation",
        "after 1 step",
        "after 4 steps",
        "support",
    ]
    for k, label in ((0, "before adaptation"), (1, "after 1 step"), (4, "after 4 steps")):
        specialist = maml.adapt(GRID[0]["support_x"], GRID[0]["support_y"], steps=k)
        x, y = drawn[label]
        expected = specialist(x[:, None]).numpy()[:, 0]
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        assert len(x) == 200 and (x[0], x[-1]) == (-5, 5)
    assert np.abs(drawn["after 4 steps"][1] - drawn["before adaptation"][1]).max() > 0.05
    np.testing.assert_array_equal(
        drawn["true curve"], [x.numpy()[:, 0] for x in (GRID[0]["query_x"], GRID[1])]
    )
    np.testing.assert_array_equal(
        drawn["support"], [GRID[0][key].numpy()[:, 0] for key in ("support_x", "support_y")]
    )
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(drawn)
    colors = [line.get_color() for line in ax.get_lines()]
    assert len(set(colors)) == len(colors)
    ax.figure.savefig(tmp_path / "functions.png")
    assert (tmp_path / "functions.png").stat().st_size > 1000


def test_queries_off_a_grid_are_dots(maml):
    axes = Figure().subplots()
    ax = plot_adapted_functions(maml, SCATTERED, steps=(2,), ax=axes)
    assert ax is axes and list(lines(ax)) == ["queries", "after 2 steps", "support"]
    dots = ax.get_lines()[0]
    assert dots.get_linestyle() == "None"
    np.testing.assert_array_equal(dots.get_ydata(), SCATTERED[1].numpy()[:, 0])
    ends = np.concatenate([SCATTERED[0][key].numpy() for key in ("support_x", "query_x")])
    x = lines(ax)["after 2 steps"][0]
    np.testing.assert_allclose([x[0], x[-1]], [ends.min(), ends.max()])


@pytest.mark.parametrize("column", [False, True])
def test_given_points_and_true_curve(maml, column):
    x = np.linspace(0, 1, 7)
    ax = plot_adapted_functions(
        maml, SCATTERED, steps=[1], x=x[:, None] if column else x, true=lambda x: 2 * np.sin(x)
    )
    drawn = lines(ax)
    assert list(drawn) == ["true curve", "after 1 step", "support"]
    np.testing.assert_allclose(drawn["true curve"], [x, 2 * np.sin(x)])
    np.testing.assert_array_equal(drawn["after 1 step"][0], x)


def test_arrays_of_one_axis(maml):
    inputs = {key: x.numpy()[:, 0] for key, x in GRID[0].items()}

    class Flat:
        def predict_along(self, episode, steps):
            assert {key: x.ndim for key, x in episode.items()} == dict.fromkeys(inputs, 2)
            known = {key: x[..., None] for key, x in episode.items()}
            return maml.predict_along(known, steps)[..., 0]

    flat = plot_adapted_functions(Flat(), (inputs, GRID[1].numpy()[:, 0]), steps=(0, 1))
    usual = plot_adapted_functions(maml, GRID, steps=(0, 1))
    for label, points in lines(usual).items():
        np.testing.assert_allclose(lines(flat)[label], points, rtol=1e-6)


def test_pyplot_is_left_alone(maml):
    from matplotlib import pyplot

    plot_adapted_functions(maml, GRID, steps=(0,))
    assert not pyplot.get_fignums()


class Two:
    def predict_along(self, episode, steps):
        return np.zeros((1, steps + 1, episode["query_x"].shape[1], 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": keras.Sequential()}, "`model` must be a meta-learner with `predict_along`"),
        ({"model": Two()}, r"one number a sample. Received: .*\(1, 11, 200, 2\)"),
        ({"episode": SCATTERED[0]}, r"`episode` must be \(\{'support_x'.*Received: dict"),
        ({"episode": ({"query_x": 0}, 0)}, "`episode` must be"),
        (
            {"episode": next(iter(ksm.data.sinusoids(seed=0).batch(2)))},
            r"without an axis of tasks.*support_x of shape=\(2, 10, 1\)",
        ),
        (
            {"episode": ({**SCATTERED[0], "support_y": np.zeros((4, 1))}, SCATTERED[1])},
            "as many support_x as support_y. Received: 5 and 4",
        ),
        ({"episode": (SCATTERED[0], SCATTERED[1][:3])}, "query_y. Received: 10 and 3"),
        ({"steps": ()}, r"`steps` must be integers from 0, one at least. Received: steps=\(\)"),
        ({"steps": 3}, "`steps` must be integers from 0"),
        ({"steps": (0, -1)}, "`steps` must be integers from 0"),
        ({"steps": (0.5,)}, "`steps` must be integers from 0"),
        ({"x": np.zeros((2, 2))}, r"`x` must be points \(n,\).*\(2, 2\)"),
        ({"true": np.zeros(200)}, "`true` must be None or a function"),
    ],
)
def test_bad_input(maml, change, message):
    with pytest.raises(ValueError, match=message):
        plot_adapted_functions(**{"model": maml, "episode": SCATTERED, **change})
