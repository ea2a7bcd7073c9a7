"""What tests of losses share, which cases of a test are for plain runs, and which tests share a process."""

import collections
import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta import testing
from keras_sslmeta.mechanisms import prompt_epochs
from keras_sslmeta.testing import replica_runs

# For tests on replicas; logical devices must be made before the first tensor.
testing.configure_replicas(4)


@pytest.fixture(autouse=True)
def prompt_iterators(request, monkeypatch):
    """Iterators of TensorFlow end late where datasets are tuned: see `mechanisms/prompt_epochs.py`, which
    mends it for our models on arrays. Tests would wait for those of Keras's own models, too."""
    if request.path.name == "prompt_epochs_test.py":
        return
    iterate = tf.data.Dataset.__iter__
    distribute = tf.distribute.Strategy.experimental_distribute_dataset

    def untuned(dataset):
        is_tuned = isinstance(dataset, tf.data.Dataset) and prompt_epochs.is_tuned(dataset)
        return dataset.with_options(prompt_epochs.untuned()) if is_tuned else dataset

    monkeypatch.setattr(tf.data.Dataset, "__iter__", lambda dataset: iterate(untuned(dataset)))
    monkeypatch.setattr(
        tf.distribute.Strategy,
        "experimental_distribute_dataset",
        lambda strategy, dataset, *args: distribute(strategy, untuned(dataset), *args),
    )


@pytest.fixture(scope="session")
def replicas():
    """The strategy of so many replicas. Of one: TensorFlow's default, without a strategy."""

    @functools.cache
    def of(count):
        if count == 1:
            return tf.distribute.get_strategy()
        # As users make it. Collectives of a second one in this process would share their keys.
        if count == 2:
            return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        return replica_runs.strategy(count)

    return of


@pytest.fixture
def value_and_gradient():
    """Of a loss in `y_pred`."""

    def compute(loss, y_true, y_pred, **kwargs):
        y_pred = tf.convert_to_tensor(y_pred)
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y_true, y_pred, **kwargs)
        return value, tape.gradient(value, y_pred)

    return compute


@pytest.fixture
def check_gradient(value_and_gradient):
    """The gradient of a float64 loss in `y_pred` against central differences, component by component."""

    def check(loss, y_true, y_pred, step=1e-6, rtol=1e-5, atol=1e-7):
        y_pred = np.asarray(y_pred, "float64")
        _, got = value_and_gradient(loss, y_true, y_pred)
        value = tf.function(lambda y_pred: loss(y_true, y_pred), autograph=False)
        expected = np.zeros_like(y_pred)
        for index in np.ndindex(y_pred.shape):
            up, down = y_pred.copy(), y_pred.copy()
            up[index] += step
            down[index] -= step
            expected[index] = (float(value(tf.constant(up))) - float(value(tf.constant(down)))) / (
                2 * step
            )
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)

    return check


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `first(n)`, plain runs take the first n cases; the others are slow tests."""
    seen = collections.Counter()
    for item in items:
        marker = item.get_closest_marker("first")
        if marker is None:
            continue
        test = item.nodeid.split("[")[0]
        seen[test] += 1
        if seen[test] > marker.args[0]:
            item.add_marker(pytest.mark.slow)


# Files whose tests share what a fixture makes, which takes long: all of them, or those that agree in what
# the pattern finds.
ONE_PROCESS = {
    "tests/contract_test.py": r"\[(?:mixed_\w+-)?(.+)\]$",
    "tests/data/catalog_test.py": "()",
    "tests/evaluation/adaptation_curve_test.py": "()",
    "tests/replicas_test.py": r"::test_replicas_equal_one_device\[(.+)-\d\]$",
    "tests/testing/assert_batch_invariant_test.py": "()",
    "tests/visualization/adapted_functions_test.py": "()",
}


def process_of(nodeid):
    """Tests of one answer share a process. (The marks of pytest-xdist do nothing under pytest 9.2.)"""
    path = nodeid.partition("::")[0]
    if path not in ONE_PROCESS:
        return nodeid
    found = re.search(ONE_PROCESS[path], nodeid)
    return f"{path} {found[1] if found else ''}"


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return process_of(nodeid)

    return Scheduling(config, log)
