import keras
import numpy as np
import pytest
from keras import layers

from keras_sslmeta.meta.relation_network import RelationNetwork

TASKS, SAMPLES, QUERIES, WAYS = 3, 7, 4, 3
RNG = np.random.default_rng(0)
X = {
    "support_x": RNG.normal(size=(TASKS, SAMPLES, 8, 8, 1)).astype("float32"),
    "support_y": np.stack([RNG.permutation([0, 1, 2, 0, 1, 0, 2]) for _ in range(TASKS)]),
    "query_x": RNG.normal(size=(TASKS, QUERIES, 8, 8, 1)).astype("float32"),
}
Y = RNG.integers(WAYS, size=(TASKS, QUERIES))


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def maps(size=6):
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 9 - size, activation="tanh")])


def vectors():
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(4)])


def by_loops(model, x):
    """The relation module on one pair at a time: the class's sum first, then the query."""
    outputs = np.zeros((TASKS, QUERIES, WAYS))
    for task in range(TASKS):
        support = model.encoder(x["support_x"][task], training=False).numpy()
        queries = model.encoder(x["query_x"][task], training=False).numpy()
        for k in range(WAYS):
            total = np.sum(support[x["support_y"][task] == k], axis=0)
            for j, query in enumerate(queries):
                pair = np.concatenate([total, query], axis=-1)[None]
                outputs[task, j, k] = model.relation(pair, training=False)[0, 0]
    return outputs


@pytest.mark.parametrize("encoder", [maps, vectors])
def test_scores_are_the_relation_of_each_query_to_each_sum(encoder):
    model = RelationNetwork(encoder())
    got = model.predict(X, verbose=0)
    np.testing.assert_allclose(got, by_loops(model, X), rtol=1e-4, atol=1e-6)
    assert ((got > 0) & (got < 1)).all()


def test_a_module_of_ones_own():
    relation = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.GlobalMaxPooling2D(), layers.Dense(1, "sigmoid")]
    )
    model = RelationNetwork(maps(), relation)
    assert model.relation is relation
    np.testing.assert_allclose(model.predict(X, verbose=0), by_loops(model, X), rtol=1e-4)
    before = relation.get_weights()
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(X, Y, verbose=0)
    assert not np.array_equal(before[0], relation.get_weights()[0])
    copy = RelationNetwork.from_config(model.get_config())
    assert [x.name for x in copy.relation.layers] == [x.name for x in relation.layers]


def test_the_default_module_is_the_papers():
    """For Omniglot's maps of 5×5×64: 5 → 2 → 1 by pooling, then 64 → 8 → 1."""
    encoder = keras.Sequential([keras.Input((5, 5, 1)), layers.Conv2D(64, 1)])
    shapes = [w.shape for w in RelationNetwork(encoder).relation.trainable_weights]
    kernels = [tuple(shape) for shape in shapes if len(shape) > 1]
    assert kernels == [(3, 3, 128, 64), (3, 3, 64, 64), (64, 8), (8, 1)]
    tiny = RelationNetwork(maps(size=1))  # No map is pooled to nothing.
    assert tiny.predict(X, verbose=0).shape == (TASKS, QUERIES, WAYS)


def test_the_default_loss_is_the_squared_error_on_one_hot_labels():
    model = RelationNetwork(vectors())
    model.compile("sgd")
    got = model.evaluate(X, Y, verbose=0)
    wanted = np.mean((model.predict(X, verbose=0) - np.eye(WAYS)[Y]) ** 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_an_absent_class_has_the_score_0():
    x = {**X, "support_y": np.where(X["support_y"] == 1, 0, X["support_y"])}
    got = RelationNetwork(vectors()).predict(x, verbose=0)
    assert (got[..., 1] == 0).all() and (got[..., [0, 2]] > 0).all()


@pytest.mark.parametrize(
    ("encoder", "relation", "message"),
    [
        (maps(), layers.Dense(1), "`relation` must be None or a keras.Model"),
        (
            vectors(),
            keras.Sequential([keras.Input((8,)), layers.Dense(2)]),
            r"`relation` must give one score a pair, \(batch, 1\).*2",
        ),
        (
            keras.Sequential([keras.Input((8, 8)), layers.Dense(2)]),
            None,
            r"`encoder` must have one output, maps.*\(None, 8, 2\)",
        ),
        (
            keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(2, 3)]),
            None,
            "(?s)`encoder` must have one output, maps.*of known size",
        ),
    ],
)
def test_what_is_refused(encoder, relation, message):
    with pytest.raises(ValueError, match=message):
        RelationNetwork(encoder, relation)
