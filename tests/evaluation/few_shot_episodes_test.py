"""Episodes that are given to `few_shot`, in place of samples and labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.data import episodes
from keras_sslmeta.evaluation import few_shot, heads
from keras_sslmeta.meta.maml import MAML


@pytest.fixture
def given():
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 12)
    x = (random.normal(size=(5, 6))[y] + random.normal(size=(60, 6))).astype("float32")
    return episodes((x, y), ways=3, shots=2, queries=4, episodes=37, seed=2)


def arrays(dataset):
    inputs, query_y = next(iter(dataset.batch(1000)))
    return {key: part.numpy() for key, part in inputs.items()}, query_y.numpy()


def encoder_3d(x):
    return np.tanh(x[:, :3]) - 0.1


@pytest.mark.parametrize("head", [None, heads.Ridge()])
def test_given_episodes_however_batched(given, head):
    inputs, query_y = arrays(given)
    accuracies = []
    for support, query, y in zip(inputs["support_x"], inputs["query_x"], query_y, strict=True):
        support, query = (
            f / np.linalg.norm(f, axis=1, keepdims=True) for f in map(encoder_3d, (support, query))
        )
        answer = (head or heads.Prototype())(support[None], inputs["support_y"][:1], query[None])
        accuracies.append(np.mean(answer[0].argmax(-1) == y))
    unknown = given.batch(10).filter(lambda inputs, query_y: True)
    with_axis = given.batch(8).map(lambda x, y: ({**x, "support_y": x["support_y"][..., None]}, y))
    sources = [given, given.batch(5), unknown, (inputs, query_y), with_axis]
    results = [few_shot(encoder_3d, source, head=head, verbose=0) for source in sources]
    for result in results:
        np.testing.assert_allclose(result.per_episode, accuracies, atol=1e-12)
        assert result.episodes_key == results[0].episodes_key
    assert results[0].accuracy > 0.4
    assert results[1].paired_difference(results[3]) == (0, 0)


def test_given_episodes_to_a_meta_learner(given):
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model = MAML(network, inner_learning_rate=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"])
    from_dataset = few_shot(model, given, verbose=0)
    from_arrays = few_shot(model, arrays(given), verbose=0)
    np.testing.assert_array_equal(from_dataset.per_episode, from_arrays.per_episode)
    evaluated = model.evaluate(given.batch(37), verbose=0, return_dict=True)["accuracy"]
    assert from_dataset.accuracy == pytest.approx(evaluated, abs=1e-6)
    encoder = few_shot(encoder_3d, given, verbose=0)
    assert from_dataset.paired_difference(encoder)[1] > 0


def test_other_episodes_are_told_apart(given):
    inputs, query_y = arrays(given)
    keys = {few_shot(None, (inputs, query_y), verbose=0).episodes_key}
    for name in ("support_x", "query_x"):
        changed = {**inputs, name: inputs[name] + np.float32(1e-3)}
        keys.add(few_shot(None, (changed, query_y), verbose=0).episodes_key)
    order = np.arange(37)[::-1]
    turned = {key: part[order] for key, part in inputs.items()}
    keys.add(few_shot(None, (turned, query_y[order]), verbose=0).episodes_key)
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"support_y": "nothing"}, "the keys support_x, support_y, query_x; support_y is missing"),
        ({"support_y": lambda y: y + 1}, "number their classes from 0 to ways - 1"),
        ({"support_y": lambda y: y - 1}, "number their classes from 0 to ways - 1"),
        ({"query_y": lambda y: y + 1}, "number their classes from 0 to ways - 1"),
        ({"support_y": lambda y: np.eye(3)[y]}, "`support_y` must be one integer a sample"),
        ({"query_y": lambda y: y.astype("float32")}, "`query_y` must be one integer a sample"),
        ({"query_y": lambda y: y[:, 1:]}, r"here \(32, 12\)"),
        ({"query_y": lambda y: y[1:]}, "the same number of tasks. Received: 36, 37"),
        ({"query_x": lambda x: 3}, "arrays with an axis of tasks in front"),
        ({"query_x": lambda x: x[:0]}, "the same number of tasks. Received: 0, 37"),
        ({"support_x": lambda x: {"a": x}}, "one kind of nest. Received: dict and ndarray"),
    ],
)
def test_bad_given_episodes(given, change, message):
    inputs, query_y = arrays(given)
    parts = {**inputs, "query_y": query_y}
    for name, function in change.items():
        if function == "nothing":
            del parts[name]
        else:
            parts[name] = function(parts[name])
    query_y = parts.pop("query_y")
    with pytest.raises(ValueError, match=message):
        few_shot(None, (parts, query_y), verbose=0)


def test_bad_datasets(given):
    for change in ({"ways": 3}, {"shots": 2}, {"queries": 4}, {"episodes": 37}, {"seed": 2}):
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=f"must be left alone .* Received: {name}={value}"):
            few_shot(None, given, **change)
    with pytest.raises(ValueError, match="`data` must come to an end"):
        few_shot(None, given.repeat())
    with pytest.raises(ValueError, match="give samples and labels as a pair of arrays"):
        few_shot(None, tf.data.Dataset.from_tensor_slices((np.zeros((4, 2)), np.arange(4))))
    with pytest.raises(ValueError, match="`data` must hold an episode at least"):
        few_shot(None, given.take(0), verbose=0)


def test_progress_where_the_number_of_batches_is_unknown(given, capsys):
    few_shot(None, given.batch(10).filter(lambda inputs, query_y: True), verbose=2)
    assert "4/4" in capsys.readouterr().out
