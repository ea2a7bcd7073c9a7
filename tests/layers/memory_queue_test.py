import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.layers.memory_queue import MemoryQueue

LARGE = 2**53 + 1


def keys(batch=4, dim=3, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(batch, dim)).astype(dtype)


def unit(x):
    x = np.asarray(x, "float64")
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rows(x):
    """Rows in an order of their own, since a queue's order means nothing."""
    x = np.asarray(x)
    return x[np.lexsort(x.T)] if x.ndim == 2 else np.sort(x)


class Oracle:
    """A list that the oldest leave."""

    def __init__(self, size):
        self.size, self.keys, self.labels = size, [], []

    def enqueue(self, keys, labels):
        self.keys = [*self.keys, *keys][-self.size :]
        self.labels = [*self.labels, *labels][-self.size :]


@pytest.mark.parametrize("batches", [[3] * 7, [4, 1, 7, 2, 3, 7, 5], [7] * 3, [5, 5, 5]])
@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_holds_the_last_keys_and_labels(batches, as_function, normalize):
    """Of batches that cross the end of the ring, too, and ones that fill it at once."""
    queue, oracle = MemoryQueue(7, normalize=normalize), Oracle(7)
    signature = [tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int64)]
    queue.build((None, 3), (None,))

    def call(keys, labels):
        return queue(keys, labels=labels, training=True)

    call = tf.function(call, input_signature=signature) if as_function else call
    for step, batch in enumerate(batches):
        new, labels = keys(batch, seed=step), np.arange(batch) + 100 * step
        held, held_labels = call(tf.constant(new), tf.constant(labels))
        assert held.shape == (7, 3) and held_labels.shape == (7,)
        filled = len(oracle.keys)
        is_filled = held_labels.numpy() >= 0
        assert is_filled.sum() == filled
        np.testing.assert_array_equal(held_labels.numpy()[~is_filled], -1)
        if filled:  # What was there before this batch, each key with its own label.
            order, expected = np.argsort(held_labels[is_filled]), np.argsort(oracle.labels)
            np.testing.assert_array_equal(
                held_labels.numpy()[is_filled][order], np.array(oracle.labels)[expected]
            )
            np.testing.assert_allclose(
                held.numpy()[is_filled][order], np.array(oracle.keys)[expected], rtol=1e-5
            )
        oracle.enqueue(unit(new) if normalize else new, labels)
        assert int(queue.filled) == min(sum(batches[: step + 1]), 7)
    final, final_labels = queue(keys(), labels=np.arange(4))
    if len(oracle.keys) == 7:
        np.testing.assert_array_equal(rows(final_labels), rows(oracle.labels))
        np.testing.assert_allclose(rows(final), rows(oracle.keys), rtol=1e-5)


def test_a_batch_that_crosses_the_end_loses_no_key():
    queue = MemoryQueue(5, normalize=False)
    for seed in (0, 1):
        queue(keys(3, seed=seed), training=True)
    expected = np.concatenate([keys(3, seed=0)[1:], keys(3, seed=1)])
    np.testing.assert_array_equal(rows(queue(keys())), rows(expected))


def test_without_training_nothing_is_taken_in():
    queue = MemoryQueue(5)
    before = queue(keys())
    queue(keys(), training=False)
    np.testing.assert_array_equal(queue(keys()), before)
    assert int(queue.filled) == 0


def test_places_that_nothing_has_filled_hold_random_directions():
    keras.utils.set_random_seed(0)
    queue, other = MemoryQueue(4000), MemoryQueue(4000)
    held = queue(keys()).numpy()
    np.testing.assert_allclose(np.linalg.norm(held, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(held.T @ held / 4000, np.eye(3) / 3, atol=0.03)
    assert np.abs(held - other(keys())).max() > 0.1
    keras.utils.set_random_seed(0)
    np.testing.assert_array_equal(MemoryQueue(4000)(keys()), held)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "bool"])
def test_labels_of_any_integer_type(dtype):
    queue = MemoryQueue(4)
    labels = np.array([0, 1, 1, 0]).astype(dtype)
    queue(keys(), labels=labels, training=True)
    held = queue(keys(), labels=labels)[1]
    assert held.dtype == "int64"
    np.testing.assert_array_equal(held, [0, 1, 1, 0])
    # A column of one is the same, as datasets give it.
    np.testing.assert_array_equal(queue(keys(), labels=labels[:, None])[1], held)


def test_labels_are_exact():
    queue = MemoryQueue(4)
    labels = np.array([LARGE, LARGE + 1, -LARGE, 2**63 - 1])
    queue(keys(), labels=labels, training=True)
    np.testing.assert_array_equal(queue(keys(), labels=labels)[1], labels)


def test_unfilled_places_are_nobodys_positive():
    queue = MemoryQueue(6)
    queue(keys(2), labels=np.array([-5, 7]), training=True)
    _, held = queue(keys(), labels=np.array([-9, 0, -5, 3]))
    np.testing.assert_array_equal(held, [-5, 7, -10, -10, -10, -10])


def test_no_gradient_into_keys_or_memory():
    queue, x = MemoryQueue(4), tf.constant(keys())
    with tf.GradientTape() as tape:
        tape.watch(x)
        queue(x, training=True)
        value = tf.reduce_sum(queue(x, training=True) ** 2)
    assert tape.gradient(value, x) is None
    assert not queue.trainable_variables and len(queue.non_trainable_variables) == 2


def test_zeros_stay_zero():
    x = keys()
    x[1] = 0
    queue = MemoryQueue(4)
    queue(x, training=True)
    np.testing.assert_array_equal(queue(x)[1], np.zeros(3))


def test_more_keys_than_places():
    with pytest.raises(ValueError, match="at least the keys of one global batch.*keys=6"):
        MemoryQueue(5)(keys(6), training=True)
    queue = MemoryQueue(5)
    queue(keys(6))  # Asking for what is held is no fault.
    queue(keys(5), training=True)

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def enqueue(x):
        return queue(x, training=True)

    before = queue.keys.numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least the keys of one global"):
        enqueue(keys(6))
    np.testing.assert_array_equal(queue.keys, before)
    enqueue(keys(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_keys_that_are_not_finite_are_left_out(bad):
    """With their labels, and also in places that nothing has filled."""
    queue = MemoryQueue(4, normalize=False)
    first, second = keys(2), keys(4, seed=1)
    first[1, 0] = bad
    queue(first, labels=np.array([5, 6]), training=True)
    held, labels = (np.asarray(x) for x in queue(first, labels=np.array([5, 6])))
    assert np.isfinite(held).all() and int(queue.filled) == 2
    np.testing.assert_allclose(held[0], first[0])
    np.testing.assert_allclose(np.linalg.norm(held[1:], axis=1), 1, rtol=1e-6)  # As initialised.
    assert labels[0] == 5 and (labels[1:] < 0).all()
    second[2, 1] = bad  # Which would go to the first place.
    queue(second, labels=np.array([1, 2, 3, 4]), training=True)
    held, labels = (np.asarray(x) for x in queue(second, labels=np.array([1, 2, 3, 4])))
    np.testing.assert_allclose(held, [first[0], second[3], second[0], second[1]])
    assert labels.tolist() == [5, 4, 1, 2]


def test_xla_keeps_the_last_keys():
    queue = MemoryQueue(5, normalize=False)
    queue.build((None, 3))

    @tf.function(jit_compile=True, input_signature=[tf.TensorSpec([None, 3])])
    def enqueue(x):
        return queue(x, training=True)

    enqueue(keys(2))
    enqueue(keys(7))
    np.testing.assert_array_equal(rows(queue.keys), rows(keys(7)[2:]))
    assert int(queue.filled) == 5


@pytest.mark.parametrize(
    ("policy", "computed", "kept"),
    [
        ("float64", "float64", "float64"),
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("float16", "float16", "float32"),
    ],
)
def test_dtypes(policy, computed, kept):
    queue = MemoryQueue(4, dtype=policy)
    # Norms whose squares overflow half precision.
    x = tf.cast(keys() * 1e4, computed)
    labels = np.array([LARGE, 1, 2, 3])
    queue(x, labels=labels, training=True)
    held, held_labels = queue(x, labels=labels)
    assert held.dtype == kept and held_labels.dtype == "int64"
    np.testing.assert_allclose(held, unit(tf.cast(x, "float64")), rtol=1e-6)
    np.testing.assert_array_equal(held_labels, labels)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_symbolic_outputs(policy):
    x = keras.KerasTensor((None, 3), dtype="float32")
    labels = keras.KerasTensor((None,), dtype="int64")
    for training in (True, False, None):
        held = MemoryQueue(6, dtype=policy)(x, training=training)
        assert (held.shape, held.dtype) == ((6, 3), "float32")
        queue = MemoryQueue(6, dtype=policy)
        held, held_labels = queue(x, labels=labels, training=training)
        assert (held.shape, held.dtype) == ((6, 3), "float32")
        assert (held_labels.shape, held_labels.dtype) == ((6,), "int64")
        assert int(queue.filled) == 0


def row_sums(_, y):
    return tf.reduce_sum(y, axis=-1)


class Similarities(keras.layers.Layer):
    """Of each row with each held key; where labels are the same, 1 more."""

    def call(self, x, held, labels=None, held_labels=None):
        similarity = tf.matmul(x, tf.cast(held, x.dtype), transpose_b=True)
        if labels is None:
            return similarity
        return similarity + tf.cast(labels[:, None] == held_labels, x.dtype)


def model_with_queue(has_labels, policy="float32", size=7):
    x = keras.Input((3,), name="x")
    labels = keras.Input((), dtype="int64", name="labels")
    hidden = keras.layers.Dense(3, kernel_initializer="identity", dtype=policy, name="encoder")(x)
    queue = MemoryQueue(size, dtype=policy, name="queue")
    if has_labels:
        held, held_labels = queue(hidden, labels=labels)
        outputs = Similarities(dtype=policy)(hidden, held, labels, held_labels)
        return keras.Model({"x": x, "labels": labels}, outputs)
    return keras.Model(x, Similarities(dtype=policy)(hidden, queue(hidden)))


@pytest.mark.first(2)
@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}, {}]
)
def test_under_fit_and_after_saving(settings, has_labels, tmp_path):
    x, labels = keys(16), np.arange(16) + LARGE
    data = {"x": x, "labels": labels} if has_labels else x
    model = model_with_queue(has_labels)
    # No step moves the encoder, an identity, so that the keys are the data.
    model.compile(keras.optimizers.SGD(0.0), row_sums, **{"jit_compile": False, **settings})
    targets = np.zeros(16, "float32")
    model.fit(data, targets, batch_size=4, epochs=2, shuffle=False, verbose=0)
    queue = model.get_layer("queue")
    np.testing.assert_allclose(rows(queue.keys), rows(unit(x[-7:])), rtol=1e-5)
    assert int(queue.filled) == 7 and int(queue.enqueued) == 32
    if has_labels:
        np.testing.assert_array_equal(rows(queue.labels), labels[-7:])
    model.evaluate(data, targets, batch_size=4, verbose=0)
    assert int(queue.enqueued) == 32

    model.save(tmp_path / "model.keras")
    custom = {"Similarities": Similarities, "row_sums": row_sums}
    again = keras.saving.load_model(tmp_path / "model.keras", custom)
    for one, other in zip(again.weights, model.weights, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    first = {name: value[:4] for name, value in data.items()} if has_labels else x[:4]
    np.testing.assert_array_equal(again(first), model(first))
    again(first, training=True)  # Goes on where it stood.
    np.testing.assert_allclose(
        rows(again.get_layer("queue").keys), rows(unit(np.concatenate([x[-3:], x[:4]]))), rtol=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fit_in_mixed_precision(policy):
    x = keys(16)
    data = {"x": x, "labels": np.arange(16) + LARGE}
    model = model_with_queue(True, policy)
    model.compile(keras.optimizers.SGD(0.0), row_sums)
    model.fit(data, np.zeros(16), batch_size=4, shuffle=False, verbose=0)
    queue = model.get_layer("queue")
    np.testing.assert_array_equal(rows(queue.labels), data["labels"][-7:])
    np.testing.assert_allclose(
        queue.keys.numpy()[np.argsort(queue.labels)], unit(x[-7:]), atol=1e-2
    )


def test_too_many_keys_under_fit():
    model = model_with_queue(False, size=3)
    model.compile("sgd", row_sums, jit_compile=False)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="one global batch"):
        model.fit(keys(8), np.zeros(8), batch_size=4, verbose=0)


@pytest.mark.parametrize("labelled", [False, True])
def test_built_in_advance_it_loads_into_a_model_that_never_called_it(labelled, tmp_path):
    def model():
        outer = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        outer.queue = MemoryQueue(6, dim=3, labelled=labelled)
        return outer

    first = model()
    labels = np.array([7, 8]) if labelled else None
    first.queue(np.eye(3, dtype="float32")[:2], labels=labels, training=True)
    first.save_weights(tmp_path / "model.weights.h5")
    second = model()
    assert int(second.queue.filled) == 0
    second.load_weights(tmp_path / "model.weights.h5")
    assert int(second.queue.filled) == 2
    for x, y in zip(first.queue.weights, second.queue.weights, strict=True):
        np.testing.assert_array_equal(x, y)
    if not labelled:
        with pytest.raises(ValueError, match="as the first call did or `labelled` says"):
            second.queue(np.ones((2, 3)), labels=np.array([1, 2]))


def test_before_its_first_call_nothing_is_filled():
    assert int(MemoryQueue(6).filled) == 0


def test_config():
    queue = MemoryQueue(np.int32(5), normalize=False, name="q", dtype="mixed_float16")
    again = MemoryQueue.from_config(queue.get_config())
    assert again.get_config() == queue.get_config()
    assert (again.size, again.normalize, again.name) == (5, False, "q")


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None, "7"])
def test_refused(size):
    with pytest.raises(ValueError, match="`size` must be a positive integer") as error:
        MemoryQueue(size)
    assert repr(size) in str(error.value)


@pytest.mark.parametrize("shape", [(None, 2, 3), (None, None), (3,)])
def test_refused_shapes(shape):
    with pytest.raises(ValueError, match=r"`keys` must be \(batch, dim\)"):
        MemoryQueue(3)(keras.KerasTensor(shape))


def test_refused_labels():
    for labels in (np.zeros(4, "float32"), np.array(["a", "b", "c", "d"]), np.zeros(3, int)):
        with pytest.raises(ValueError, match="`labels`"):
            MemoryQueue(5)(keys(), labels=tf.constant(labels), training=True)
    with_labels, without = MemoryQueue(5), MemoryQueue(5)
    with_labels(keys(), labels=np.arange(4))
    without(keys())
    with pytest.raises(ValueError, match="every batch or with none.*labels=None"):
        with_labels(keys(), training=True)
    with pytest.raises(ValueError, match="every batch or with none"):
        without(keys(), labels=np.arange(4), training=True)
