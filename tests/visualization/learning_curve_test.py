import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_sslmeta.visualization import plot_learning_curve

HISTORY = {
    "loss": [3.0, 2.0, 1.0],
    "knn_accuracy": [0.4, 0.5, 0.7],
    "val_loss": [3.5, 2.5, 2.0],
    "learning_rate": [0.1, 0.1, 0.1],
}


def lines(ax):
    """Label to (x, y) of every line on the axes and its twin."""
    found = {}
    for axes in ax.figure.axes:
        for line in axes.get_lines():
            found[line.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_losses_left_and_metrics_right(tmp_path):
    ax = plot_learning_curve(HISTORY)
    left, right = ax.figure.axes
    assert left is ax and len(left.get_lines()) == 2 and len(right.get_lines()) == 1
    assert lines(ax) == {
        "loss": ([1, 2, 3], HISTORY["loss"]),
        "val loss": ([1, 2, 3], HISTORY["val_loss"]),
        "knn accuracy": ([1, 2, 3], HISTORY["knn_accuracy"]),
    }
    styles = {line.get_label(): line.get_linestyle() for line in left.get_lines()}
    assert styles == {"loss": "-", "val loss": "--"}
    assert (ax.get_ylabel(), right.get_ylabel()) == ("loss", "knn accuracy")
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == ["loss", "val loss", "knn accuracy"]
    ax.figure.savefig(tmp_path / "curve.png")
    assert all(text.get_text().endswith("%") for text in right.get_yticklabels())


def test_keras_history_keeps_its_epochs():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse", metrics=["mae"])
    x = np.ones((4, 2))
    history = model.fit(x, x[:, :1], initial_epoch=5, epochs=7, verbose=0)
    assert {label: x for label, (x, _) in lines(plot_learning_curve(history)).items()} == {
        "loss": [6, 7],
        "mae": [6, 7],
    }


def test_chosen_metrics_and_axes():
    axes = Figure().subplots()
    history = {**HISTORY, "b_accuracy": [0.1, 0.2, 0.3], "mae": [1, 1, 1]}
    ax = plot_learning_curve(history, metrics=["b_accuracy", "knn_accuracy"], ax=axes)
    assert ax is axes
    assert list(lines(ax)) == ["loss", "val loss", "b accuracy", "knn accuracy"]
    colors = {line.get_color() for a in ax.figure.axes for line in a.get_lines()}
    assert len(colors) == 3  # The loss and its validation share one.
    assert list(lines(plot_learning_curve(history, metrics=[]))) == ["loss", "val loss"]


def test_one_epoch_is_visible():
    ax = plot_learning_curve({"loss": [1.0]})
    assert ax.get_lines()[0].get_marker() == "o"


@pytest.mark.parametrize(
    ("history", "metrics", "message"),
    [
        ({}, None, "`history` must hold an epoch at least"),
        ({"loss": []}, None, "`history` must hold"),
        (HISTORY, ["f1"], r"keys of the history: loss, knn_accuracy.*Received: \['f1'\]"),
    ],
)
def test_bad_input(history, metrics, message):
    with pytest.raises(ValueError, match=message):
        plot_learning_curve(history, metrics)
